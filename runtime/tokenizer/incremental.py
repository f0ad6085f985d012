"""Text while it is being generated: complete characters only, and stop rules across steps.

Laws: however a stream of ids is split into steps, the joined text is the same and equals the
decoding of all ids at once; however a text is split into pieces, the same stop is found at the
same place. Knows nothing of requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal, NamedTuple

from branchline.runtime.tokenizer.stop_regex import StopPattern, StopScan
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


class IncrementalDecoder:
    """Ids to text, holding back the bytes of a character that is not complete yet.

    Args:
        tokenizer: gives each token's bytes.
        skip_special: leave special tokens out, as `decode` does.
    """

    def __init__(self, tokenizer: TokenizerLike, *, skip_special: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skip: frozenset[int] = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int], *, finished: bool = False) -> str:
        """New text; with `finished`, what is incomplete comes out as U+FFFD."""
        skip, token_bytes = self._skip, self._token_bytes
        raw = b"".join([token_bytes(i) for i in ids if i not in skip])
        return self._utf8.decode(raw, finished)

    @property
    def pending(self) -> bool:
        """Whether bytes of an incomplete character are held back."""
        return bool(self._utf8.getstate()[0])


class StopHit(NamedTuple):
    """Why and where an output ends.

    Attributes:
        kind: "string", "regex" or "id".
        matched: the stop string, the text the pattern matched, or "" for an id.
        offset: characters of the output before it, whether it is kept or not.
        token_id: the stop id, or -1.
    """

    kind: Literal["string", "regex", "id"]
    matched: str
    offset: int
    token_id: int = -1


class StopChecker:
    """Finds the stop that is complete first; of those that end together, the longest.

    Args:
        strings: stop strings, none empty.
        pattern: a compiled stop pattern, if any.
        keep: a stop is part of the output, so that nothing needs to be held back for it.
    """

    def __init__(
        self,
        strings: Sequence[str] = (),
        pattern: StopPattern | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._strings = tuple(strings)
        self._longest = max((len(s) for s in self._strings), default=0)
        self._scan: StopScan | None = pattern.scan() if pattern is not None else None
        self._keep = keep
        self._tail = ""  # last characters seen: what is held back, and what may begin a match
        self._tail_start = 0
        self._seen = 0
        self._released = 0
        self._hit: StopHit | None = None

    @property
    def hit(self) -> StopHit | None:
        """The stop, once found."""
        return self._hit

    @property
    def settled(self) -> bool:
        """Whether nothing is held back."""
        return self._released == self._seen

    def feed(
        self, text: str, *, finished: bool = False, armed: bool = True
    ) -> tuple[str, StopHit | None]:
        """Read on.

        Args:
            text: the next characters.
            finished: nothing follows, so nothing needs to be held back.
            armed: a stop that is complete within this text counts.

        Returns:
            (text that is certain to stay, the stop if it is here). After a stop, nothing more.
        """
        if self._hit is not None:
            return "", None
        before = self._seen
        self._tail += text
        self._seen += len(text)
        self._hit = self._find(text, before, armed)
        if self._hit is not None:
            kept = len(self._hit.matched) if self._keep else 0
            return self._release(self._hit.offset + kept), self._hit
        safe = self._seen if finished else self._safe_until()
        out = self._release(self._seen if self._keep else safe)
        # Keep enough to see a string that began in released text while it was not armed.
        keep_from = min(safe, max(self._tail_start, self._seen - self._longest))
        self._tail = self._tail[keep_from - self._tail_start :]
        self._tail_start = keep_from
        return out, None

    def _release(self, until: int) -> str:
        """Text from what was released so far up to `until`."""
        start = max(self._released - self._tail_start, 0)
        out = self._tail[start : max(until - self._tail_start, start)]
        self._released = max(self._released, until)
        return out

    def _find(self, text: str, before: int, armed: bool) -> StopHit | None:
        found: StopHit | None = None
        end = 0
        if self._scan is not None:
            armed_from = before if armed else before + len(text)
            hit = self._scan.feed(text, armed_from=armed_from)
            if hit is not None:
                matched = self._slice(hit.start, hit.end)
                found, end = StopHit("regex", matched, hit.start), hit.end
        if not armed:
            return None
        for stop in self._strings:
            # The stop must end in the new text.
            start = max(before - len(stop) + 1 - self._tail_start, 0)
            at = self._tail.find(stop, start)
            if at < 0:
                continue
            offset = at + self._tail_start
            stop_end = offset + len(stop)
            earlier = found is None or stop_end < end
            if earlier or (found is not None and stop_end == end and offset < found.offset):
                found, end = StopHit("string", stop, offset), stop_end
        return found

    def _slice(self, start: int, end: int) -> str:
        return self._tail[max(start - self._tail_start, 0) : end - self._tail_start]

    def _safe_until(self) -> int:
        """Offset before which no match under way begins."""
        safe = self._seen
        tail = self._tail
        for stop in self._strings:
            for length in range(min(len(stop) - 1, len(tail)), 0, -1):
                if tail.endswith(stop[:length]):
                    safe = min(safe, self._seen - length)
                    break
        if self._scan is not None:
            safe = min(safe, self._scan.pending_start)
        return safe
