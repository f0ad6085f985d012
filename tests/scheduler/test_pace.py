"""How many guesses pay is found out soon, at a bounded loss, under costs and luck of many kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from branchline.runtime.scheduler.outcomes import ASKED
from branchline.runtime.scheduler.pace import LIKELY, Pace
from branchline.runtime.scheduler.step_costs import Costs, bucket

Time = Callable[[int, int], float]
"""Seconds of a step, of its rows and guesses."""


@dataclass
class World:
    """Steps on a machine of known costs, over texts that are guessed right with a known chance."""

    time: Time
    right: float
    rows: int
    most: int = 16
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(self.most, 256)
        self.random = random.Random(self.seed)
        self.steps = self.looks = 0

    def run(self, tokens: int, *, first: int = 0) -> tuple[float, float]:
        """Ids of each row a second, and the guesses of a row in the last steps."""
        r, names = self.random, [f"{first}.{i}" for i in range(self.rows)]
        made, seconds = dict.fromkeys(names, 0), 0.0
        lately: list[int] = []
        while min(made.values()) < tokens:
            if self.pace.rests(self.rows):
                guesses = [0] * self.rows
            else:
                guesses = self.pace.guesses(names, self.rows)
                self.looks += 1
            for name, count in zip(names, guesses, strict=True):
                kept = 0
                while kept < count and r.random() < self.right:
                    kept += 1
                if count:
                    self.pace.checked(name, count, range(kept), count)
                made[name] += kept + 1
            took = self.time(self.rows, sum(guesses)) * r.uniform(1 - self.noise, 1 + self.noise)
            self.pace.stepped(self.rows, sum(guesses), took)
            seconds += took
            lately.append(max(guesses))
            self.steps += 1
        for name in names:
            self.pace.finished(name)
        ids = sum(made.values()) / self.rows
        return ids / seconds, sum(lately[-50:]) / len(lately[-50:])


def flat(rows: int, guesses: int) -> float:
    """A device with room: guesses cost next to nothing, up to a point."""
    return 1e-3 * (1 + 0.02 * (guesses > 0) + max(0, rows + guesses - 128) / 64)


def linear(rows: int, guesses: int) -> float:
    """A processor that is busy already: a token more is a fifth of a step of one."""
    return 5e-3 * (1 + 0.2 * (rows - 1) + 0.2 * guesses)


def plain_speed(world: World) -> float:
    return 1.0 / world.time(world.rows, 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("time", [flat, linear])
@pytest.mark.parametrize("rows", [1, 4, 16, 64])
def test_it_is_never_much_slower_than_plain_decoding(
    rows: int, time: Time, right: float, seed: int
) -> None:
    world = World(time, right, rows, seed=seed)
    speed, _ = world.run(400)
    assert speed > 0.97 * plain_speed(world)


def dear(rows: int, guesses: int) -> float:
    """A fast device, a drafter that takes turns of sixteen rows and steps that wait for it."""
    return 1e-3 * (1.0 if guesses == 0 else 4.0 + 2.0 * (min(guesses, rows) // 16))


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_where_none_pay_rows_are_hardly_looked_at_and_little_is_tried(rows: int) -> None:
    world = World(dear, 0.1, rows)
    world.run(40)  # the few first steps
    steps, looks = world.steps, world.looks
    speed, _ = world.run(800, first=1)
    assert speed > 0.98 * plain_speed(world)
    assert (world.looks - looks) < 0.05 * (world.steps - steps)


@pytest.mark.parametrize("asking", [3e-3, 3e-4, 1e-5])
def test_rows_that_promise_nothing_are_asked_a_small_share_of_the_time(asking: float) -> None:
    pace, asked, total = Pace(16, 256), 0.0, 0.0
    for step in range(2000):
        took = 1e-3
        if not pace.rests(64):
            pace.asked(64)
            asked, took = asked + asking, took + asking
            pace.stepped(64, 0, took, asked_s=asking)
        else:
            pace.stepped(64, 0, 1e-3)
        if step >= 20:
            total += took
        else:
            asked = 0.0
    assert 0.5 * min(asking / 1e-3, ASKED) <= asked / total <= 1.6 * ASKED


def test_a_row_that_comes_or_goes_is_no_reason_to_look_again() -> None:
    pace, looks = Pace(16, 256), 0
    for step in range(400):
        rows = 64 + step % 2
        count = 0
        if not pace.rests(rows):
            count, looks = sum(pace.guesses([str(i) for i in range(rows)], rows)), looks + 1
        pace.stepped(rows, count, dear(rows, count))
    assert looks < 40


def test_the_first_tries_are_of_a_few_of_many_rows() -> None:
    """And not before it has been earned: a batch may be over by then."""
    pace, names, counts = Pace(16, 256), [str(i) for i in range(64)], list[int]()
    for _ in range(400):
        counts.append(0 if pace.rests(64) else sum(pace.guesses(names, 64)))
        pace.stepped(64, counts[-1], dear(64, counts[-1]))
    assert max(counts[:96]) == 0 < max(counts) <= 16


@pytest.mark.parametrize("rows", [1, 4])
def test_where_guesses_cost_little_many_are_made(rows: int) -> None:
    world = World(flat, 0.8, rows)
    speed, lately = world.run(1500)
    assert lately > 10
    assert speed > 3.0 * plain_speed(world)


def test_where_they_cost_much_few_are_made_and_only_good_ones() -> None:
    good, bad = World(linear, 0.8, 1), World(linear, 0.2, 1)
    speed, lately = good.run(1000)
    assert 2 <= lately <= 8
    assert speed > 1.4 * plain_speed(good)
    _, lately = bad.run(1000)
    assert lately < 0.5


def test_a_change_of_the_texts_is_noticed() -> None:
    world = World(flat, 0.0, 4)
    for first in range(4):
        world.run(300, first=first)
    world.right = 0.9
    for first in range(4, 8):
        world.run(300, first=first)
    speed, lately = world.run(600, first=9)
    assert lately > 6 and speed > 2.5 * plain_speed(world)


def test_a_row_that_is_never_right_is_left_alone_beside_others() -> None:
    pace, r = Pace(8, 256), random.Random(1)
    asked = {"good": 0, "bad": 0}
    for _ in range(600):
        guesses = pace.guesses(list(asked), 2)
        for name, count in zip(asked, guesses, strict=True):
            kept = count if name == "good" and r.random() < 0.9 else 0
            if count:
                pace.checked(name, count, range(kept), count)
            asked[name] += count
        pace.stepped(2, sum(guesses), linear(2, sum(guesses)))
    assert asked["bad"] < 0.15 * asked["good"]


def test_a_row_that_keeps_all_it_is_given_gets_more_whatever_others_keep() -> None:
    def time(rows: int, guesses: int) -> float:
        return 5e-3 * (1 + 0.08 * guesses)

    world = World(time, 0.4, 1)
    _, few = world.run(2000)
    assert 0 < few < 6
    pace, most = world.pace, 0
    for _ in range(24):
        (given,) = pace.guesses(["quoting"], 1)
        most = max(most, given)
        if given:
            pace.checked("quoting", given, range(given), given)
        pace.stepped(1, given, time(1, given))
    assert most >= 12, "within three decisions"


def test_what_a_guess_must_promise_follows_what_it_costs() -> None:
    cheap, dear_ = World(flat, 0.8, 1), World(linear, 0.8, 1)
    assert cheap.pace.least == 0.0, "nothing is known"
    cheap.run(600)
    dear_.run(600)
    assert cheap.pace.least < 0.05 < dear_.pace.least <= LIKELY


def short(rows: int, guesses: int) -> float:
    """A guess costs a tenth of a step, but a row never has more than three worth one."""
    return 5e-3 * (1 + 0.1 * guesses)


def test_rows_that_make_fewer_guesses_than_they_may_cost_what_they_make() -> None:
    pace, r, most = Pace(12, 256), random.Random(3), 0
    for _ in range(600):
        (count,) = pace.guesses(["a"], 1)
        made = min(count, 3)
        kept = 0
        while kept < made and r.random() < 0.8:
            kept += 1
        if made:
            pace.checked("a", count, range(kept), made)
        pace.stepped(1, made, short(1, made))
        most = count
    assert most >= 3, "three of twelve cost three"


def test_costs_are_drawn_between_and_beyond_what_was_measured() -> None:
    costs = Costs()
    assert costs.plain(4) is None and costs.extra(4, 8) is None
    for _ in range(5):
        costs.add(4, 0, 1.0)
        costs.add(4, 8, 1.5)
        costs.add(4, 16, 3.0)
    assert costs.plain(4) == pytest.approx(1.0)
    assert costs.extra(4, 4) == pytest.approx(0.25)
    assert costs.extra(4, 12) == pytest.approx(1.25)
    assert costs.extra(4, 32) == pytest.approx(2.0 + 16 * 1.5 / 8)
    assert costs.extra(3, 8) == pytest.approx(0.5), "near enough"
    assert costs.extra(64, 8) is None
    costs.add(4, 0, 500.0)  # somebody else had the machine
    assert costs.plain(4) < 3.0  # type: ignore[operator]


def test_buckets_ascend() -> None:
    found = [bucket(n) for n in range(1, 300)]
    assert found == sorted(found)
    assert all(n <= b <= 1.5 * n for n, b in zip(range(1, 300), found, strict=True))
