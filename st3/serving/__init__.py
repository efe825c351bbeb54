"""Models that are trimmed, behind a network."""
