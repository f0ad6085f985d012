"""Text to token ids for lanes, with a bounded cache, and the count of what was really tokenized.

Invariant: an answer from the cache equals a fresh one. `encode` may be called from any thread;
`TurnTexts` lives on the loop thread. Knows nothing about lanes or programs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from branchline.runtime.core.protocols import ChatTurns, TextTokenizer

MAX_CACHED_CHARS = 4_000_000
MAX_CACHED_TURNS = 1024
MAX_TURN_CHARS = 4096

Ids = tuple[int, ...]


class TextEncoder:
    """A tokenizer with a least-recently-used cache of whole texts.

    Thousands of programs append the same literals; each is tokenized once while it stays cached.

    Args:
        max_chars: characters of text kept; a text longer than that is not kept at all.
    """

    def __init__(self, tokenizer: TextTokenizer, max_chars: int = MAX_CACHED_CHARS) -> None:
        self._tokenizer = tokenizer
        self._max_chars = max_chars
        self._chars = 0
        self._cache: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._lock = threading.Lock()
        self.tokens_tokenized = 0
        self.tokens_cached = 0

    def encode(self, text: str, special: bool = False) -> Ids:
        """Ids of `text`; `special`: see `TextTokenizer.encode`."""
        if not text:
            return ()
        key = (text, special)
        with self._lock:
            ids = self._cache.get(key)
            if ids is not None:
                self._cache.move_to_end(key)
                self.tokens_cached += len(ids)
                return ids
        ids = tuple(self._tokenizer.encode(text, special=special))
        with self._lock:
            self.tokens_tokenized += len(ids)
            if len(text) <= self._max_chars and key not in self._cache:
                self._cache[key] = ids
                self._chars += len(text)
                while self._chars > self._max_chars:
                    (old, _), _ = self._cache.popitem(last=False)
                    self._chars -= len(old)
        return ids

    def clear(self) -> None:
        """Forget all cached texts; counters stay."""
        with self._lock:
            self._cache.clear()
            self._chars = 0

    @property
    def cached_chars(self) -> int:
        """Characters of text in the cache."""
        return self._chars

    @property
    def start_ids(self) -> Ids:
        """What a lane without tokens starts from: the BOS id, else the smallest end id, else ()."""
        tokenizer = self._tokenizer
        if tokenizer.bos_id is not None:
            return (tokenizer.bos_id,)
        return (min(tokenizer.eos_ids),) if tokenizer.eos_ids else ()

    @property
    def leading_ids(self) -> Ids:
        """What the tokenizer wants before the first token of every sequence."""
        wanted = getattr(self._tokenizer, "add_bos", False)
        return self.start_ids if wanted and self._tokenizer.bos_id is not None else ()

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a sequence."""
        return self._tokenizer.eos_ids


class TurnTexts:
    """Chat-turn markup as (text, ids), rendered once for each short history."""

    def __init__(self, turns: ChatTurns, encoder: TextEncoder) -> None:
        self._turns = turns
        self._encoder = encoder
        self._cache: OrderedDict[tuple[bool, str, tuple[tuple[str, str], ...]], str] = OrderedDict()

    def begin(self, history: Sequence[tuple[str, str]], role: str) -> tuple[str, Ids]:
        """Markup that opens a turn of `role` after the finished turns `history`."""
        return self._render(True, history, role)

    def end(self, history: Sequence[tuple[str, str]], role: str) -> tuple[str, Ids]:
        """Markup that closes the open turn of `role`."""
        return self._render(False, history, role)

    def _render(
        self, begin: bool, history: Sequence[tuple[str, str]], role: str
    ) -> tuple[str, Ids]:
        cacheable = sum(len(content) for _, content in history) <= MAX_TURN_CHARS
        key = (begin, role, tuple(history)) if cacheable else None
        text = self._cache.get(key) if key is not None else None
        if text is None:
            render = self._turns.begin if begin else self._turns.end
            text = render(history, role)
            if key is not None:
                self._cache[key] = text
                if len(self._cache) > MAX_CACHED_TURNS:
                    self._cache.popitem(last=False)
        return text, self._encoder.encode(text, True)
