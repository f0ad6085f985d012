"""A tokenizer as llguidance wants it: padded to the number of logits, called for ids.

Ids of short texts are kept: what a grammar forces is the same few again and again.
"""

from __future__ import annotations

from functools import lru_cache

from branchline.runtime.grammar.base import GrammarTokenizer

_KEPT_TEXTS, _KEPT_LENGTH = 4096, 64
"""Texts whose ids are kept, and how long they may be."""


class EngineTokenizer:
    """See module.

    Args:
        tokenizer: of the model.
        vocab_size: number of logits.
    """

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        tokens = [bytes(token) for token in tokenizer.all_token_bytes()]
        self.tokens = tokens + [b""] * (vocab_size - len(tokens))
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = None
        self.special_token_ids = sorted(tokenizer.special_ids | tokenizer.eos_ids)
        self._encode = tokenizer.encode
        self._kept = lru_cache(maxsize=_KEPT_TEXTS)(self._ids)

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text. Raises `UnicodeDecodeError` where bytes are none."""
        return list((self._kept if len(text) <= _KEPT_LENGTH else self._ids)(text))

    def _ids(self, text: str | bytes) -> tuple[int, ...]:
        return tuple(self._encode(text if isinstance(text, str) else text.decode()))
