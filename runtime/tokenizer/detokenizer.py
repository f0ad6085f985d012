"""One output's text, token by token, and the ids that stand for what is kept of it.

Laws: `text` and `kept_ids` are the same however the ids were split into pushes; the joined deltas
equal `text`; `decode(kept_ids)` equals `text`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from branchline.runtime.core.section import Section, SectionScan
from branchline.runtime.tokenizer.incremental import IncrementalDecoder, StopChecker, StopHit
from branchline.runtime.tokenizer.stop_regex import compile_stop_regex
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


class TextState:
    """The text of one output while it grows.

    Args:
        tokenizer: of the model.
        stop: strings that end the output.
        stop_regex: pattern that ends the output.
        keep_stop: the text of a stop is part of the output.
        stop_ids: ids that end the output; such an id is no part of it.
        min_tokens: stops that are complete within this many tokens do not count.
        section: stops count behind it only.
        skip_special: leave the text of special tokens out.
        stream: deltas are wanted; without them and without stops in the text, everything is
            decoded once, at the end.

    Raises:
        InvalidRequest: `stop_regex` cannot be used.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        *,
        stop: Sequence[str] = (),
        stop_regex: str | None = None,
        keep_stop: bool = False,
        stop_ids: Collection[int] = (),
        min_tokens: int = 0,
        section: Section | None = None,
        skip_special: bool = True,
        stream: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._keep_stop = keep_stop
        self._min_tokens = min_tokens
        pattern = compile_stop_regex(stop_regex) if stop_regex else None
        self._checker = StopChecker(stop, pattern, keep=keep_stop) if stop or pattern else None
        self._lazy = not stream and self._checker is None
        self._skip_special = skip_special
        self._decoder = IncrementalDecoder(tokenizer, skip_special=skip_special)
        self._section = SectionScan(section) if section is not None else None
        self._before = 0  # characters of the section, which are not looked at
        self._ids: list[int] = []
        self._parts: list[str] = []
        self._hit: StopHit | None = None
        self._finished = False

    @property
    def text(self) -> str:
        """All text given out so far; the whole output once finished or stopped."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def hit(self) -> StopHit | None:
        """The stop, once found."""
        return self._hit

    @property
    def length(self) -> int:
        """Ids pushed so far."""
        return len(self._ids)

    @property
    def settled(self) -> bool:
        """Whether all text of the ids so far has been given out, so that no stop can cut them."""
        if self._hit is not None or self._decoder.pending:
            return False
        return self._checker is None or self._checker.settled

    def ids_from(self, start: int) -> list[int]:
        """Ids pushed so far, from index `start` on."""
        return self._ids[start:]

    def push(self, ids: Sequence[int], finished: bool = False) -> tuple[str, StopHit | None]:
        """Add ids.

        Args:
            ids: the next ones; after a stop or `finished` they are ignored.
            finished: nothing follows: incomplete characters and held-back text come out.

        Returns:
            (text that is new and certain to stay, the stop if it was found just now).
        """
        if self._hit is not None or self._finished:
            return "", None
        ids, stop_id = self._until_stop_id(ids)
        ended = finished or stop_id is not None
        unarmed = self._min_tokens - len(self._ids)
        self._ids.extend(ids)
        self._finished = finished
        if self._lazy:
            text, hit = (self._decode_all() if ended else ""), None
        elif unarmed > 0:
            text, _ = self._step(ids[:unarmed], finished=False, armed=False)
            more, hit = self._step(ids[unarmed:], finished=ended, armed=True)
            text += more
        else:
            text, hit = self._step(ids, finished=ended, armed=True)
        if text:
            self._parts.append(text)
        if hit is None and stop_id is not None:
            hit = StopHit("id", "", len(self.text), stop_id)
        self._hit = hit
        return text, hit

    def kept_ids(self) -> list[int]:
        """Ids whose text is exactly `text`, once finished or stopped.

        Ids as generated; where a stop cut through a token, its kept part is tokenized anew.
        """
        if self._hit is None or self._hit.kind == "id":
            return list(self._ids)
        kept = self.text
        whole, chars = self._whole_tokens(len(kept))
        ids = self._ids[:whole]
        rest = kept[chars:]
        if rest:
            ids += self._encode_exactly(rest)
        return ids

    def _until_stop_id(self, ids: Sequence[int]) -> tuple[Sequence[int], int | None]:
        """`ids` up to the first stop id that counts, and that id."""
        if self._stop_ids:
            first = max(self._min_tokens - len(self._ids), 0)
            for index in range(first, len(ids)):
                if ids[index] in self._stop_ids:
                    return ids[:index], ids[index]
        return ids, None

    def _step(
        self, ids: Sequence[int], *, finished: bool, armed: bool
    ) -> tuple[str, StopHit | None]:
        text = self._decoder.push(ids, finished=finished)
        if self._checker is None:
            return text, None
        inside = ""
        if self._section is not None:
            inside, text = self._section.feed(text)
            self._before += len(inside)
        shown, hit = self._checker.feed(text, finished=finished, armed=armed)
        if hit is not None:
            hit = hit._replace(offset=hit.offset + self._before)
        return inside + shown, hit

    def _decode_all(self) -> str:
        return self._decoder.push(self._ids, finished=True)

    def _whole_tokens(self, cut: int) -> tuple[int, int]:
        """(tokens, characters) of the longest run of whole tokens within `cut` characters."""
        decoder = IncrementalDecoder(self._tokenizer, skip_special=self._skip_special)
        best = (0, 0)
        chars = 0
        for count, token in enumerate(self._ids, 1):
            chars += len(decoder.push([token]))
            if chars > cut:
                break
            if not decoder.pending:
                best = (count, chars)
                if self._keep_stop and chars == cut:
                    break  # here it ended; ids without text behind it came too late
        return best

    def _encode_exactly(self, text: str) -> list[int]:
        """Ids of `text`; where the tokenizer would change the text, one id for each byte.

        A vocabulary that has neither (no byte tokens) gets the tokenizer's nearest answer.
        """
        tokenizer = self._tokenizer
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids, skip_special=False) == text:
            return ids
        table = enumerate(tokenizer.all_token_bytes())
        single = {raw[0]: i for i, raw in table if len(raw) == 1 and i not in tokenizer.special_ids}
        raw = text.encode()
        return [single[byte] for byte in raw] if single.keys() >= set(raw) else ids
