"""Benchmarks of the engine: fixed seeds, warm-up, repeats with spread, one JSON line at the end."""
