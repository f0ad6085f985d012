"""The language: what users write. Plain Python; knows nothing of torch, tokens or models."""
