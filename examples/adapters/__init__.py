"""Two small adapters for the default model: what they are trained for, how, and how well they do.

Invariant: everything is drawn from seeds, so the same numbers give the same texts, databases and
scores on every machine. Training and held-out items share no name, value, table or sentence.
"""
