"""Select over types and constraints, in programs: typed values, honest probabilities."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import branchline as bl
from branchline.lang.errors import InvalidRequest


def pick(choices: list[Any], **options: Any) -> bl.Program:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "Answer: " + bl.select("x", choices, **options)
        return s["x"]

    return program


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("42", 42),
        ("unknown", "unknown"),
        ("2026-02-03", datetime.date(2026, 2, 3)),
        ("AB7", "AB7"),
    ],
)
def test_the_value_is_an_instance_of_the_choice_taken(reply: str, value: Any) -> None:
    choices = [int, "unknown", datetime.date, bl.regex("[A-Z]+[0-9]")]
    state = pick(choices).run(backend=bl.Mock({"x": reply}))
    assert state.result == value and type(state.result) is type(value)
    shown = state.meta("x").choices
    assert len(shown) == 4 and max(shown, key=lambda c: c.probability).text == reply
    assert state.text() == "Answer: " + reply


@pytest.mark.parametrize(
    "choices",
    [
        [str, "a"],
        [3, "a"],
        [int, "a", "a"],
        [int, ""],
        [bl.seq(bl.capture("n", int), "!"), "a"],
        [],
    ],
)
def test_what_is_no_choice_is_refused(choices: list[Any]) -> None:
    with pytest.raises((InvalidRequest, bl.UnsupportedConstraint, bl.UnsupportedFeature)):
        bl.select("x", choices)


def test_options_are_checked() -> None:
    for options in ({"max_tokens": 0}, {"baseline": 3}):
        with pytest.raises(InvalidRequest):
            bl.select("x", [int, "a"], **options)  # type: ignore[arg-type]


def test_a_traced_program_shows_the_choices() -> None:
    graph = pick([Literal["a", "b"], "none"]).trace()
    (node,) = [node for node in graph.nodes if node.kind == "select"]
    again = type(graph).from_json(graph.to_json())
    assert again.nodes[node.id if node.id < len(again.nodes) else -1].op == node.op
    assert node.op.constraints[0] is not None and node.op.constraints[1] is None  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    engine = bl.Engine(model=str(default_model), dtype="float32", quantization="none")
    yield engine
    engine.close()


def test_on_the_default_model_probabilities_are_those_of_the_texts(engine: bl.Engine) -> None:
    prompt = "Two plus two is four. In digits, two plus two is"
    choices = [bl.regex(" [0-9]{1,3}"), " a cow", bl.regex(" [A-Z][a-z]{2,9}")]

    @bl.function
    def program(s: bl.State, method: str) -> Any:
        s += prompt + bl.select("x", choices, method=method)
        return s["x"]

    for method in ("total", "token_length_normalized"):
        state = program.run(method=method, backend=engine)
        shown = state.meta("x").choices
        assert sum(choice.probability for choice in shown) == pytest.approx(1.0)
        for choice, wanted in zip(shown, choices, strict=True):
            assert bl.match(wanted, choice.text).status == "full"
            ids = engine._engine.tokenizer.encode(choice.text)
            if len(ids) == len(choice.token_logprobs):
                (row,) = engine.score(prompt, [ids]).token_logprobs
                assert list(choice.token_logprobs) == pytest.approx(row, abs=1e-3)
        scores = [c.logprob / (1 if method == "total" else len(c.token_logprobs)) for c in shown]
        weights = [math.exp(score - max(scores)) for score in scores]
        found = [choice.probability for choice in shown]
        assert found == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)
        assert state.result == shown[scores.index(max(scores))].text


def test_a_prompt_without_content_calibrates(engine: bl.Engine) -> None:
    """The choice that the model favours whatever is asked loses what it has for nothing."""
    form = "Review: {}\nSentiment:"
    base = form.format("N/A")

    @bl.function
    def program(s: bl.State, baseline: str | None) -> Any:
        s += base + bl.select("x", [" good", " bad"], method="total", baseline=baseline)
        return s["x"]

    calibrated = program.run(baseline=base, backend=engine).meta("x").choices
    assert [c.probability for c in calibrated] == pytest.approx([0.5, 0.5], abs=1e-3)
    plain = program.run(baseline=None, backend=engine).meta("x").choices
    assert abs(plain[0].probability - 0.5) > 0.01


def test_inside_a_formatted_string() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += f"Answer: {bl.select('x', [int, 'none'])}."
        return s["x"]

    assert program.run(backend=bl.Mock({"x": "7"})).result == 7
