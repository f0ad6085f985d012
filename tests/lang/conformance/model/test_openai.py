"""The same programs through the OpenAI API of a server with the same model: the same texts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import branchline as bl
from tests.lang.conformance.model.test_programs import settled
from tests.support.http_server import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


@pytest.fixture(scope="module")
def openai(server: RunningServer) -> Iterator[bl.OpenAI]:
    made = bl.OpenAI("smollm2-135m", server.url + "/v1")
    yield made
    made.close()


@dataclass
class Place:
    name: str
    age: int


@bl.function(**GREEDY)
def chat(s: bl.State, question: str) -> str:
    s += bl.system("Be brief.") + bl.user(question)
    s += bl.assistant(bl.gen("answer"))
    s += bl.user("And another?") + bl.assistant("It is" + bl.gen("other", stop="\n"))
    return s["answer"]


@bl.function(**GREEDY)
def text(s: bl.State) -> Any:
    s += "The capital of France is" + bl.gen("a")
    with s.fork(2) as branches:
        branches[0] += " It is known for" + bl.gen("b")
        branches[1] += " Its people like" + bl.gen("b")
    return s["a"], s["b"]


@bl.function(temperature=0.0, max_tokens=40)
def typed(s: bl.State, wanted: Any) -> Any:
    s += bl.user('Answer like {"name": "Oslo", "age": 900}.') + bl.assistant(bl.gen("v", wanted))
    return s["v"]


def test_chat_and_text_are_those_of_the_engine(openai: bl.OpenAI, engine: bl.Engine) -> None:
    here, there = (chat.run("Name a fruit.", backend=b) for b in (engine, openai))
    assert (there["answer"], there["other"]) == (here["answer"], here["other"])
    assert there.meta("answer").prompt_tokens == here.meta("answer").prompt_tokens
    assert there.messages() == here.messages()
    assert text.run(backend=openai).result == text.run(backend=engine).result


def test_batches_streams_and_event_loops(openai: bl.OpenAI, engine: bl.Engine) -> None:
    items = [{"question": f"What is {n} and {n}?"} for n in range(6)]
    expected = [state.result for state in chat.run_batch(items, backend=engine)]
    assert [state.result for state in chat.run_batch(items, backend=openai)] == expected
    events = list(chat.stream(**items[0], backend=openai))
    pieces = [e.text for e in events if isinstance(e, bl.TextDelta) and e.name == "answer"]
    assert len(pieces) > 1 and "".join(pieces) == expected[0]
    state = asyncio.run(chat.arun(**items[1], backend=openai))
    assert state.result == expected[1]
    assert settled(engine)


def test_select_is_exact(openai: bl.OpenAI, engine: bl.Engine) -> None:
    choices = [" Paris", " a city in the north", " Rome"]

    @bl.function
    def program(s: bl.State) -> Any:
        s += "The capital of France is" + bl.select("city", choices)
        return s["city"]

    here, there = (program.run(backend=b) for b in (engine, openai))
    assert there.result == here.result
    for ours, theirs in zip(here.meta("city").choices, there.meta("city").choices, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-3)
        assert math.isclose(theirs.probability, ours.probability, abs_tol=1e-3)


@pytest.mark.parametrize("wanted", [int, Literal["red", "blue"], Place], ids=str)
def test_typed_values(openai: bl.OpenAI, wanted: Any) -> None:
    state = typed.run(wanted=wanted, backend=openai)
    assert bl.match(wanted, state.meta("v").text).status == "full"


def test_seeds_logprobs_and_n(openai: bl.OpenAI, engine: bl.Engine) -> None:
    @bl.function(max_tokens=8)
    def program(s: bl.State) -> Any:
        s += "My favourite animal is" + bl.gen("x", seed=1, logprobs=2)
        s += " and" + bl.gen("three", n=3, seed=2)
        return s["x"], s["three"]

    here, there = (program.run(backend=b) for b in (engine, openai))
    assert there["x"] == here["x"] and len(there["three"]) == 3
    ours, theirs = here.meta("x").logprobs, there.meta("x").logprobs
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3) and other.token_id == -1


def test_errors_of_the_server_are_the_variables(openai: bl.OpenAI) -> None:
    with pytest.raises(bl.InvalidRequest) as caught:
        chat.run("word " * 20_000, backend=openai)
    assert (caught.value.program, caught.value.variable) == ("chat", "answer")
    with pytest.raises(bl.UnsupportedFeature):
        text.run(backend=openai).tokens()
