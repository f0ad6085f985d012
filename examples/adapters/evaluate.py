"""Measures a task on held-out items: the base model and an adapter, free and constrained.

Invariant: all arms are asked the same questions in the same words, greedily; only the worked
examples before a question, the constraint and the adapter differ. What was cut is judged like any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import branchline as bl
from branchline.examples.adapters.task import Item, Score, Task

SHOTS = 4
"""Worked examples before a question; training items with the highest numbers."""
_FIRST_SHOT = 1_000_000


@dataclass(frozen=True)
class Arm:
    """One way to ask.

    Attributes:
        name: for the table.
        adapter: name of the engine's adapter; "" = the base model.
        constrained: only well-formed answers can be written.
        shots: worked examples before the question.
    """

    name: str
    adapter: str = ""
    constrained: bool = False
    shots: int = 0


@dataclass(frozen=True)
class Outcome:
    """How an arm did.

    Attributes:
        parts: share of all parts (fields) that are right.
        whole: share of items of which everything is right.
        texts: what was written, item by item.
    """

    arm: Arm
    parts: float
    whole: float
    texts: list[str]


BASE_ARMS = (
    Arm("base"),
    Arm("base, constrained", constrained=True),
    Arm(f"base, {SHOTS} examples", shots=SHOTS),
    Arm(f"base, {SHOTS} examples, constrained", shots=SHOTS, constrained=True),
)
"""The ways to ask the base model: the adapter is compared with the best of them."""


def adapter_arms(adapter: str) -> tuple[Arm, ...]:
    """The ways to ask an adapter."""
    return Arm("adapter", adapter), Arm("adapter, constrained", adapter, constrained=True)


@bl.function(temperature=0.0)
def answer(
    s: bl.State, prompt: str, examples: Sequence[Item], kind: object, max_tokens: int
) -> str:
    """Ask once, as in a chat; returns the text, whole or cut."""
    for example in examples:
        s += bl.user(example.prompt) + bl.assistant(example.answer)
    s += bl.user(prompt) + bl.assistant(bl.gen("answer", kind, max_tokens=max_tokens))
    return s.meta("answer").text


def measure(task: Task, arm: Arm, backend: Any, items: Sequence[Item]) -> Outcome:
    """Ask every item and judge the outputs.

    Args:
        backend: an engine or endpoint that has `arm.adapter`.
    """
    shots = [task.item("train", _FIRST_SHOT + number) for number in range(arm.shots)]
    calls = [
        {
            "prompt": item.prompt,
            "examples": shots,
            "kind": task.constraint(item) if arm.constrained else str,
            "max_tokens": task.max_tokens,
        }
        for item in items
    ]
    options: dict[str, Any] = {"adapter": arm.adapter} if arm.adapter else {}
    states = answer.run_batch(calls, backend=backend, **options)
    texts = [state.result for state in states]
    scores = [task.score(item, text) for item, text in zip(items, texts, strict=True)]
    return Outcome(arm, *_shares(scores), texts)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes of a task as a Markdown table."""
    lines = ["| asked | right parts | all right |", "|---|---|---|"]
    lines += [f"| {one.arm.name} | {one.parts:.1%} | {one.whole:.0%} |" for one in outcomes]
    return "\n".join(lines)


def _shares(scores: Sequence[Score]) -> tuple[float, float]:
    parts = sum(score.parts for score in scores) / max(1, sum(score.out_of for score in scores))
    return parts, sum(score.whole for score in scores) / max(1, len(scores))
