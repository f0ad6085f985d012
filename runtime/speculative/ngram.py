"""Guesses by looking up: what followed the last ids when they came before.

A row's last ids are looked for in its own prompt and output, and in what other lanes of its program
have put out: forks repeat each other. The longest match wins. A match is followed as long as it
goes on. Where a long match breaks off, the next guess is that one id alone was another: texts are
quoted with changes.

Nothing is indexed: ids are compared where they lie, all at once, when a row is asked about and has
no match. So a row that nobody asks about costs nothing, however many ids it gets meanwhile.

Law: memory and time are bounded whatever is generated: outputs of programs are kept up to
`MAX_TOKENS` ids in all, the programs used longest ago go first; of longer texts the last `SEARCHED`
ids are looked through. Knows no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree, GrowingTree

LEAST = 2
"""Ids that must have come before to be a match at all."""

ENTER = 3
"""A match of so many ids makes a row promising."""

COMPARED = 8
"""Places of the same ids whose matches are compared, the latest first."""

MATCH = 32
"""Ids beyond which a longer match is no better."""

LONG = 8
"""A match of so many ids is gone on with behind an id that differs, and is long enough to be told
from others by age alone."""

BRANCH = 3
"""Guesses along another continuation than the best."""

SEARCHED = 1 << 14
"""Ids of a text, and of the outputs of a program, that are looked through, the latest ones."""

MAX_TOKENS = 1 << 17
"""Output ids that are kept at most."""

TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]
Places = np.ndarray[tuple[int], np.dtype[np.int64]]

_BACK = np.arange(1, MATCH + 1)
_NONE = np.zeros(0, dtype=np.int64)


class Place(NamedTuple):
    """Where something was said before: the ids up to `end` are a row's last ones.

    Attributes:
        lane: that said it; None = the row itself.
    """

    lane: Said | None
    end: int


@dataclass(slots=True)
class Said:
    """What a lane of a program has put out, behind the last ids of its prompt; grows."""

    ids: TokenIds
    length: int

    def add(self, new: TokenIds) -> None:
        """These ids follow."""
        end = self.length + len(new)
        if end > len(self.ids):
            grown = np.empty(max(64, 2 * end), dtype=np.int32)
            grown[: self.length] = self.ids[: self.length]
            self.ids = grown
        self.ids[self.length : end] = new
        self.length = end


@dataclass(slots=True)
class Outputs:
    """What the lanes of a program have put out so far, in the order in which it was seen.

    Attributes:
        pairs: uint64, of each id, the one before it and itself.
        lanes, ends: whose it is, and where behind it that goes on.
        said: by lane.
        tokens: ids in it.
    """

    pairs: np.ndarray[tuple[int], np.dtype[np.uint64]] = field(
        default_factory=lambda: np.zeros(256, dtype=np.uint64)
    )
    lanes: TokenIds = field(default_factory=lambda: np.zeros(256, dtype=np.int32))
    ends: TokenIds = field(default_factory=lambda: np.zeros(256, dtype=np.int32))
    said: list[Said] = field(default_factory=list)
    tokens: int = 0

    def enter(self, lane: Lane, tail: TokenIds) -> None:
        """A lane whose prompt ends so."""
        lane.said, lane.number = Said(tail.copy(), len(tail)), len(self.said)
        self.said.append(lane.said)

    def has(self, lane: Lane) -> bool:
        """Whether the lane's output is kept here: all of a program's may have been dropped."""
        return lane.number < len(self.said) and self.said[lane.number] is lane.said

    def add(self, lane: int, new: TokenIds) -> None:
        """A lane has put out these ids, at least one."""
        said = self.said[lane]
        first = said.length
        said.add(new)
        if first == 0:  # nothing stands before the first
            first, new = 1, new[1:]
        count, n = len(new), self.tokens
        while n + count > len(self.pairs):
            self.pairs = np.concatenate([self.pairs, np.zeros_like(self.pairs)])
            self.lanes = np.concatenate([self.lanes, np.zeros_like(self.lanes)])
            self.ends = np.concatenate([self.ends, np.zeros_like(self.ends)])
        ids = said.ids[first - 1 : first + count].astype(np.uint64)
        self.pairs[n : n + count] = (ids[:-1] << np.uint64(32)) | ids[1:]
        self.lanes[n : n + count] = lane
        self.ends[n : n + count] = np.arange(first + 1, first + count + 1)
        self.tokens += count

    def find(self, ids: TokenIds, own: int) -> list[tuple[int, Place]]:
        """Places in other lanes that match a row's ids, each behind how many match."""
        first = max(0, self.tokens - SEARCHED)
        pair = np.uint64((int(ids[-2]) << 32) | int(ids[-1]))
        hits = np.flatnonzero(self.pairs[first : self.tokens] == pair) + first
        if not len(hits):
            return []
        found = []
        for lane, end in zip(self.lanes[hits].tolist(), self.ends[hits].tolist(), strict=True):
            if lane != own and end < self.said[lane].length:
                found.append(Place(self.said[lane], end))
        found = found[: -COMPARED - 1 : -1]
        longer = [p for p in found if _same_before(p, ids)]
        return [(place_match(p, ids), p) for p in longer] or [(LEAST, p) for p in found]


