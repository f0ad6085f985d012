"""Attention over the paged key-value pool: one interface, one file for each way to compute it."""
