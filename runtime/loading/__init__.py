"""Model files: where they come from, what is in them, and their tensors under one set of names."""
