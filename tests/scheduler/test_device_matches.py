"""What a worker tells of rows that it looks up, and what is made of it: who guesses, how often."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.scheduler.device_matches import ENTER, FEW, LINGER, LONG, DeviceMatches
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.intake import Bounds, Intake
from branchline.runtime.scheduler.pace import Decision, Pace
from branchline.runtime.scheduler.plan_builder import Segment

PLAIN, CYCLE, END = 0.45e-3, 0.65e-3, 0.3e-3
"""Seconds of a plain step of one row, of one that checks guesses, and of a run's end on top."""


def requests(count: int, **params: Any) -> list[Request]:
    intake = Intake(Bounds(100, 64, 16, 8), seed=1)
    made = []
    for i in range(count):
        source = GenerateRequest(
            id=str(i), prompt_ids=[1, 2], sampling=SamplingParams(max_tokens=20, **params)
        )
        made += intake.make(source)
    return made


def quoting(matches: DeviceMatches, rows: list[Request]) -> dict[str, int]:
    return {request.id: kind for request, kind in matches.quoting(rows)}


def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


def observe(
    matches: DeviceMatches,
    rows: list[Request],
    matched: list[int],
    *,
    guessed: bool = False,
    tried: bool = False,
) -> None:
    """A step of these rows is over."""
    tree = DraftTree(ints(5), ints(-1), ints(0))
    draft = Draft(tree, (-1, -1), (None, None)) if guessed else None
    segments = [Segment(row, 0, 1, True, draft=draft) for row in rows]
    matches.observe(segments, ints(*matched), tried=tried)


def test_rows_quote_whose_ends_have_come_before() -> None:
    rows, matches = requests(4), DeviceMatches()
    assert quoting(matches, rows) == {} and matches.others(rows) == []
    observe(matches, rows, [0, ENTER - 1, ENTER, LONG])
    assert quoting(matches, rows) == {"2": 1, "3": 2}
    matches.finished(rows[3])
    assert quoting(matches, rows) == {"2": 1}
    observe(matches, rows[:1], [LONG])
    assert quoting(matches, rows) == {"0": 2}


def test_rows_whose_choice_depends_on_guesses_are_others() -> None:
    rows, matches = requests(2, min_tokens=3), DeviceMatches()
    observe(matches, rows, [LONG, 0])
    assert quoting(matches, rows) == {} and matches.others(rows) == rows
    for _ in range(3):
        rows[0].append(5)
    assert quoting(matches, rows) == {"0": 2} and matches.others(rows) == rows[1:]


@pytest.mark.parametrize("count", [1, FEW, FEW + 1])
def test_a_row_that_has_guesses_lingers_where_there_are_few(count: int) -> None:
    rows, matches, none = requests(count), DeviceMatches(), [0] * (count - 1)
    observe(matches, rows, [LONG, *none], guessed=True)
    observe(matches, rows, [ENTER - 1, *none], guessed=True)
    seen = 0
    while quoting(matches, rows):
        assert quoting(matches, rows) == {"0": 2}
        observe(matches, rows, [0, *none], guessed=True)
        seen += 1
    assert seen == (1 + LINGER if count <= FEW else 0)


@pytest.mark.parametrize(("guessed", "tried"), [(False, False), (True, True)])
def test_a_row_does_not_linger_in_plain_steps_or_in_tries(guessed: bool, tried: bool) -> None:
    rows, matches = requests(1), DeviceMatches()
    observe(matches, rows, [LONG], guessed=guessed, tried=tried)
    assert quoting(matches, rows) == {"0": 2}
    observe(matches, rows, [0], guessed=guessed, tried=tried)
    assert quoting(matches, rows) == {}


@dataclass
class Texts:
    """Outputs that quote for some ids and then do not, on a device: what a step has found is known
    when the next one has been planned.

    Attributes:
        quoted, free: ids of each, by turns.
        chance: of a match of a few ids where nothing is quoted.
    """

    quoted: int
    free: int
    chance: float = 0.0
    right: float = 0.97
    plain: float = PLAIN
    cycle: float = CYCLE
    decided: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(1)
        self.pace = Pace(15, 256, filled=True, told=True)
        decide = self.pace._decide

        def counted(*args: Any) -> None:
            self.decided += 1
            decide(*args)

        self.pace._decide = counted  # type: ignore[method-assign]

    def match(self, made: int) -> int:
        place = made % (self.quoted + self.free)
        if place < self.quoted:
            return place
        return ENTER if self.random.random() < self.chance else 0

    def step(self, names: list[str], made: list[int], counts: list[int]) -> list[tuple[int, int]]:
        """(guesses kept, match behind them) of each row."""
        found = []
        for i, count in enumerate(counts):
            left, kept = self.quoted - made[i] % (self.quoted + self.free) - 1, 0
            while kept < min(count, left) and self.random.random() < self.right:
                kept += 1
            made[i] += kept + 1
            found.append((kept, self.match(made[i])))
        return found

    def run(self, name: str, rows: int, tokens: int = 96) -> float:
        """`rows` outputs at once; how many times as fast as plain steps."""
        pace, names = self.pace, [f"{name}.{i}" for i in range(rows)]
        made, matched, before, seconds = [1] * rows, [0] * rows, 0, 0.0
        known: tuple[list[int], list[tuple[int, int]], float, Decision] | None = None
        while min(made) < tokens or known is not None:
            planned = None
            if min(made) < tokens:
                counts = [0] * rows
                if not pace.rests(rows):
                    hits = [i for i in range(rows) if matched[i] >= ENTER]
                    kinds = [2 if matched[i] >= LONG else 1 for i in hits]
                    if hits:
                        found = pace.guesses([names[i] for i in hits], rows, kinds)
                        for i, count in zip(hits, found, strict=True):
                            counts[i] = count
                    else:
                        pace.asked(rows)
                took = self.cycle if any(counts) else self.plain
                took += END if before and not any(counts) else 0.0
                before, self.steps = sum(counts), self.steps + 1
                planned = counts, self.step(names, made, counts), took, pace.decision
            if known is not None:
                counts, results, took, decision = known
                for i, (kept, match) in enumerate(results):
                    matched[i] = match
                    if counts[i]:
                        pace.checked(names[i], counts[i], range(kept), counts[i])
                pace.stepped(rows, sum(counts), took, decision=decision)
                seconds += took
            known = planned
        for one in names:
            pace.finished(one)
        return sum(made) / rows * self.plain / seconds


def speed(texts: Texts, rows: int, outputs: int = 12) -> list[float]:
    return [texts.run(str(i), rows) for i in range(outputs)]


def test_quotations_are_found_and_made_use_of_within_the_first_output() -> None:
    found = speed(Texts(40, 30), 1)
    assert found[0] > 1.4 and sorted(found)[3] > 1.8


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize("chance", [0.0, 0.03, 0.2])
def test_where_nothing_is_quoted_next_to_nothing_is_lost(rows: int, chance: float) -> None:
    texts = Texts(0, 99, chance, cycle=CYCLE if rows == 1 else 3 * CYCLE)
    found = speed(texts, rows)
    assert len(found) / sum(1.0 / one for one in found) > 0.98
    assert min(found) > (0.94 if rows == 1 else 0.96)
    assert texts.decided < (0.5 if rows == 1 else 0.13) * texts.steps, "a decision takes a while"
