"""Healing on the default model, against an oracle: the model's own scores of every first token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchline as bl
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine

PROMPT = "The capital of France is the city of"
TAKEN = " "


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[Engine]:
    # float32: scores do not depend on what else is in the batch
    wide = {"dtype": "float32", "quantization": "none", "kv_dtype": "float32"}
    with Engine(str(default_model), kv_tokens=9000, **wide) as made:
        yield made


def covering(engine: Engine, text: str) -> list[int]:
    """Ids of all tokens that begin with `text`."""
    special = engine.tokenizer.special_ids
    table = enumerate(engine.tokenizer.all_token_bytes())
    return [i for i, raw in table if raw.startswith(text.encode()) and i not in special]


def likeliest(engine: Engine, ids: list[int]) -> int:
    """The best of some ids, by the scores of each."""
    found: list[tuple[float, int]] = []
    for start in range(0, len(ids), 8000):
        some = ids[start : start + 8000]
        rows = engine.score(PROMPT, [[i] for i in some]).token_logprobs
        found += [(row[0], i) for row, i in zip(rows, some, strict=True)]
    return max(found)[1]


def first_token(engine: Engine, constraint: Constraint) -> int:
    sampling = SamplingParams(temperature=0.0, max_tokens=2, constraint=constraint, logprobs=0)
    return int(engine.generate(PROMPT, sampling).token_ids[0])


def test_free_text_begins_with_the_best_token_that_extends_the_text_taken_back(
    engine: Engine,
) -> None:
    ids = covering(engine, TAKEN)
    assert len(ids) > 10_000
    best = likeliest(engine, ids)
    assert first_token(engine, Constraint(kind="text", text="", prefix=TAKEN)) == best


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(kind="regex", text="[A-Z][a-z]+"),
        Constraint(kind="lark", text="start: /[a-z]+/ | NUMBER\nNUMBER: /[0-9]{1,4}/"),
        Constraint(kind="json_schema", text='{"type": ["integer", "array"]}'),
        Constraint(kind="ebnf", text='root ::= "Paris" | "Lyon" | [0-9] root | "The"'),
    ],
    ids=lambda constraint: constraint.kind,
)
def test_constrained_text_begins_with_the_best_such_token_that_the_constraint_allows(
    engine: Engine, constraint: Constraint
) -> None:
    from branchline.lang.matching import engine_match

    ids = []
    for i in covering(engine, TAKEN):
        try:
            rest = engine.tokenizer.token_bytes(i)[len(TAKEN) :].decode()
        except UnicodeDecodeError:
            continue
        if engine_match(constraint, rest).status != "none":
            ids.append(i)
    assert 1 < len(ids) < 40_000
    best = likeliest(engine, ids)
    healed = Constraint(kind=constraint.kind, text=constraint.text, prefix=TAKEN)
    assert first_token(engine, healed) == best


def test_a_program_heals_free_text_where_it_is_asked_to(default_model: Path) -> None:
    @bl.function(temperature=0.0, max_tokens=3)
    def program(s: bl.State, heal: bool) -> str:
        s += PROMPT + TAKEN + bl.gen("city", heal=heal)
        return str(s["city"])

    with bl.Engine(model=str(default_model)) as engine:
        healed = program.run(backend=engine, heal=True)
        assert healed.result.startswith("Paris")
        assert healed.text() == PROMPT + TAKEN + healed.result
        assert not program.run(backend=engine, heal=False).result.startswith("Paris")
        engine.close()
