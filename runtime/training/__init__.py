"""Training drafts for a model: prompts, data made by the model itself, the head, its measure."""
