"""Constraints with everything else at once, on a tiny model and the real scheduler.

The oracle of each request is the same request alone, on an engine without a prefix cache, chunks,
overlap or memory pressure, and with forced tokens turned off where that can be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from branchline.lang.matching import engine_match
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.section import Section
from branchline.runtime.engine import Engine
from branchline.runtime.errors import UnsupportedConstraint
from tests.grammar.json_schema.harness import valid
from tests.grammar.json_schema.test_random_schemas import schemas
from tests.support.tiny_engine import tiny_engine

LAW = settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
OBJECT = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    Constraint(kind="regex", text="[a-c]{2,12}"),
    Constraint(kind="regex", text="once upon a (time|tide) [0-9]{1,4}"),
    Constraint(kind="choices", text='["red", "red wine", "blue", "black tea"]'),
    Constraint(kind="json_schema", text=json.dumps(OBJECT)),
    Constraint(kind="json_schema", text='{"enum": ["a long forced text", [1, 2, 3]]}'),
    Constraint(kind="lark", text='start: "(" start ")" | /[xy]{1,3}/'),
    Constraint(kind="regex", text="[0-9]{1,5}", prefix=" "),
    Constraint(kind="text", text="", prefix="q"),
]
CLOSING = {ord(char): 2.5 for char in '"}])'}
SECTIONS = [None, None, None, Section(end="z", gap="\n", gap_ids=(10,))]
ENDINGS = ("stop", "constraint")


class Engines(NamedTuple):
    """The same weights under different circumstances."""

    alone: Engine
    stressed: tuple[Engine, ...]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("tiny")

    def make(**settings: Any) -> Engine:
        # float32: outputs do not depend on what else is in the batch or in the cache
        wide = {"dtype": "float32", "quantization": "none", "kv_dtype": "float32"}
        return tiny_engine(folder, context_length=200, **wide, **settings)

    alone = make(prefix_cache=False, overlap=False)
    stressed = (
        make(max_step_tokens=16, max_running_requests=4),
        make(kv_tokens=220, max_step_tokens=24),
        make(kv_tokens=320, page_size=4, overlap=False),
    )
    yield Engines(alone, stressed)
    for engine in (alone, *stressed):
        engine._finalizer()


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, SamplingParams]:
    prompt = draw(st.sampled_from(["", "a shared beginning ", "a shared beginning of a text "]))
    constraint = draw(st.sampled_from([None, *CONSTRAINTS]))
    greedy = draw(st.booleans())
    sampling = SamplingParams(
        temperature=0.0 if greedy else draw(st.sampled_from([0.7, 1.3])),
        top_k=draw(st.sampled_from([-1, 20])),
        max_tokens=draw(st.integers(1, 40)),
        min_tokens=draw(st.sampled_from([0, 0, 1])),
        n=draw(st.sampled_from([1, 1, 2])),
        seed=draw(st.integers(0, 5)),
        stop=draw(st.sampled_from([(), (), ("aa", "}"), (" t",)])),
        stop_regex=draw(st.sampled_from([None, None, "[0-9]{3}"])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5])),
        logprobs=draw(st.sampled_from([None, None, 0, 2])),
        logit_bias=draw(st.sampled_from([None, CLOSING])),
        constraint=constraint,
        section=None if constraint is None else draw(st.sampled_from(SECTIONS)),
    )
    return prompt + draw(st.sampled_from("xyz")), sampling


class Outcome(NamedTuple):
    """What must not depend on circumstances."""

    text: str
    ids: list[int]
    reason: str
    count: int
    scored: list[int]


def outcomes(found: list[GenerateResult]) -> list[Outcome]:
    return [
        Outcome(
            one.text,
            one.token_ids,
            one.meta.finish_reason,
            one.meta.output_tokens,
            [entry.token_id for entry in one.logprobs],
        )
        for one in found
    ]


def logprobs(found: list[GenerateResult]) -> list[float]:
    return [entry.logprob for one in found for entry in one.logprobs]


def generate(engine: Engine, prompt: str, sampling: SamplingParams) -> list[GenerateResult]:
    found = engine.generate(prompt, sampling)
    return found if isinstance(found, list) else [found]


def run(engine: Engine, work: list[tuple[str, SamplingParams]]) -> list[list[GenerateResult]]:
    with ThreadPoolExecutor(len(work)) as pool:
        found = [pool.submit(generate, engine, prompt, sampling) for prompt, sampling in work]
        return [future.result() for future in found]


@LAW
@given(work=st.lists(requests(), min_size=1, max_size=6), which=st.integers(0, 2))
def test_a_request_among_others_is_the_request_alone(
    engines: Engines, work: list[tuple[str, SamplingParams]], which: int
) -> None:
    together = run(engines.stressed[which], work)
    for (prompt, sampling), found in zip(work, together, strict=True):
        alone = generate(engines.alone, prompt, sampling)
        assert outcomes(found) == outcomes(alone)
        assert logprobs(found) == pytest.approx(logprobs(alone), abs=1e-3)
        for one in found:
            assert_honest(sampling, one.text, one.meta.finish_reason)


def assert_honest(sampling: SamplingParams, text: str, reason: str) -> None:
    """An output that the constraint ended matches it; any other is the beginning of a match."""
    constraint, section = sampling.constraint, sampling.section
    if constraint is None or constraint.kind == "text":
        return
    if section is not None:
        _, found, text = text.partition(section.end)
        if not found:
            assert reason == "length", "a section does not end the output"
            return
        assert text.startswith(section.gap[: len(text)])
        text = text[len(section.gap) :]
    if constraint.prefix:
        assert text.startswith(constraint.prefix) or reason != "constraint"
        text = text[len(constraint.prefix) :]
    status = engine_match(msgspec.structs.replace(constraint, prefix=""), text).status
    assert status == "full" if reason == "constraint" else status != "none"


def test_memory_pressure_really_retracts(engines: Engines) -> None:
    words = Constraint(kind="regex", text="[a-z ]{50}")
    sampling = SamplingParams(temperature=1.0, seed=3, max_tokens=60, n=6, constraint=words)
    prompt = "a rather long beginning of a text"
    found = generate(engines.stressed[1], prompt, sampling)
    assert sum(one.meta.retractions for one in found) > 0
    assert outcomes(found) == outcomes(generate(engines.alone, prompt, sampling))


@LAW
@given(
    constraint=st.sampled_from(CONSTRAINTS[:7]),
    section=st.sampled_from(SECTIONS[2:]),
    seed=st.integers(0, 30),
    temperature=st.sampled_from([0.0, 1.0]),
    penalty=st.sampled_from([0.0, 2.0]),
)
def test_forced_tokens_give_the_output_of_decoding_without_them(
    engines: Engines,
    constraint: Constraint,
    section: Section | None,
    seed: int,
    temperature: float,
    penalty: float,
) -> None:
    """A request that wants log-probabilities takes every id the slow way."""
    fast = SamplingParams(
        temperature=temperature,
        seed=seed,
        max_tokens=48,
        frequency_penalty=penalty,
        constraint=constraint,
        section=section,
    )
    slow = msgspec.structs.replace(fast, logprobs=0)
    quick, every = (engines.alone.generate("say ", each) for each in (fast, slow))
    assert (quick.text, quick.token_ids) == (every.text, every.token_ids)
    assert quick.meta.finish_reason == every.meta.finish_reason
    assert every.meta.forced_tokens == 0
    assert len(quick.forced) == quick.meta.forced_tokens and quick.forced == every.forced
    assert quick.meta.forwards <= every.meta.forwards
    forced = quick.meta.forced_tokens
    assert quick.meta.forwards <= quick.meta.output_tokens - forced + 2


@LAW
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_what_any_schema_ends_by_itself_is_valid(engines: Engines, schema: Any, seed: int) -> None:
    constraint = Constraint(kind="json_schema", text=json.dumps(schema))
    sampling = SamplingParams(
        temperature=1.5, seed=seed, n=3, max_tokens=120, constraint=constraint, logit_bias=CLOSING
    )
    try:
        results = engines.stressed[0].generate("x", sampling)
    except UnsupportedConstraint:
        assume(False)
    ended = [one for one in results if one.meta.finish_reason in ENDINGS]
    for one in ended:
        assert valid(schema, json.loads(one.text)), one.text
    assume(ended)


def test_a_marker_that_is_a_special_token_ends_the_section(engines: Engines) -> None:
    """Its text is shown where that is asked for, and the gap's ids may be special, too."""
    turn = engines.alone.tokenizer.encode("<|turn|>", special=True)
    bos = engines.alone.tokenizer.encode("<|bos|>", special=True)
    section = Section(end="<|turn|>", gap="<|bos|>", gap_ids=tuple(bos))
    sampling = SamplingParams(
        temperature=1.0,
        seed=1,
        max_tokens=80,
        logit_bias={turn[0]: 3.0},
        constraint=CONSTRAINTS[2],
        section=section,
        skip_special_tokens=False,
    )
    for seed in range(4):
        found = engines.alone.generate("x", msgspec.structs.replace(sampling, seed=seed))
        assert found.meta.finish_reason == "constraint"
        thought, marker, answer = found.text.partition("<|turn|><|bos|>")
        assert marker and "<|turn|>" not in thought
        assert answer in json.loads(CONSTRAINTS[2].text)
        assert found.meta.forced_tokens >= 1
        hidden = msgspec.structs.replace(sampling, seed=seed, skip_special_tokens=True)
        assert engines.alone.generate("x", hidden).text == thought + answer