def _same_before(place: Place, ids: TokenIds) -> bool:
    """Whether the id before the last `LEAST` ones is the same, too."""
    assert place.lane is not None
    back = LEAST + 1
    enough = place.end >= back and len(ids) >= back
    return enough and bool(place.lane.ids[place.end - back] == ids[-back])


def place_match(place: Place, ids: TokenIds) -> int:
    """How many of a row's last ids agree with those before a place, up to `MATCH`."""
    assert place.lane is not None
    return int(_matches(place.lane.ids, np.array([place.end]), ids)[0])


def _matches(text: TokenIds, ends: Places, ids: TokenIds) -> Places:
    """How many ids before each place of a text are a row's last ones, up to `MATCH`."""
    count = min(MATCH, len(ids))
    back = _BACK[:count]
    at = ends[:, None] - back
    agree = (text[np.maximum(at, 0)] == ids[-back]) & (at >= 0)
    matched: Places = np.where(agree.all(axis=1), count, np.argmin(agree, axis=1))
    return matched


def own_places(ids: TokenIds) -> Places:
    """Places in a row's own ids that its last `LEAST` ones stand before and something follows;
    where there are many, those of the longest matches up to `LONG`, and of these the latest."""
    first = max(0, len(ids) - 1 - SEARCHED)
    text = ids[first:-1]
    if len(text) < LEAST:
        return _NONE
    hits = np.flatnonzero(text == ids[-1])
    for back in range(1, LONG):
        if back >= LEAST and len(hits) <= COMPARED:
            break
        hits = hits[np.searchsorted(hits, back) :]  # ascending: these have enough before them
        longer = hits[text[hits - back] == ids[-1 - back]]
        if back >= LEAST and not len(longer):
            break
        hits = longer
    return hits[-COMPARED:] + (first + 1)


@dataclass(slots=True)
class Lane:
    """What is kept of a running sequence.

    Attributes:
        seen: ids of prompt and output taken in.
        known: whether places have been looked for behind these ids.
        said: its output, where it is kept for its program.
        number: of that there.
        best: places that match the last ids, best first.
        matched: ids that agree at the best place.
        broken: where a long match goes on if the last id is put for another.
    """

    seen: int
    known: bool = False
    said: Said | None = None
    number: int = -1
    best: list[Place] = field(default_factory=list)
    matched: int = 0
    broken: Place | None = None


