"""Guessing ahead, set by an operator, turned off by a call: the same outputs in fewer steps."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import branchline as bl
from branchline.lang.view.terminal import nodes_table
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest
from tests.support.tiny_engine import tiny_engine, write_tiny_model

OPTIONS = {"temperature": 0.0, "max_tokens": 60, "ignore_eos": True}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with tiny_engine(tmp_path_factory.mktemp("plain")) as engine:
        yield engine


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with tiny_engine(
        tmp_path_factory.mktemp("guessing"), speculative="ngram", speculative_tokens=12
    ) as engine:
        yield engine


def test_outputs_are_the_same_and_the_ends_tell_of_guesses(plain: Engine, guessing: Engine) -> None:
    prompts = ["one two one two one", "abc" * 9, "to be or not to be"]
    for seed in (None, 5):
        options = OPTIONS if seed is None else OPTIONS | {"temperature": 0.3, "seed": seed}
        wanted, found = plain.generate(prompts, **options), guessing.generate(prompts, **options)
        for one, other in zip(wanted, found, strict=True):
            assert one.token_ids == other.token_ids and one.text == other.text
            assert one.meta.drafted_tokens == one.meta.accepted_tokens == 0
        if seed is None:  # a random model goes round in circles
            assert sum(one.meta.accepted_tokens for one in found) > 20
            assert all(one.meta.forwards < 60 for one in found)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kinds": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 6},
        "count": {"type": "integer"},
    },
    "required": ["name", "kinds", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_constrained_outputs_are_the_same(
    plain: Engine, guessing: Engine, temperature: float, logprobs: int | None
) -> None:
    constraint = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
    other = Constraint(kind="regex", text="(one|two|three)( (one|two|three)){3,20}")
    shown = '{"name": "ab", "kinds": ["red", "red", "green", "red"], "count": 1}'
    work = [(shown * 2, constraint), (shown, constraint), ("one two one two one two ", other)]
    accepted = 0
    for seed in range(4):
        for prompt, one in work:
            params = SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=120,
                constraint=one,
                logprobs=logprobs,
            )
            wanted, found = plain.generate(prompt, params), guessing.generate(prompt, params)
            assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)
            assert (found.forced, found.logprobs) == (wanted.forced, wanted.logprobs)
            assert found.meta.finish_reason == wanted.meta.finish_reason
            assert found.meta.forced_tokens == wanted.meta.forced_tokens
            accepted += found.meta.accepted_tokens
    assert accepted > 10


def test_a_call_turns_it_off(plain: Engine, guessing: Engine) -> None:
    result = guessing.generate("one two one two one", **OPTIONS, speculative=False)
    assert result.meta.drafted_tokens == 0
    assert result.text == plain.generate("one two one two one", **OPTIONS).text


def test_programs_say_what_was_accepted(tmp_path: Path) -> None:
    @bl.function(temperature=0.0, ignore_eos=True)
    def twice(s: Any) -> None:
        s += "one two one two one"
        with s.fork(2) as lanes:
            lanes[0] += bl.gen("x", max_tokens=50)
            lanes[1] += bl.gen("x", max_tokens=50, speculative=False)

    folder = str(write_tiny_model(tmp_path))
    backend = bl.Engine(
        folder,
        load_format="dummy",
        kv_tokens=4096,
        threads=1,
        speculative="ngram",
        speculative_tokens=12,
    )
    with contextlib.closing(backend):
        state = twice.run(backend=backend)
        one, other = state["x"]
        assert one == other
        stats = [node.stats for node in state.graph.nodes if node.kind == "generate"]
        accepted = [one.accepted_tokens for one in stats if one is not None]
        assert min(accepted) == 0 and max(accepted) > 10
        assert state.usage.accepted_tokens == max(accepted)
        shown = io.StringIO()
        Console(file=shown, width=200).print(nodes_table(state.graph))
        assert "accepted" in shown.getvalue() and str(max(accepted)) in shown.getvalue()


def test_a_reader_of_the_settings_finds_them(guessing: Engine, tmp_path: Path) -> None:
    info = guessing.info()
    assert info["settings"]["speculative"] == "ngram"
    assert any(d["setting"] == "speculative" and d["value"] == "ngram" for d in info["decisions"])
    assert info["scheduler"]["drafted_tokens"] >= info["scheduler"]["accepted_tokens"]
    for wrong in ({"speculative": "n-gram"}, {"speculative_tokens": 0}, {"speculative_steps": -1}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            tiny_engine(tmp_path, **wrong)
