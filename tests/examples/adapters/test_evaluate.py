"""Evaluation: every arm is asked the same, what is right is counted, and the chart says it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import branchline as bl
from branchline.examples import evaluate_adapters
from branchline.examples.adapters.chart import WIDTH, bars
from branchline.examples.adapters.evaluate import BASE_ARMS, SHOTS, Arm, measure, table
from branchline.examples.adapters.extract import Extraction
from branchline.examples.adapters.sql import Sql
from branchline.examples.adapters.task import Item, Task


def bounded(task: Task, max_tokens: int) -> Task:
    task.max_tokens = max_tokens
    return task


# Mock's tokens are bytes.
TASKS: tuple[Task, ...] = (bounded(Extraction(), 1_000), bounded(Sql(), 1_000))
ids = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def held_out(task: Task, count: int) -> list[Item]:
    return [task.item("held_out", number) for number in range(count)]


def knowing(items: list[Item], wrong: int = 0) -> bl.Mock:
    """A model that answers all items but the first `wrong` ones rightly."""

    def reply(name: str, text: str) -> str:
        (number,) = [n for n, item in enumerate(items) if item.prompt in text]
        return items[number].answer if number >= wrong else "{}"

    return bl.Mock(reply)


@ids
def test_right_answers_are_counted(task: Task) -> None:
    items = held_out(task, 10)
    outcome = measure(task, Arm("all"), knowing(items), items)
    assert (outcome.parts, outcome.whole) == (1.0, 1.0)
    assert outcome.texts == [item.answer for item in items]
    outcome = measure(task, Arm("most"), knowing(items, wrong=3), items)
    assert outcome.whole == 0.7 and outcome.parts < 1.0


@ids
def test_a_constraint_takes_the_right_answers(task: Task) -> None:
    items = held_out(task, 6)
    outcome = measure(task, Arm("constrained", constrained=True), knowing(items), items)
    assert outcome.whole == 1.0


@ids
def test_an_answer_that_was_cut_is_judged_like_any(task: Task, engine: bl.Engine) -> None:
    items = held_out(task, 2)
    outcome = measure(bounded(type(task)(), 3), Arm("cut", constrained=True), engine, items)
    assert outcome.whole == 0.0
    assert all(outcome.texts)


@ids
def test_arms_differ_in_what_they_say_they_do(task: Task) -> None:
    (item,) = held_out(task, 1)
    seen: list[str] = []

    def reply(name: str, text: str) -> str:
        seen.append(text)
        return item.answer

    for arm in BASE_ARMS:
        measure(task, arm, bl.Mock(reply), [item])
    assert all(text.count(item.prompt) == 1 for text in seen)
    plain, constrained, shots, both = seen
    assert plain == constrained and shots == both
    assert shots.endswith(item.prompt + plain.partition(item.prompt)[2])
    examples = [task.item("train", 1_000_000 + number) for number in range(SHOTS)]
    assert all(shots.count(one.prompt) == shots.count(one.answer) == 1 for one in examples)


def test_the_table_has_a_line_for_each_arm() -> None:
    items = held_out(TASKS[1], 4)
    outcome = measure(TASKS[1], Arm("three of four"), knowing(items, wrong=1), items)
    assert table([outcome]).splitlines()[2:] == ["| three of four | 75.0% | 75% |"]


def test_bars_are_as_long_as_what_they_show() -> None:
    text = bars({"a < b": [("one", 0.25, False), ("two", 1.0, True)]}, 'the "title"')
    root = ElementTree.fromstring(text)
    kinds = {"bar": 0.25, "marked": 1.0}
    widths = {
        part.get("class"): float(part.get("width", "0"))
        for part in root.iter("{http://www.w3.org/2000/svg}rect")
        if part.get("class") in kinds
    }
    assert widths == {kind: share * WIDTH for kind, share in kinds.items()}
    said = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert said == ["a < b", "one", "25%", "two", "100%"]


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    adapters = {task.name: f"smollm2-135m-{task.name}" for task in TASKS}
    with closing(bl.Engine(str(default_model), context_length=2048, adapters=adapters)) as engine:
        yield engine


@ids
def test_the_adapter_that_comes_with_the_package_answers(task: Task, engine: bl.Engine) -> None:
    items = held_out(task, 12)
    base = measure(task, Arm("base, constrained", constrained=True), engine, items)
    outcome = measure(task, Arm("adapter", task.name, constrained=True), engine, items)
    assert outcome.whole > base.whole + 0.3


@pytest.mark.slow
def test_adapters_beat_the_base_model_by_far(tmp_path: Path) -> None:
    """On 30 held-out items; see docs/lora_adapters.md for 100."""
    chart = tmp_path / "chart.svg"
    outcomes = evaluate_adapters.main(["--items", "30", "--chart", str(chart)])
    for name, margin in (("extract", 0.3), ("sql", 0.4)):
        *base, free, constrained = outcomes[name]
        best = max(outcome.parts for outcome in base)
        assert constrained.parts > best + margin
        assert free.parts > best + margin - 0.1
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")
