"""Constraints become grammars, grammars become matchers, matchers fill token masks."""
