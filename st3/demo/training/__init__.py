"""How the packaged model was made; nothing outside imports it."""
