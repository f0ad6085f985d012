"""Whether constrained steps overlap is chosen by the clock, in worlds made of numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.scheduler.constrained_overlap import ConstrainedOverlap
from tests.scheduler.harness import Bench
from tests.support.hash_model import VOCAB
from tests.support.oracle_drafter import OracleDrafter


@dataclass
class World:
    """Seconds of a step: of the worker, of the host before it is queued (commit, plan, launch)
    and beside it (masks); every `run`-th id forces others, 0 = none does; overlapping ones take
    `off` times as long as they should."""

    device: float
    host: float
    beside: float = 0.0001
    run: int = 0
    off: float = 1.0

    def turn(self, *, overlapped: bool) -> tuple[float, float, float]:
        """(turn, busy, from queueing to ids)."""
        busy = self.host + self.beside
        if overlapped:
            turn = self.off * max(self.device, busy)
            return turn, busy, turn + self.device
        return self.host + max(self.device, self.beside), busy, self.device

    def per_id(self, *, overlapped: bool) -> float:
        """Seconds of an id that is not forced."""
        steps = 1.0 + (1.0 / self.run if overlapped and self.run else 0.0)
        return self.turn(overlapped=overlapped)[0] * steps


def spend(overlap: ConstrainedOverlap, world: World, ids: int) -> float:
    """Seconds that `ids` ids take which are not forced."""
    total, owed = 0.0, 0
    for number in range(ids):
        force = world.run > 0 and number % world.run == 0
        for _ in range(1 + owed):
            overlapped = overlap.due()
            turn, busy, step = world.turn(overlapped=overlapped)
            overlap.measured(turn, busy, step, overlapped=overlapped)
            total += turn
        owed = int(force and overlapped)
        overlap.took_token(forces=force)
    return total


WORLDS = [
    World(device=0.0005, host=0.0005),
    World(device=0.0005, host=0.0005, run=4),
    World(device=0.0005, host=0.002, run=3),
    World(device=0.0013, host=0.001, run=2),
    World(device=0.007, host=0.001, run=4),
    World(device=0.007, host=0.001, run=30),
    World(device=0.03, host=0.0005, run=3),
    World(device=0.0005, host=0.0001, beside=0.0008, run=2),
    World(device=0.001, host=0.001, off=1.9),
    World(device=0.001, host=0.001, run=5, off=1.5),
]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_the_faster_way_is_found_within_a_few_steps(world: World) -> None:
    overlap = ConstrainedOverlap()
    best = min(world.per_id(overlapped=False), world.per_id(overlapped=True))
    spend(overlap, world, 40)
    assert spend(overlap, world, 2000) < 1.05 * 2000 * best


@pytest.mark.parametrize("first", WORLDS[::3], ids=str)
@pytest.mark.parametrize("then", WORLDS, ids=str)
def test_it_follows_when_the_work_changes(first: World, then: World) -> None:
    overlap = ConstrainedOverlap()
    spend(overlap, first, 500)
    best = min(then.per_id(overlapped=False), then.per_id(overlapped=True))
    spend(overlap, then, 700)
    assert spend(overlap, then, 2000) < 1.05 * 2000 * best


def test_nothing_overlaps_before_both_ways_are_known() -> None:
    overlap = ConstrainedOverlap()
    assert not overlap.due()
    overlap.measured(0.001, 0.0005, 0.0005, overlapped=False)
    assert not overlap.due()


class Noting(ConstrainedOverlap):
    """Never overlaps, and counts what it is told of."""

    turns = 0

    def measured(self, turn_s: float, busy_s: float, step_s: float, *, overlapped: bool) -> None:
        self.turns += 1


@pytest.mark.parametrize("guesses", [False, True])
def test_steps_with_guesses_are_no_measure(guesses: bool) -> None:
    table = [[1, 2, 3]] * 24
    script = Bench()
    script.submit("a", [5, 6], 30, constraint=Constraint(kind="lark", text=json.dumps(table)))
    script.run()
    drafter = OracleDrafter({"a": script.output("a")}, VOCAB, right=1.0, width=1, silent=0.0)
    noting = Noting()
    bench = Bench(constrained_overlap=noting, drafter=drafter if guesses else None, max_depth=2)
    bench.submit("a", [5, 6], 30, constraint=Constraint(kind="lark", text=json.dumps(table)))
    bench.run()
    assert bench.output("a") == script.output("a")
    assert bench.scheduler.stats.accepted_tokens > 10 or not guesses
    assert noting.turns == 0 if guesses else noting.turns > 20
