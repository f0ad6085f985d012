"""Tools on the default model: it is small, so structure and control flow are what counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

import branchline as bl

Word = Annotated[str, bl.regex("[a-z]{1,8}")]


@bl.tool
def look_up(word: Word, exact: bool = True) -> str:
    """Looks a word up."""
    return f"{word} is a word"


@bl.tool
def count(word: Word) -> int:
    """Letters of a word."""
    raise RuntimeError("out of order")


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    engine = bl.Engine(model=str(default_model))
    yield engine
    engine.close()


@bl.function(temperature=0.0)
def talk(s: Any, choice: Any, parallel: bool = False, **options: Any) -> None:
    s += bl.system("Be brief.") + bl.user("What does 'lake' mean?")
    tools = [look_up, count]
    s += bl.assistant(bl.call("first", tools, choice=choice, parallel=parallel, **options))
    for call in s["first"].calls:
        s += bl.tool_result(call)
    s += bl.assistant(bl.gen("answer", max_tokens=12))


@pytest.mark.parametrize("choice", ["required", "look_up", count])
def test_calls_that_must_come_come_with_typed_arguments(engine: bl.Engine, choice: Any) -> None:
    state = talk.run(choice, backend=engine)
    (call,) = state["first"].calls
    if choice != "required":
        assert call.name == (choice if isinstance(choice, str) else choice.name)
    assert isinstance(call.arguments["word"], str) and len(call.arguments["word"]) <= 8
    assert state["first"].text == ""
    messages = state.messages()
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    expected = f"{call.arguments['word']} is a word"
    assert messages[3]["content"] == (
        expected if call.name == "look_up" else "Error: RuntimeError: out of order"
    )
    meta = state.meta("first")
    assert meta.finish_reason in ("stop", "constraint")
    assert meta.forced_tokens > 8
    assert meta.forwards < meta.output_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_text_and_calls_are_told_apart_whatever_comes(
    engine: bl.Engine, choice: str, temperature: float
) -> None:
    for seed in range(3):
        options = {"temperature": temperature, "seed": seed, "max_tokens": 40}
        try:
            reply = talk.run(choice, **options, backend=engine)["first"]
        except bl.TruncatedError:
            assert choice == "auto"
            continue
        assert "<tool_call>" not in reply.text
        assert not (choice == "none" and reply.calls)


def test_a_stream_has_the_calls_that_the_value_has(engine: bl.Engine) -> None:
    events = list(talk.stream("required", backend=engine))
    streamed = [event.call for event in events if isinstance(event, bl.ToolCall)]
    done = events[-1]
    assert isinstance(done, bl.Done)
    assert [repr(call) for call in streamed] == [repr(c) for c in done.state["first"].calls]
    assert repr(talk.run("required", backend=engine)["first"]) == repr(done.state["first"])


def test_the_second_turn_finds_the_first_in_the_cache(engine: bl.Engine) -> None:
    state = talk.run("required", backend=engine)
    first, answer = state.meta("first"), state.meta("answer")
    assert answer.cached_tokens >= first.prompt_tokens
