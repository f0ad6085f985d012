"""A pace where steps are queued ahead and filled up: a check costs the same for one guess as for
fifteen, a run of guessed steps costs something to begin and to end, and what a step brought is
known a step late.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from branchline.runtime.scheduler.outcomes import TRIED
from branchline.runtime.scheduler.pace import Decision, Pace

PLAIN, CYCLE, EDGES, MORE = 0.48e-3, 0.94e-3, 1.2e-3, 0.19e-3
"""Seconds of a plain step and of a guessed one of one row, of a run beside them, and of a step that
is filled up to more than 16 tokens."""


@dataclass
class Device:
    """Outputs one behind the other, on a device.

    Attributes:
        late: seconds that a plain step behind guessed ones waits for them.
        early: seconds that a plain step takes longer while a guessed one is queued behind it.
        each: seconds that it takes to ask a constraint about a guess, which the step waits for.
        steps: by the guesses of a row.
    """

    seed: int = 0
    plain: float = PLAIN
    cycle: float = CYCLE
    late: float = 0.0
    early: float = 0.0
    each: float = 0.0
    most: int = 63
    steps: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        pace = Pace(self.most, 256, filled=True)
        self.pace = pace.another() if self.each else pace
        self.random = random.Random(self.seed)
        self.outputs = 0

    def kept(self, guesses: int, right: float) -> list[int]:
        """Ranks of the guesses of a tree of six levels that are right."""
        path: list[int] = []
        rank = -1
        for _ in range(6):
            rank += 1 + int(self.random.expovariate(0.8))
            if self.random.random() >= right or rank >= guesses:
                break
            path.append(rank)
        return path

    def run(self, right: float, rows: int = 1, tokens: int = 96) -> float:
        """`rows` outputs at once; how many times as fast as plain steps."""
        r, pace, self.outputs = self.random, self.pace, self.outputs + 1
        names = [f"{self.outputs}.{i}" for i in range(rows)]
        made, seconds, before = dict.fromkeys(names, 0), 0.0, 0
        known: tuple[list[int], float, Decision] | None = None
        while min(made.values()) < tokens or known is not None:
            planned = None
            if min(made.values()) < tokens:
                counts = [0] * rows if pace.rests(rows) else pace.guesses(names, rows)
                total = sum(counts)
                took = self.plain if total == 0 else self.cycle + 20e-6 * max(0, total - 63)
                took += MORE if total > 0 and total + rows > 16 else 0.0
                took += self.each * total
                took += EDGES / 2 if (total > 0) != (before > 0) else 0.0
                planned = counts, took * r.uniform(0.97, 1.03), pace.decision
                took += self.late if total == 0 < before else 0.0
                before = total
                self.steps[max(counts)] += 1
            if known is not None:
                counts, took, decision = known
                if planned is not None and sum(planned[0]) > 0 == sum(counts):
                    took += self.early
                for name, count in zip(names, counts, strict=True):
                    path = self.kept(count, right) if count else []
                    if count:
                        pace.checked(name, count, path, count)
                    made[name] += len(path) + 1
                pace.stepped(rows, sum(counts), took, decision=decision)
                seconds += took
            known = planned
        for name in names:
            pace.finished(name)
        return sum(made.values()) / rows * self.plain / seconds


def speed(device: Device, right: float, outputs: int = 12) -> float:
    """Mean of outputs, behind four that do not count."""
    runs = [device.run(right) for _ in range(4 + outputs)][4:]
    return len(runs) / sum(1.0 / run for run in runs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("right", [0.0, 0.3, 0.5, 0.6, 0.7])
def test_one_output_is_never_much_slower(right: float, seed: int) -> None:
    assert speed(Device(seed), right) > 0.97


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("right", [0.75, 0.85])
def test_it_begins_within_the_first_output(right: float, seed: int) -> None:
    device = Device(seed)
    device.run(right)
    assert sum(n for k, n in device.steps.items() if k) > 0.6 * device.steps.total()


@pytest.mark.parametrize("seed", range(8))
def test_the_first_output_loses_a_few_steps_at_most(seed: int) -> None:
    """What may be lost at once, a run's edges, and a step that was queued before it was known."""
    assert 96 / Device(seed).run(0.0) - 96 < 4 + EDGES / PLAIN + 2
    device = Device(seed)
    runs = [device.run(0.0) for _ in range(5)]
    assert 5 / sum(1 / run for run in runs) > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_not_filled_up_further_for_what_it_does_not_bring(seed: int) -> None:
    """A 16th guess would cost a fifth of a step."""
    device = Device(seed)
    speed(device, 0.7)
    assert sum(n for k, n in device.steps.items() if 0 < k <= 15) > 0.8 * sum(
        n for k, n in device.steps.items() if k
    )


