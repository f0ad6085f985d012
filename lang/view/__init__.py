"""Ways to look at a run: a live terminal view and a notebook view."""
