"""What an operator chooses, and the facts of a model. Frozen; unknown names are errors."""
