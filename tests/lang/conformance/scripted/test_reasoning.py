"""Thinking models in programs: values without the reasoning, typed values behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchline as bl


def ask(**options: object) -> bl.Program:
    @bl.function
    def program(s: bl.State) -> object:
        s += bl.user("2 + 2?")
        s += bl.assistant(bl.gen("n", int, **options))  # type: ignore[arg-type]
        return s["n"]

    return program


def test_a_typed_value_behind_a_section() -> None:
    mock = bl.Mock("Two and two.\n</think>\n\n4", reasoning="think")
    state = ask().run(backend=mock)
    assert state.result == 4
    meta = state.meta("n")
    assert (meta.text, meta.reasoning) == ("4", "Two and two.")
    assert "<think>Two and two.\n</think>\n\n4" in state.text()
    assert state.messages()[-1] == {"role": "assistant", "content": "4"}


def test_reasoning_that_was_cut_is_a_truncated_value() -> None:
    mock = bl.Mock("Let me see, two and two is", reasoning="think")
    with pytest.raises(bl.TruncatedError, match="max_tokens"):
        ask(max_tokens=12).run(backend=mock)


def test_stops_hold_for_the_answer_alone() -> None:
    @bl.function
    def program(s: bl.State) -> str:
        s += bl.user("Hi") + bl.assistant(bl.gen("a", stop="\n"))
        return str(s["a"])

    mock = bl.Mock("one\ntwo</think>\n\nHello\nYou", reasoning="qwen3")
    state = program.run(backend=mock)
    assert state.result == "Hello"
    assert state.meta("a").reasoning == "one\ntwo"


@pytest.mark.parametrize("where", ["call", "function", "run", "backend"])
def test_reasoning_can_be_turned_off_at_every_layer(where: str) -> None:
    off = {"reasoning": False}
    program = ask(**(off if where == "call" else {}))
    if where == "function":
        program = bl.function(reasoning=False)(program.func)
    mock = bl.Mock("4", reasoning="think", sampling_defaults=off if where == "backend" else {})
    state = program.run(backend=mock, **(off if where == "run" else {}))
    assert state.result == 4 and state.meta("n").reasoning == ""


def test_a_reply_without_an_end_of_its_reasoning_is_not_what_a_model_could_write() -> None:
    with pytest.raises(bl.ConstraintError):
        ask().run(backend=bl.Mock("4", reasoning="think"))


def test_options_of_the_wrong_type() -> None:
    with pytest.raises(bl.InvalidRequest, match="reasoning"):
        ask(reasoning=3).run(backend=bl.Mock("4"))
    with pytest.raises(bl.InvalidRequest, match="heal"):
        bl.function(heal="yes")(lambda s: None)  # type: ignore[arg-type]
    with pytest.raises(bl.InvalidRequest, match="unknown reasoning format"):
        ask(reasoning="nothing").run(backend=bl.Mock("4"))


def test_streams_have_events_for_it() -> None:
    events = list(ask().stream(backend=bl.Mock("Hm hm.</think>\n\n4", reasoning="think")))
    thought = "".join(e.text for e in events if isinstance(e, bl.ReasoningDelta))
    shown = "".join(e.text for e in events if isinstance(e, bl.TextDelta))
    assert (thought, shown) == ("Hm hm.", "4")


def test_separate_reasoning_as_in_programs_of_sglang() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.user("2 + 2?")
        s += bl.assistant(bl.separate_reasoning(bl.gen("n"), model_type="qwen3"))

    state = program.run(backend=bl.Mock("Hm.</think>\n\n4"))
    assert state["n"] == "4" and state["n_reasoning_content"] == "Hm."


def test_several_outputs_have_a_reasoning_each() -> None:
    replies = ["a</think>\n\n1", "b</think>\n\n2"]
    state = ask(n=2, append=False).run(backend=bl.Mock(replies, reasoning="think"))
    assert state["n"] == [1, 2]
    assert state.meta("n").reasonings == ("a", "b") and state.meta("n").reasoning == "a"


# ---- on the default model, which does not think by itself


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    engine = bl.Engine(model=str(default_model), reasoning_format="think")
    yield engine
    engine.close()


def test_an_engine_ends_a_section_that_the_prompt_has_almost_ended(engine: bl.Engine) -> None:
    """The model is led to write the marker itself, so that all of the path runs."""

    @bl.function(temperature=0.0)
    def program(s: bl.State) -> int:
        line = "<think>Easy.</think>\n\n4\n"
        s += f"{line}{line}{line}" + bl.gen("n", int, max_tokens=40, reasoning=True) + " done"
        return int(s["n"])

    state = program.run(backend=engine)
    meta = state.meta("n")
    assert isinstance(state.result, int) and meta.text == str(state.result)
    assert meta.reasoning and f"</think>\n\n{meta.text} done" in state.text()
    assert meta.forced_tokens >= 1, "the gap is forced"
    ids = state.tokens()
    assert engine._engine.tokenizer.decode(ids) == state.text()


def test_a_templates_reasoning_is_found(default_model: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>\n{% endif %}{# </think> #}"
    )

    @bl.function(max_tokens=4, ignore_eos=True)
    def program(s: bl.State, reasoning: bool | None) -> None:
        s += bl.user("Hi") + bl.assistant(bl.gen("a", reasoning=reasoning))

    engine = bl.Engine(model=str(default_model), chat_template=template)
    try:
        off = program.run(backend=engine, reasoning=False)
        assert "assistant: <think>\n</think>\n\n" in off.text()
        assert off["a"] and off.meta("a").reasoning == ""
        on = program.run(backend=engine, reasoning=None)
        assert "</think>" not in on.text()
        assert on["a"] == "" and on.meta("a").reasoning and on.meta("a").output_tokens == 4
    finally:
        engine.close()
