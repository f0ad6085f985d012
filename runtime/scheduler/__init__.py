"""Which requests run in the next step, and what becomes of its result."""
