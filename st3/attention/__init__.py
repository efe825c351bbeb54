"""A look inside: where attention goes, how redundant visual tokens are, and which ones survive."""
