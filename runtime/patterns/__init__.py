"""Patterns of JSON Schemas: their syntax, and a search that takes linear time."""
