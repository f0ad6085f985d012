"""Data that crosses rooms: requests, parameters, plans, outputs."""
