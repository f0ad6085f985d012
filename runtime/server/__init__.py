"""What speaks to clients: HTTP routes, their limits, their watching. Imports no torch."""
