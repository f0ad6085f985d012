"""HTTP routes over an engine port: existing clients, and programs. Needs no torch."""
