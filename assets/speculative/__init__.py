"""Draft heads that ship with the package, a folder each, and the prompts they are measured with."""
