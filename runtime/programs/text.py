"""Text to token ids for lanes, with a bounded cache, and the count of what was really tokenized.

Invariant: an answer from the cache equals a fresh one. `encode` may be called from any thread;
`TurnTexts` lives on the loop thread. Knows nothing about lanes or programs.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from branchline.runtime.core.protocols import ChatTurns, PartedTokenizer, TextTokenizer
from branchline.runtime.responses import ToolFormat, ToolSpec

MAX_CACHED_BYTES = 8_000_000
MAX_TOOL_SETS = 64
MAX_TOOL_SET_BYTES = 65_536
"""In JSON; turns that show more are made anew each time."""
_ENTRY_BYTES, _ID_BYTES = 320, 40
"""What a text in the cache takes beside its characters, and each of its ids."""

Ids = tuple[int, ...]


class TextEncoder:
    """A tokenizer with a least-recently-used cache of texts.

    Thousands of programs append the same literals, or texts that begin alike; what they share is
    tokenized once while it stays cached. A text is kept whole, or in the parts that the tokenizer
    says it may be cut into.

    Args:
        max_bytes: memory that texts and their ids may take; a text that would take more alone is
            not kept at all.
    """

    def __init__(self, tokenizer: TextTokenizer, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._tokenizer = tokenizer
        self._parted = tokenizer if isinstance(tokenizer, PartedTokenizer) else None
        self._max_bytes = max_bytes
        self._bytes = 0
        self._cache: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._lock = threading.Lock()
        self.tokens_tokenized = 0
        self.tokens_cached = 0

    def encode(self, text: str, special: bool = False) -> Ids:
        """Ids of `text`; `special`: see `TextTokenizer.encode`."""
        if not text:
            return ()
        with self._lock:
            ids = self._find(text, special)
        if ids is not None:
            return ids
        parted = self._parted
        if parted is not None and len(parts := parted.parts(text)) > 1:
            return self._encode_parts(parted, parts, special)
        ids = tuple(self._tokenizer.encode(text, special=special))
        with self._lock:
            self._keep(text, special, ids)
        return ids

    def _encode_parts(self, parted: PartedTokenizer, parts: list[str], special: bool) -> Ids:
        """Ids of a text in parts; those that other texts had are found, the rest is tokenized."""
        with self._lock:
            known = [self._find(part, special) for part in parts]
        new = [part for part, ids in zip(parts, known, strict=True) if ids is None]
        made = iter(parted.encode_each(new, special=special) if new else ())
        joined: list[int] = []
        with self._lock:
            for part, ids in zip(parts, known, strict=True):
                if ids is None:
                    ids = tuple(next(made))
                    self._keep(part, special, ids)
                joined += ids
        return tuple(joined)

    def _find(self, text: str, special: bool) -> Ids | None:
        key = (text, special)
        ids = self._cache.get(key)
        if ids is not None:
            self._cache.move_to_end(key)
            self.tokens_cached += len(ids)
        return ids

    def _keep(self, text: str, special: bool, ids: Ids) -> None:
        """Count what was tokenized, and put it into the cache."""
        self.tokens_tokenized += len(ids)
        size, key = _size(text, ids), (text, special)
        if size <= self._max_bytes and key not in self._cache:
            self._cache[key] = ids
            self._bytes += size
            while self._bytes > self._max_bytes:
                (old, _), gone = self._cache.popitem(last=False)
                self._bytes -= _size(old, gone)

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


def _size(text: str, ids: Ids) -> int:
    """Bytes that a text takes in the cache."""
    return _ENTRY_BYTES + sys.getsizeof(text) + _ID_BYTES * len(ids)


class TurnTexts:
    """Chat-turn markup as (text, ids); turns that show tools are made once for each set of them."""

    def __init__(self, turns: ChatTurns, encoder: TextEncoder) -> None:
        self._turns = turns
        self._encoder = encoder
        self._with_tools: OrderedDict[bytes, ChatTurns] = OrderedDict()

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls."""
        return self._turns.tool_format

    def begin(
        self, history: Sequence[tuple[str, str]], role: str, tools: Sequence[ToolSpec] = ()
    ) -> tuple[str, Ids]:
        """Markup that opens a turn of `role` after the finished turns `history`.

        Args:
            tools: that the template declares in the first turn.
        """
        return self._with_ids(self._turns_with(tools).begin(history, role))

    def end(
        self, history: Sequence[tuple[str, str]], role: str, tools: Sequence[ToolSpec] = ()
    ) -> tuple[str, Ids]:
        """Markup that closes the open turn of `role`; `tools` as in `begin`."""
        return self._with_ids(self._turns_with(tools).end(history, role))

    def _with_ids(self, text: str) -> tuple[str, Ids]:
        return text, self._encoder.encode(text, True)

    def _turns_with(self, tools: Sequence[ToolSpec]) -> ChatTurns:
        if not tools:
            return self._turns
        known = msgspec.json.encode(tools)
        turns = self._with_tools.get(known)
        if turns is None:
            turns = self._turns.with_tools(tools)
            if len(known) <= MAX_TOOL_SET_BYTES:
                self._with_tools[known] = turns
                if len(self._with_tools) > MAX_TOOL_SETS:
                    self._with_tools.popitem(last=False)
        return turns
