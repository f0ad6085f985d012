"""The executor on the real engine: the same tokens as plain requests, and nothing left behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import (
    BeginRole,
    Cancel,
    Close,
    EndRole,
    Event,
    Fork,
    Join,
    ReadLane,
    Select,
    ValueReady,
)
from tests.programs.helpers import Program, gen, text

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[Engine]:
    # float32: greedy outputs do not depend on what else is in the batch or in the cache
    wide = {"dtype": "float32", "quantization": "none", "kv_dtype": "float32"}
    with Engine(str(default_model), kv_tokens=9000, **wide) as made:
        yield made


class Live(Program):
    """A program on an engine that runs by itself."""

    def __init__(self, executor: Executor, program_id: str = "p") -> None:
        self.done = threading.Event()
        super().__init__(executor, program_id)

    def sink(self, events: list[Event]) -> None:
        super().sink(events)
        if self.closed:
            self.done.set()

    def finish(self) -> None:
        self.send(Close())
        assert self.done.wait(60), "the program ends"


def test_lanes_equal_plain_greedy_requests(engine: Engine) -> None:
    executor = Executor(engine.core)
    program = Live(executor)
    program.send(BeginRole(0, 0, "user"), text(1, "Name a fruit."), EndRole(0, 2))
    program.send(BeginRole(0, 3, "assistant"), gen(4, "fruit", sampling=GREEDY), EndRole(0, 5))
    program.send(Fork(0, 6, (1, 2)))
    for lane in (1, 2):
        program.send(text(10 * lane, f"Note {lane}:", lane))
        program.send(gen(10 * lane + 1, "note", lane, sampling=GREEDY), ReadLane(lane, lane + 50))
    program.send(Join(0, 60, (1, 2)), text(61, "So:"), gen(62, "end", sampling=GREEDY))
    program.send(ReadLane(0, 63))
    program.finish()
    values = program.all(ValueReady)
    assert [value.name for value in values].count("note") == 2 and len(values) == 4
    for value in values:
        held = list(program.lane(value.lane).token_ids)
        prompt = held[: value.meta.prompt_tokens]
        plain = engine.generate(prompt, GREEDY)
        assert plain.text == value.texts[0]
        assert held[len(prompt) : len(prompt) + len(plain.token_ids)] == plain.token_ids
    notes = [value for value in values if value.name == "note"]
    assert all(value.meta.cached_tokens > values[0].meta.prompt_tokens for value in notes)
    assert engine.info()["cache"]["leases"] == 0
    executor.close()


def test_select_equals_scores_of_the_engine(engine: Engine) -> None:
    executor = Executor(engine.core)
    program = Live(executor, "s")
    choices = (" Paris", " Antidisestablishmentarianism", " London")
    program.send(text(0, "The capital of France is"))
    program.send(Select(lane=0, node=1, name="city", choices=choices))
    program.finish()
    value = program.all(ValueReady)[0]
    expected = engine.score(engine.tokenizer.encode("The capital of France is"), choices)
    for choice, row in zip(value.choices, expected.token_logprobs, strict=True):
        assert choice.logprob == pytest.approx(math.fsum(row), abs=1e-3)
    means = [math.fsum(row) / len(row) for row in expected.token_logprobs]
    assert value.texts[0] == choices[means.index(max(means))]
    executor.close()


def test_cancelled_and_abandoned_programs_leave_nothing(engine: Engine) -> None:
    executor = Executor(engine.core)
    long = SamplingParams(temperature=1.0, max_tokens=2000, ignore_eos=True, seed=1)
    programs = [Live(executor, f"c{index}") for index in range(6)]
    for program in programs:
        program.send(text(0, "Once upon a time"), gen(1, "story", sampling=long, stream=True))
    while not all(program.events for program in programs):
        time.sleep(0.01)
    for program in programs[:3]:
        program.send(Cancel((0,)))
        program.finish()
        assert program.failures() == {1: "Cancelled"}
    for program in programs[3:]:
        program.session.abandon()
    end = time.monotonic() + 20
    while engine.info()["scheduler"]["unfinished"] and time.monotonic() < end:
        time.sleep(0.01)
    info = engine.info()
    assert info["scheduler"]["unfinished"] == 0 and info["cache"]["leases"] == 0
    assert info["cache"]["violations"] == 0 and executor.stats().programs_open == 0
    executor.close()


CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Cuba": "Havana",
}  # fmt: skip


def test_healing_finds_the_answer_behind_a_trailing_space(engine: Engine) -> None:
    names = "|".join(CAPITALS.values())
    sampling = SamplingParams(
        temperature=0.0, max_tokens=8, constraint=Constraint(kind="regex", text=names)
    )
    executor = Executor(engine.core)
    right = 0
    for number, (country, capital) in enumerate(CAPITALS.items()):
        program = Live(executor, f"heal{number}")
        prompt = f"The capital of {country} is "
        program.send(text(0, prompt), gen(1, "x", sampling=sampling), ReadLane(0, 2))
        program.finish()
        value = program.values()["x"]
        assert value in CAPITALS.values(), "the value begins behind the prompt's space"
        assert program.lane(0).text == prompt + value
        ids = list(program.lane(0).token_ids)
        assert engine.tokenizer.decode(ids) == prompt + value
        right += value == capital
    assert right >= 9
