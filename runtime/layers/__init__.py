"""Building blocks of models: each owns its weights, says their names, and calls one op."""
