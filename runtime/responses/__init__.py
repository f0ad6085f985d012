"""What a model's answer is made of: reasoning, text, tool calls."""