class NgramDrafter:
    """`Drafter` by n-grams. `core.drafting` says what the methods do.

    Args:
        across_lanes: look at the outputs of the other lanes of a program, too.
        least_match: ids that must have come before; with fewer there is no proposal.
    """

    def __init__(self, *, across_lanes: bool = True, least_match: int = LEAST) -> None:
        self._across_lanes = across_lanes
        self._least_match = least_match
        self._running: dict[str, Lane] = {}
        self._outputs: OrderedDict[str, Outputs] = OrderedDict()
        self._tokens = 0

    @property
    def kept_tokens(self) -> int:
        """Output ids that are kept."""
        return self._tokens

    def promising(self, row: DraftRow) -> int:
        """See `Drafter`. A long match is another kind: it is rarely one by chance."""
        lane, outputs = self._follow(row)
        likely = lane.known or lane.broken is not None or _said_before(row.ids)
        if outputs is None and not likely:
            return 0  # most rows, most of the time: this is all that they cost
        matched = self._found(row, lane, outputs).matched
        if matched < max(ENTER, self._least_match):
            return 0
        return 2 if matched >= LONG else 1

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        """See `Drafter`. A chain along the best match, the longer the more ids agree, and a short
        branch where the next best goes on otherwise."""
        return [self._tree(row, self._found(row, *self._follow(row))) for row in rows]

    def finished(self, request_id: str) -> None:
        """See `Drafter`. What it has put out stays with its program."""
        self._running.pop(request_id, None)

    def _follow(self, row: DraftRow) -> tuple[Lane, Outputs | None]:
        """The row's lane, with all its ids taken in, and the outputs of its program."""
        lane, outputs = self._running.get(row.request_id), None
        if self._across_lanes and row.program_id:
            outputs = self._outputs_of(row.program_id)
        if lane is None:
            lane = self._running[row.request_id] = Lane(len(row.ids))
            if outputs is None:
                return lane, None
            lane.seen = row.prompt_len
            outputs.enter(lane, row.ids[max(0, row.prompt_len - MATCH) : row.prompt_len])
        if lane.seen < len(row.ids):
            new = row.ids[lane.seen :]
            lane.seen = len(row.ids)
            if outputs is not None:
                self._keep(outputs, row, lane, new)
            if lane.best:
                _go_on(row.ids, lane, new)
            else:
                lane.known, lane.broken = False, None
        return lane, outputs

    def _found(self, row: DraftRow, lane: Lane, outputs: Outputs | None) -> Lane:
        """The lane, with the places that match."""
        if not lane.known:
            lane.known = True
            broken, lane.broken = lane.broken, None
            self._look_up(row.ids, lane, outputs)
            if lane.matched < LONG // 2 and broken is not None:
                lane.best, lane.matched = [broken], ENTER
        return lane

    def _look_up(self, ids: TokenIds, lane: Lane, outputs: Outputs | None) -> None:
        lane.best, lane.matched = [], 0
        if len(ids) < LEAST:
            return
        scored: list[tuple[int, Place]] = []
        if outputs is not None:
            scored = outputs.find(ids, lane.number)
        ends = own_places(ids)
        if len(ends):
            matched = _matches(ids, ends, ids).tolist()
            own = zip(matched, ends.tolist(), strict=True)
            scored += [(count, Place(None, end)) for count, end in own][::-1]
        if scored:
            scored.sort(key=lambda item: -item[0])
            lane.matched = scored[0][0]  # one that matches less says less than the first alone
            lane.best = [place for count, place in scored[:2] if count == lane.matched]

    def _keep(self, outputs: Outputs, row: DraftRow, lane: Lane, new: TokenIds) -> None:
        if not outputs.has(lane):
            known = len(row.ids) - len(new)
            outputs.enter(lane, row.ids[max(0, known - MATCH) : known])
        before = outputs.tokens
        outputs.add(lane.number, new)
        self._tokens += outputs.tokens - before
        while self._tokens > MAX_TOKENS and self._outputs:
            _, dropped = self._outputs.popitem(last=False)
            self._tokens -= dropped.tokens

    def _outputs_of(self, program: str) -> Outputs:
        outputs = self._outputs.setdefault(program, Outputs())
        self._outputs.move_to_end(program)
        return outputs

    def _tree(self, row: DraftRow, lane: Lane) -> DraftTree | None:
        if lane.matched < max(LEAST, self._least_match):
            return None
        tree = GrowingTree()
        depth = min(row.max_depth, 2 * lane.matched - 2)
        for index, place in enumerate(lane.best):
            length = depth if index == 0 else min(depth, BRANCH)
            tree.merge(_continuation(place, row.ids, length), row.max_nodes)
        return tree.build() if len(tree) else None


def _go_on(ids: TokenIds, lane: Lane, new: TokenIds) -> None:
    """New ids have come: they go on where the best places do, or others must be looked for."""
    broken = _behind_a_change(lane, ids, len(new))
    going_on = [
        Place(said, end + len(new))
        for said, end in lane.best
        if _stands(ids if said is None else said.ids[: said.length], end, new)
    ]
    lane.best = [place for place in going_on if place.end < _length(place, ids)]
    lane.matched = min(lane.matched + len(new), MATCH) if lane.best else 0
    lane.known = bool(lane.best)
    lane.broken = None if lane.known else broken


def _said_before(ids: TokenIds) -> bool:
    """Whether the last `ENTER` ids have come before, unless what looks like them has."""
    return ids[-ENTER:].tobytes() in ids[-SEARCHED:-1].tobytes()


def _length(place: Place, ids: TokenIds) -> int:
    return len(ids) if place.lane is None else place.lane.length


def _stands(text: TokenIds, end: int, new: TokenIds) -> bool:
    """Whether these ids stand at a place of a text."""
    there = text[end : end + len(new)]
    return len(there) == len(new) and bool((there == new).all())


def _behind_a_change(lane: Lane, ids: TokenIds, count: int) -> Place | None:
    """Where a long match goes on if the last of `count` new ids is put for another."""
    if lane.matched < LONG:
        return None
    where, end = lane.best[0]
    text = ids if where is None else where.ids[: where.length]
    last = end + count - 1
    if last + 1 >= len(text) or text[last] == ids[-1]:
        return None
    if count > 1 and not _stands(text, end, ids[-count:-1]):
        return None
    return Place(where, last + 1)


def _continuation(place: Place, ids: TokenIds, length: int) -> list[int]:
    """What followed there; where that is the row itself and runs into its end, it goes round."""
    if place.lane is not None:
        end = min(place.end + length, place.lane.length)
        said: list[int] = place.lane.ids[place.end : end].tolist()
        return said
    found: list[int] = ids[place.end : place.end + length].tolist()
    period = len(found)
    return found + [found[i % period] for i in range(length - period)]
