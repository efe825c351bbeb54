"""Is it right on my model? Oracles of stock layers, and what they say of every method."""
