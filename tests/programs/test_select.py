"""Select methods against definitions written out the long way."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.messages import ScoreRequest
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.programs.protocol import Close, ReadLane, Select, ValueReady
from branchline.runtime.programs.select import choose, score, softmax
from tests.programs.helpers import Program, gen, rig, text
from tests.support.scripted_port import ScriptedPort, default_scorer

ROW = st.lists(st.floats(-20, -0.01), min_size=1, max_size=6)
ROWS = st.lists(ROW, min_size=1, max_size=6)
SIMPLE = ("token_length_normalized", "total", "unconditional_likelihood_normalized")
METHODS = (*SIMPLE, "greedy_token_selection")


def brute_score(method: str, row: list[float], base: list[float]) -> float:
    if method == "total":
        return sum(row)
    if method == "token_length_normalized":
        return sum(row) / len(row)
    return sum(one - other for one, other in zip(row, base, strict=True)) / len(row)


def brute_greedy(rows: list[list[float]]) -> int:
    """Tuples of padded log-probabilities compare place by place; the first of equals wins."""
    longest = max(map(len, rows))
    keys = [tuple(row + [math.fsum(row) / len(row)] * (longest - len(row))) for row in rows]
    return keys.index(max(keys))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(SIMPLE), st.randoms(use_true_random=False))
def test_best_score_wins_and_probabilities_are_its_softmax(
    rows: list[list[float]], method: str, rng: random.Random
) -> None:
    base = [[rng.uniform(-20, 0) for _ in row] for row in rows]
    expected = [brute_score(method, row, other) for row, other in zip(rows, base, strict=True)]
    assert score(method, rows, base) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]
    taken = choose(method, rows, base)  # type: ignore[arg-type]
    assert expected[taken.winner] == pytest.approx(max(expected), abs=1e-9)
    weights = [math.exp(value - max(expected)) for value in expected]
    assert taken.probabilities == pytest.approx([w / sum(weights) for w in weights], abs=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(SIMPLE), st.randoms(use_true_random=False))
def test_a_baseline_is_taken_off(rows: list[list[float]], method: str, rng: random.Random) -> None:
    base = [[rng.uniform(-20, 0) for _ in row] for row in rows]
    method_alone = "token_length_normalized" if method.startswith("un") else method
    expected = [
        brute_score(method_alone, row, []) - brute_score(method_alone, other, [])
        for row, other in zip(rows, base, strict=True)
    ]
    found = choose(method, rows, base, baseline=base)  # type: ignore[arg-type]
    assert found.probabilities == pytest.approx(softmax(expected), abs=1e-9)
    again = score(method, rows, None, base)  # type: ignore[arg-type]
    assert again == pytest.approx(expected, abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ROWS)
def test_greedy_compares_token_by_token(rows: list[list[float]]) -> None:
    taken = choose("greedy_token_selection", rows)
    assert taken.winner == brute_greedy(rows)
    assert sum(taken.probabilities) == pytest.approx(1.0)
    cold = choose("greedy_token_selection", rows, temperature=1e-9, seed=1)
    padded = max(map(len, rows))
    assert brute_greedy([rows[cold.winner], rows[taken.winner]]) == 0 or padded > 1


@pytest.mark.parametrize("method", METHODS)
def test_first_of_equal_choices_wins(method: str) -> None:
    rows = [[-2.0, -1.0], [-1.0, -0.5], [-1.0, -0.5]]
    base = [[-3.0, -3.0]] * 3
    assert choose(method, rows, base).winner == 1  # type: ignore[arg-type]


def test_greedy_walk_is_the_product_of_its_steps() -> None:
    rows = [[-0.5, -0.7], [-0.5, -1.7], [-0.9, -0.1]]
    first = softmax([-0.5, -0.9])
    second = softmax([-0.7, -1.7])
    taken = choose("greedy_token_selection", rows)
    assert taken.winner == 0
    assert taken.probabilities == pytest.approx(
        [first[0] * second[0], first[0] * second[1], first[1]]
    )


@pytest.mark.parametrize("method", METHODS)
def test_draws_follow_the_tempered_distribution_and_the_seed(method: str) -> None:
    rows = [[-1.0, -0.4], [-0.6, -1.2, -0.3], [-2.0]]
    base = [[-1.5, -2.0], [-1.0, -1.0, -1.0], [-2.5]]
    temperature = 0.7
    seen = Counter(
        choose(method, rows, base, temperature, seed).winner  # type: ignore[arg-type]
        for seed in range(4000)
    )
    if method == "greedy_token_selection":
        padded = [[-1.0, -0.4, -0.7], [-0.6, -1.2, -0.3], [-2.0, -2.0, -2.0]]
        expected = softmax([row[0] / temperature for row in padded])
    else:
        scores = [brute_score(method, row, other) for row, other in zip(rows, base, strict=True)]
        expected = softmax([value / temperature for value in scores])
    for index, probability in enumerate(expected):
        assert seen[index] / 4000 == pytest.approx(probability, abs=0.03)
    again = {choose(method, rows, base, temperature, 7).winner for _ in range(5)}  # type: ignore[arg-type]
    assert len(again) == 1


def test_impossible_choices_do_not_break_the_sums() -> None:
    rows = [[-math.inf], [-math.inf]]
    for method in METHODS:
        taken = choose(method, rows, rows, temperature=0.5, seed=1)  # type: ignore[arg-type]
        assert taken.probabilities == [0.5, 0.5]
    assert choose("total", [[-math.inf], [-1.0]]).winner == 1


# ---- the select node


@pytest.mark.parametrize("method", METHODS)
def test_select_node_equals_the_method_on_the_engines_numbers(method: str) -> None:
    port, executor = rig()
    program = Program(executor)
    choices = ("yes", "certainly not", "maybe")
    select = Select(lane=0, node=1, name="x", choices=choices, method=method)  # type: ignore[arg-type]
    program.send(text(0, "Is it? "), select, gen(2, "y"), ReadLane(0, 3), Close())
    port.run()
    scored = [request for request in port.requests if isinstance(request, ScoreRequest)]
    prompt = port.tokenizer._plain("Is it? ")
    ids = [port.tokenizer._plain(choice) for choice in choices]
    assert scored[0].prompt_ids == prompt and scored[0].choices == ids
    unconditional = method == "unconditional_likelihood_normalized"
    assert [request.prompt_ids for request in scored[1:]] == ([[2]] if unconditional else [])
    rows = [default_scorer(prompt, item) for item in ids]
    base = [default_scorer([2], item) for item in ids]
    expected = choose(method, rows, base)  # type: ignore[arg-type]
    value = program.all(ValueReady)[0]
    assert value.texts == (choices[expected.winner],)
    assert [choice.probability for choice in value.choices] == expected.probabilities
    assert [choice.logprob for choice in value.choices] == pytest.approx([sum(r) for r in rows])
    assert [list(choice.token_logprobs) for choice in value.choices] == rows
    assert value.meta.forwards == len(scored)
    assert list(program.lane(0).token_ids[: len(prompt) + len(ids[expected.winner])]) == (
        prompt + ids[expected.winner]
    )


def test_drawn_seed_is_reported_and_gives_the_same_choice() -> None:
    port, executor = rig()
    choices = ("a", "b", "c", "d")
    program = Program(executor)
    select = Select(lane=0, node=1, name="x", choices=choices, temperature=1.0)
    program.send(text(0, "q"), select, Close())
    port.run()
    value = program.all(ValueReady)[0]
    assert value.meta.seed is not None
    again = Program(executor, "again")
    select = Select(
        lane=0, node=1, name="x", choices=choices, temperature=1.0, seed=value.meta.seed
    )
    again.send(text(0, "q"), select, Close())
    port.run()
    assert again.values() == program.values()


@pytest.mark.parametrize(("choices", "named"), [((), "no choices"), (("a", ""), "choice 1")])
def test_empty_choices_are_named(choices: tuple[str, ...], named: str) -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Select(lane=0, node=1, name="x", choices=choices), Close())
    port.run()
    assert program.failures() == {1: InvalidRequest.__name__}
    (failed,) = [e for e in program.events if type(e).__name__ == "NodeFailed"]
    assert named in failed.error["message"] and failed.error["variable"] == "x"  # type: ignore[union-attr]
    assert program.closed and port.requests == []


def test_second_scoring_that_is_refused_takes_the_first_back() -> None:
    port = ScriptedPort()
    port, executor = rig(port)
    submit = port.submit

    def refuse(request: object, on_output: object) -> None:
        if isinstance(request, ScoreRequest) and request.id.endswith("unconditional"):
            raise InvalidRequest("not this one")
        submit(request, on_output)  # type: ignore[arg-type]

    port.submit = refuse  # type: ignore[method-assign,assignment]
    program = Program(executor)
    method = "unconditional_likelihood_normalized"
    program.send(text(0, "q"), Select(lane=0, node=1, name="x", choices=("a",), method=method))  # type: ignore[arg-type]
    program.send(Close())
    port.pump()
    assert port.running["p/0/1"].aborted
    port.run()
    assert program.failures() == {1: "InvalidRequest"} and program.closed
