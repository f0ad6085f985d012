"""Forced bytes as tokens a tokenizer would write. Invariant: none that later text may alter.

A token at the end of forced bytes may become part of a longer one once more text is known, so
those that some token of the vocabulary reaches across are left out. Knows no grammar.
"""

from __future__ import annotations

import bisect

from branchline.runtime.grammar.base import GrammarTokenizer


class Canonical:
    """Canonical beginnings for one vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        barred = tokenizer.special_ids | tokenizer.eos_ids
        self._bytes = [
            b"" if i in barred else bytes(token)
            for i, token in enumerate(tokenizer.all_token_bytes())
        ]
        self._sorted = sorted(set(self._bytes) - {b""})
        self._longest = max(map(len, self._sorted), default=0)
        self._encode = tokenizer.encode

    def tokens(self, forced: bytes) -> tuple[int, ...]:
        """Ids whose bytes begin `forced` and that stay the same whatever follows."""
        text = _whole_characters(forced)
        if not text:
            return ()
        fixed = self._fixed(forced)
        ids: list[int] = []
        end = 0
        for token in self._encode(text):
            piece = self._bytes[token] if token < len(self._bytes) else b""
            # A tokenizer that adds or changes text (a leading space) forces nothing.
            if not piece or not forced.startswith(piece, end) or end + len(piece) > fixed:
                break
            end += len(piece)
            ids.append(token)
        return tuple(ids)

    def _fixed(self, forced: bytes) -> int:
        """Bytes before the first place from which a token may reach beyond the end."""
        for start in range(max(0, len(forced) - self._longest), len(forced)):
            rest = forced[start:]
            at = bisect.bisect_right(self._sorted, rest)
            if at < len(self._sorted) and self._sorted[at].startswith(rest):
                return start
        return len(forced)


def _whole_characters(forced: bytes) -> str:
    try:
        return forced.decode()
    except UnicodeDecodeError as error:
        return forced[: error.start].decode()
