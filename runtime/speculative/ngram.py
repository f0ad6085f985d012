"""Guesses by looking up: what followed the last ids when they came before.

A row's last ids are looked for in its own prompt and output, and in what other lanes of its program
have put out: forks repeat each other. The longest match wins. A match is followed id by id as long
as it goes on, so most ids cost one comparison; looking up costs a few hash lookups. Where a long
match breaks off, the next guess is that one id alone was another: texts are quoted with changes.

Law: memory is bounded whatever is generated: outputs are kept up to `MAX_TOKENS` ids in all, the
programs used longest ago go first; an index of a prompt goes with its sequence. Knows no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree, GrowingTree

LEVELS = (8, 4, 2)
"""Lengths of the runs of ids that are indexed; the longest one that is found decides."""

ENTER = 3
"""A match of so many ids makes a row promising."""

COMPARED = 8
"""Places of the same ids whose matches are compared, the latest first."""

MATCH = 32
"""Ids beyond which a longer match is no better."""

LONG = 8
"""A match of so many ids is gone on with behind an id that differs."""

BRANCH = 3
"""Guesses along another continuation than the best."""

MAX_TOKENS = 1 << 17
"""Output ids that are kept at most."""

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]


class Place(NamedTuple):
    """Where something was said before: the ids of `text` up to `end` are the row's last ones."""

    text: list[int]
    end: int

    def matched(self, ids: Sequence[int]) -> int:
        """How many of the last ids agree, up to `MATCH`."""
        count, limit = 0, min(self.end, len(ids), MATCH)
        while count < limit and self.text[self.end - 1 - count] == ids[-1 - count]:
            count += 1
        return count


class PromptIndex:
    """Where the runs of ids of one prompt are. O(n log n) to make, by arrays.

    Args:
        ids: int32 [n].
    """

    def __init__(self, ids: TokenIds) -> None:
        self._text: list[int] = ids.tolist()
        self._levels: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        wide = ids.astype(np.uint64) + np.uint64(1)
        for level in LEVELS:
            if len(ids) <= level:
                continue
            keys = np.zeros(len(ids) - level, dtype=np.uint64)
            with np.errstate(over="ignore"):
                for offset in range(level):
                    keys = keys * np.uint64(_MIX) + wide[offset : offset + len(keys)]
            order = np.argsort(keys, kind="stable")
            self._levels[level] = keys[order], order

    def find(self, last: Sequence[int]) -> Iterator[Place]:
        """Places of these ids, one of `LEVELS` in number, that something follows; latest first."""
        found = self._levels.get(len(last))
        if found is None:
            return
        key = 0
        for token in last:
            key = (key * _MIX + token + 1) & _MASK
        keys, order = found
        first = int(np.searchsorted(keys, np.uint64(key), "left"))
        end = int(np.searchsorted(keys, np.uint64(key), "right"))
        for place in order[max(first, end - COMPARED) : end][::-1].tolist():
            yield Place(self._text, place + len(last))


@dataclass(slots=True)
class Outputs:
    """What the lanes of a program have put out so far.

    Attributes:
        where: runs of ids to the last two places where they ended.
        tokens: ids indexed.
    """

    where: dict[tuple[int, ...], list[Place]] = field(default_factory=dict)
    tokens: int = 0

    def add(self, text: list[int]) -> None:
        """The last id of `text`, which grows in place, is new: index the runs that end there."""
        self.tokens += 1
        for level in LEVELS:
            if len(text) >= level:
                places = self.where.setdefault(tuple(text[-level:]), [])
                places.append(Place(text, len(text)))
                del places[:-2]

    def find(self, last: tuple[int, ...]) -> Iterator[Place]:
        """Places of these ids that something follows; latest first."""
        for place in reversed(self.where.get(last, ())):
            if place.end < len(place.text):
                yield place


@dataclass(slots=True)
class Lane:
    """What is kept of a running sequence.

    Attributes:
        text: the output seen, behind the last `MATCH` ids of the prompt.
        seen: ids of prompt and output taken in.
        prompt: index of the prompt.
        best: places that match the last ids, best first.
        matched: ids that agree at the best place.
    """

    text: list[int]
    seen: int
    prompt: PromptIndex
    best: list[Place] = field(default_factory=list)
    matched: int = 0


