"""A vocabulary of single bytes, for grammars without a model."""

from __future__ import annotations


class ByteVocabulary:
    """256 bytes and an end id; a `GrammarTokenizer`."""

    vocab_size = 257
    eos_ids = frozenset({256})
    special_ids: frozenset[int] = frozenset()

    def all_token_bytes(self) -> list[bytes]:
        """Bytes of each id."""
        return [*(bytes([i]) for i in range(256)), b"<eos>"]

    def encode(self, text: str) -> list[int]:
        """An id for each byte."""
        return list(text.encode())
