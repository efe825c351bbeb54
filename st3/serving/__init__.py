"""Trimmed models behind a server: in a room of its own for each kind of server."""
