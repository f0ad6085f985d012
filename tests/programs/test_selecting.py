"""Select over constraints: each is written out greedily, then all texts are scored alike."""

from __future__ import annotations

import math

import pytest

from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import BranchlineError, ConstraintError, UnsupportedConstraint
from branchline.runtime.programs.protocol import Cancel, Close, ReadLane, Select, ValueReady
from branchline.runtime.programs.select import choose
from tests.programs.helpers import Program, rig, text
from tests.support.scripted_port import ScriptedPort, default_scorer

DIGITS = Constraint(kind="regex", text="[0-9]+")
WORD = Constraint(kind="regex", text="[a-z]+")
CHOICES = ("a number", "none at all", "a word")


def select(**more: object) -> Select:
    fields = {"choices": CHOICES, "constraints": (DIGITS, None, WORD), **more}
    return Select(lane=0, node=1, name="x", **fields)  # type: ignore[arg-type]


def reply(request: GenerateRequest) -> str:
    return "4217" if request.sampling.constraint == DIGITS else "many"


@pytest.mark.parametrize("sync", [True, False])
def test_what_is_written_is_scored_as_any_text(sync: bool) -> None:
    port, executor = rig(ScriptedPort(reply, sync=sync))
    program = Program(executor)
    program.send(text(0, "How many? "), select(), ReadLane(0, 2), Close())
    port.run()
    prompt = port.tokenizer._plain("How many? ")
    written = [r for r in port.requests if isinstance(r, GenerateRequest)]
    assert [r.sampling.constraint for r in written] == [DIGITS, WORD]
    assert all(r.sampling.greedy and r.prompt_ids == prompt for r in written)
    texts = ["4217", "none at all", "many"]
    ids = [port.tokenizer._plain(item) for item in texts]
    (scored,) = [r for r in port.requests if isinstance(r, ScoreRequest)]
    assert (scored.prompt_ids, scored.choices) == (prompt, ids)
    rows = [default_scorer(prompt, item) for item in ids]
    expected = choose("token_length_normalized", rows)
    (value,) = program.all(ValueReady)
    assert value.taken == expected.winner and value.texts == (texts[expected.winner],)
    assert [choice.text for choice in value.choices] == texts
    assert [choice.probability for choice in value.choices] == expected.probabilities
    assert program.lane(0).text == "How many? " + texts[expected.winner]
    assert list(program.lane(0).token_ids) == prompt + ids[expected.winner]


def test_a_choice_that_was_cut_cannot_be_taken() -> None:
    port = ScriptedPort(reply)
    _, executor = rig(port)
    program = Program(executor)
    program.send(text(0, "q"), select(constraints=(DIGITS, None, None)), Close())
    port.pump()
    (request_id,) = port.running
    port.finish(request_id, reason="length")
    port.run()
    (value,) = program.all(ValueReady)
    assert value.taken in (1, 2)
    cut = value.choices[0]
    assert (cut.logprob, cut.probability, cut.token_logprobs) == (-math.inf, 0.0, ())
    assert sum(choice.probability for choice in value.choices) == pytest.approx(1.0)


def test_all_choices_cut_is_a_truncated_error() -> None:
    port = ScriptedPort(reply)
    _, executor = rig(port)
    program = Program(executor)
    program.send(text(0, "q"), select(choices=("n",), constraints=(DIGITS,)), Close())
    port.pump()
    (request_id,) = port.running
    port.finish(request_id, reason="length")
    port.run()
    assert program.failures() == {1: "TruncatedError"} and program.closed


@pytest.mark.parametrize(
    ("error", "ends"),
    [(ConstraintError("no"), False), (UnsupportedConstraint("no", hint="h"), True)],
)
def test_errors_of_a_choice(error: BranchlineError, ends: bool) -> None:
    """A scripted reply that another choice is meant for leaves the rest; a refusal does not."""
    port = ScriptedPort(lambda r: error if r.sampling.constraint == DIGITS else "many", sync=True)
    _, executor = rig(port)
    program = Program(executor)
    program.send(text(0, "q"), select(), Close())
    port.run()
    assert program.closed
    assert program.failures() == ({1: "UnsupportedConstraint"} if ends else {})
    if not ends:
        assert program.all(ValueReady)[0].choices[0].probability == 0.0


def test_cancelling_ends_what_is_being_written() -> None:
    port = ScriptedPort(reply)
    _, executor = rig(port)
    program = Program(executor)
    program.send(text(0, "q"), select(), Cancel((0,)), Close())
    port.pump()
    assert all(one.aborted for one in port.running.values()) and len(port.running) == 2
    port.run()
    assert program.closed and program.failures() == {1: "Cancelled"}
    assert not any(isinstance(r, ScoreRequest) for r in port.requests)


@pytest.mark.parametrize("method", ["total", "unconditional_likelihood_normalized"])
def test_a_baseline_is_scored_beside_the_prompt(method: str) -> None:
    port, executor = rig()
    program = Program(executor)
    choices = ("yes", "certainly not")
    node = select(choices=choices, constraints=(), method=method, baseline="N/A: ")
    program.send(text(0, "Is it? "), node, Close())
    port.run()
    prompts = [r.prompt_ids for r in port.requests]
    prompt, base = port.tokenizer._plain("Is it? "), port.tokenizer._plain("N/A: ")
    assert prompts == [prompt, base]
    ids = [port.tokenizer._plain(choice) for choice in choices]
    rows = [default_scorer(prompt, item) for item in ids]
    off = [default_scorer(base, item) for item in ids]
    expected = choose(method, rows, baseline=off)  # type: ignore[arg-type]
    (value,) = program.all(ValueReady)
    assert [choice.probability for choice in value.choices] == expected.probabilities
    assert [list(choice.token_logprobs) for choice in value.choices] == rows


def test_a_baseline_needs_a_method_with_a_number() -> None:
    port, executor = rig()
    program = Program(executor)
    node = select(constraints=(), method="greedy_token_selection", baseline="N/A")
    program.send(text(0, "q"), node, Close())
    port.run()
    assert program.failures() == {1: "InvalidRequest"} and port.requests == []
