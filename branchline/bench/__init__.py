"""Benchmarks of whole programs: they need the language, so they live above the runtime."""
