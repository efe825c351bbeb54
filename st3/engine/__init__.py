"""How tokens are dropped in a live model; names no family and no method. `trim` is its door."""
