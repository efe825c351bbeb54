"""Where things are in a model: the only code that knows a model family, and no method."""