@pytest.mark.parametrize("seed", range(8))
def test_many_guesses_are_found_to_pay_where_few_do_not(seed: int) -> None:
    """Four guesses keep too little for what sixteen cost as well."""
    device = Device(seed)
    assert speed(device, 0.8) > 1.4
    assert sum(n for k, n in device.steps.items() if k >= 12) > 0.6 * device.steps.total()


@pytest.mark.parametrize("right", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("cycle", [1.5e-3, 4e-3])
def test_a_batch_loses_next_to_nothing_from_the_first_step_on(cycle: float, right: float) -> None:
    device = Device(plain=0.9e-3, cycle=cycle)
    runs = [device.run(right, rows=64) for _ in range(12)]
    assert runs[0] > 0.97
    assert len(runs) / sum(1.0 / run for run in runs) > 0.985
    assert sorted(runs)[3] > 0.975, "a batch in which something is tried loses more"


@pytest.mark.parametrize("right", [0.0, 0.6, 0.9])
def test_what_a_try_costs_a_batch_may_show_in_the_step_behind_it(right: float) -> None:
    """It is queued without waiting for the step before, and the next one waits for it."""
    device = Device(plain=0.9e-3, cycle=1.1e-3, late=4e-3)
    runs = [device.run(right, rows=64) for _ in range(12)]
    assert runs[0] > 0.97
    assert len(runs) / sum(1.0 / run for run in runs) > 0.98


@pytest.mark.parametrize("right", [0.0, 0.6, 0.9])
def test_what_a_try_costs_a_batch_may_show_in_the_step_ahead_of_it(right: float) -> None:
    """To plan and to queue it takes the host long, which has not looked at that one by then."""
    device = Device(plain=0.75e-3, cycle=1.1e-3, early=4e-3)
    runs = [device.run(right, rows=64) for _ in range(40)]
    assert runs[0] > 0.93, "nothing is known yet"
    assert len(runs) / sum(1.0 / run for run in runs) > 0.985


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("early", [0.3e-3, 0.6e-3])
def test_plain_steps_that_others_are_queued_behind_are_no_measure(early: float, seed: int) -> None:
    """A row quotes for a few steps now and then: of two plain ones between, one is behind a run,
    and the other ahead of one."""
    pace, r = Pace(15, 256, filled=True, told=True), random.Random(seed)
    seconds = plain_seconds = 0.0
    last = 0
    for step in range(4000):
        quotes = step % 7 < 4
        count = 0
        if not pace.rests(1):
            if quotes:
                (count,) = pace.guesses(["a"], 1, [1])
            else:
                pace.asked(1)
        took = 0.65e-3 if last else PLAIN
        took += early if count > 0 == last else 0.0  # of the step before the one that is planned
        path = range(r.random() < 0.3) if last else range(0)
        if last:
            pace.checked("a", last, path, last)
        pace.stepped(1, last, took)
        seconds, plain_seconds = seconds + took, plain_seconds + PLAIN * (1 + len(path))
        last = count
    assert plain_seconds / seconds > 0.97


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_a_step_that_rests_is_known_without_a_look_at_its_rows(rows: int) -> None:
    """To ask so first changes nothing of what is decided."""
    asked, other = Pace(63, 256, filled=True), Pace(63, 256, filled=True)
    names = [str(i) for i in range(rows)]
    rested = 0
    for step in range(600):
        counts = []
        for pace in (asked, other):
            rests = pace is other and pace.goes_on_resting(rows)
            rested += rests
            rests = rests or pace.rests(rows)
            counts.append([0] * rows if rests else pace.guesses(names, rows))
            total = sum(counts[-1])
            for name, count in zip(names, counts[-1], strict=True):
                if count:
                    pace.checked(name, count, range(step % 9 == 0), count)
            pace.stepped(rows, total, CYCLE if total else PLAIN)
        assert counts[0] == counts[1], step
    assert rested > 200


def test_a_batch_is_tried_less_often_where_that_is_hopeless() -> None:
    device = Device(plain=0.9e-3, cycle=4e-3)
    for _ in range(60):
        device.run(0.6, rows=64)
    tried = device.steps.total() - device.steps[0]
    assert tried > 0
    assert tried * (4e-3 + EDGES) < 0.5 * TRIED * 60 * 96 * 0.9e-3


def test_a_step_that_waited_for_guesses_and_has_none_is_no_plain_one() -> None:
    pace = Pace(16, 256)
    for _ in range(4):
        assert pace.rests(1)
        pace.stepped(1, 0, 1e-3)
    for _ in range(40):
        pace.stepped(1, 0, 2e-3, waited=True)
        pace.stepped(1, 0, 1.5e-3)  # does not overlap with that
    assert pace._costs.plain(1) == pytest.approx(1e-3)
    assert pace._costs.edges(1) == pytest.approx(0.5e-3)


def test_kinds_of_guesses_are_judged_apart() -> None:
    """Of one kind all are kept, of another none; a row has now one, now the other."""
    pace, given = Pace(16, 256), {1: 0, 2: 0}
    steps = Counter[int]()
    for step in range(900):
        kind, count, asked_s = 1 if step // 6 % 2 else 2, 0, 0.0
        if not pace.rests(1):
            (count,), asked_s = pace.guesses(["a"], 1, [kind]), 1e-6
            given[kind] += count > 0
        if count:
            pace.checked("a", count, range(count if kind == 2 else 0), count)
        steps[kind] += 1
        pace.stepped(1, count, PLAIN if count == 0 else CYCLE, asked_s=asked_s)
    assert given[2] > 0.6 * steps[2]
    assert given[1] < 0.06 * steps[1]


@pytest.mark.parametrize("seed", range(8))
def test_few_are_made_where_each_costs_something(seed: int) -> None:
    """As where a constraint is asked about each: thirty take twice as long as fifteen."""
    device = Device(seed, cycle=0.6e-3, each=45e-6)
    assert speed(device, 0.75) > 1.0
    guessed = {k: n for k, n in device.steps.items() if k}
    assert sum(n for k, n in guessed.items() if k <= 15) > 0.85 * sum(guessed.values())


@pytest.mark.parametrize("seed", range(4))
def test_what_large_batches_lost_does_not_keep_one_output_waiting(seed: int) -> None:
    device = Device(seed)
    for _ in range(6):
        device.run(0.1, rows=64)
    device.run(0.85)
    device.steps.clear()
    assert device.run(0.85) > 1.3
    assert sum(n for k, n in device.steps.items() if k) > 0.6 * device.steps.total()


@pytest.mark.parametrize("seed", range(8))
def test_while_batches_are_large_single_outputs_earn_what_they_may_lose(seed: int) -> None:
    """Those before had lost it, and more."""
    device = Device(seed)
    for _ in range(4):
        device.run(0.0)
    for _ in range(8):
        device.run(0.0, rows=64)
    device.steps.clear()
    device.run(0.85)
    assert sum(n for k, n in device.steps.items() if k) > 0
