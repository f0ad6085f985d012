"""From logits to token ids: penalties, truncations, seeds, log-probabilities."""