class NgramDrafter:
    """`Drafter` by n-grams. `core.drafting` says what the methods do.

    Args:
        across_lanes: look at the outputs of the other lanes of a program, too.
        least_match: ids that must have come before; with fewer there is no proposal.
    """

    def __init__(self, *, across_lanes: bool = True, least_match: int = LEVELS[-1]) -> None:
        self._across_lanes = across_lanes
        self._least_match = least_match
        self._running: dict[str, Lane] = {}
        self._outputs: OrderedDict[str, Outputs] = OrderedDict()
        self._tokens = 0

    @property
    def kept_tokens(self) -> int:
        """Output ids that are indexed."""
        return self._tokens

    def promising(self, row: DraftRow) -> bool:
        """See `Drafter`."""
        return self._follow(row).matched >= max(ENTER, self._least_match)

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        """See `Drafter`. A chain along the best match, the longer the more ids agree, and a short
        branch where the next best goes on otherwise."""
        return [self._tree(row, self._follow(row)) for row in rows]

    def finished(self, request_id: str) -> None:
        """See `Drafter`. What it has put out stays with its program."""
        self._running.pop(request_id, None)
        self._drop(request_id)

    def _follow(self, row: DraftRow) -> Lane:
        """The row's lane, with all its ids taken in."""
        lane = self._running.get(row.request_id)
        if lane is None:
            prompt = row.ids[: row.prompt_len]
            lane = Lane(prompt[-MATCH:].tolist(), len(prompt), PromptIndex(prompt))
            self._running[row.request_id] = lane
            self._look_up(lane, self._outputs_of(row))
        new: list[int] = row.ids[lane.seen :].tolist()
        if not new:
            return lane
        lane.seen += len(new)
        outputs = self._outputs_of(row)
        for token in new:
            lane.text.append(token)
            broken = _behind_a_change(lane)
            going_on = (Place(p.text, p.end + 1) for p in lane.best if p.text[p.end] == token)
            lane.best = [place for place in going_on if place.end < len(place.text)]
            lane.matched = min(lane.matched + 1, MATCH) if lane.best else 0
            if not lane.best:
                self._look_up(lane, outputs)
            if lane.matched < LEVELS[1] and broken is not None:
                lane.best, lane.matched = [broken], ENTER
            outputs.add(lane.text)
        self._tokens += len(new)
        self._forget()
        return lane

    def _look_up(self, lane: Lane, outputs: Outputs) -> None:
        text = lane.text
        for level in LEVELS:
            last = tuple(text[-level:])
            if len(last) < level:
                continue
            places = [*outputs.find(last), *lane.prompt.find(last)][:COMPARED]
            scored = [(place.matched(text), place) for place in places]
            scored = [item for item in scored if item[0] >= level]  # keys may collide
            if scored:
                scored.sort(key=lambda item: -item[0])
                lane.best = [place for _, place in scored[:2]]
                lane.matched = scored[0][0]
                return

    def _outputs_of(self, row: DraftRow) -> Outputs:
        shared = self._across_lanes and row.program_id
        name = f"program {row.program_id}" if shared else row.request_id
        outputs = self._outputs.setdefault(name, Outputs())
        self._outputs.move_to_end(name)
        return outputs

    def _forget(self) -> None:
        while self._tokens > MAX_TOKENS and self._outputs:
            self._drop(next(iter(self._outputs)))

    def _drop(self, name: str) -> None:
        outputs = self._outputs.pop(name, None)
        if outputs is not None:
            self._tokens -= outputs.tokens

    def _tree(self, row: DraftRow, lane: Lane) -> DraftTree | None:
        if lane.matched < self._least_match:
            return None
        tree = GrowingTree()
        depth = min(row.max_depth, 2 * lane.matched - 2)
        for index, place in enumerate(lane.best):
            length = depth if index == 0 else min(depth, BRANCH)
            tree.merge(_continuation(place, lane.text, length), row.max_nodes)
        return tree.build() if len(tree) else None


def _behind_a_change(lane: Lane) -> Place | None:
    """Where a long match goes on if the id that has just come is put for another."""
    if lane.matched < LONG:
        return None
    text, end = lane.best[0]
    if text[end] == lane.text[-1] or end + 1 >= len(text):
        return None
    return Place(text, end + 1)


def _continuation(place: Place, own: list[int], length: int) -> list[int]:
    """What followed there; where that is the row itself and runs into its end, it goes round."""
    found = place.text[place.end : place.end + length]
    if place.text is own:
        period = len(found)
        found += [found[i % period] for i in range(length - period)]
    return found
