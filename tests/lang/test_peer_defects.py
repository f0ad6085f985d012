"""Defects of SGLang's language (0.5.23), one test each: here the right thing happens.

The numbers are those of the list the project keeps of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import branchline as bl


def within(seconds: float, job: Callable[[], Any]) -> Any:
    """Run `job` in a thread; fail when it hangs."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((job(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"hangs for more than {seconds} s"
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


BROKEN = {"a": RuntimeError("server on fire"), "b": "fine"}


def test_1_a_backend_error_is_raised_by_run_and_by_the_read() -> None:
    seen: list[Any] = []

    @bl.function
    def unread(s: bl.State) -> None:
        s += bl.gen("a")

    @bl.function
    def read(s: bl.State) -> None:
        s += bl.gen("a")
        try:
            s["a"]
        except bl.BackendError as error:
            seen.append(error)

    for program in (unread, read):
        with pytest.raises(bl.BackendError, match="server on fire") as caught:
            program.run(backend=bl.Mock(BROKEN))
        assert (caught.value.program, caught.value.variable) == (program.name, "a")
    assert "server on fire" in str(seen[0])


def test_2_nothing_hangs_after_a_failure() -> None:
    def appends(s: bl.State) -> None:
        s += bl.gen("a")
        with pytest.raises(bl.BackendError):
            s["a"]
        s += bl.gen("b")

    def reads_text(s: bl.State) -> None:
        s += bl.gen("a") + bl.gen("b")
        s.text()
        s["b"]

    def goes_on(s: bl.State) -> None:
        s += bl.gen("a")
        for _ in range(3):
            with pytest.raises(bl.BackendError, match="server on fire"):
                s["a"]
            with pytest.raises(bl.BackendError, match="server on fire"):
                s += "more"

    for body in (appends, reads_text, goes_on):
        program = bl.function(body)
        with pytest.raises(bl.BackendError, match="server on fire"):
            within(5, lambda program=program: program.run(backend=bl.Mock(BROKEN)))
        results = within(
            5,
            lambda program=program: program.run_batch(
                [{}] * 20, backend=bl.Mock(BROKEN), on_error="return"
            ),
        )
        assert all(isinstance(item, bl.BackendError) for item in results)


def test_3_a_broken_stream_does_not_look_complete() -> None:
    @bl.function
    def program(s: bl.State, crash: bool) -> None:
        s += bl.gen("b") + (bl.gen("a") if not crash else "")
        if crash:
            s["b"]
            raise KeyError("mine")

    for crash, error in ((False, bl.BackendError), (True, KeyError)):
        pieces: list[str] = []
        with pytest.raises(error):
            for event in program.stream(crash=crash, backend=bl.Mock(BROKEN)):
                if isinstance(event, bl.TextDelta):
                    pieces.append(event.text)
        assert pieces == ["fine"]
        state = program.run(crash=crash, stream=True, backend=bl.Mock(BROKEN))
        with pytest.raises(error):
            list(state.text_iter())


def test_4_iterating_a_variable_that_nothing_generates_is_an_error() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("b")

    state = program.run(stream=True, backend=bl.Mock(BROKEN))
    assert list(state.text_iter("b")) == ["fine"]
    with pytest.raises(KeyError, match="Known variables: b"):
        within(5, lambda: list(state.text_iter("nope")))
    with pytest.raises(KeyError, match="Known variables: b"):
        list(program.run(backend=bl.Mock(BROKEN)).text_iter("nope"))


def test_5_one_bad_item_does_not_kill_a_batch() -> None:
    @bl.function
    def program(s: bl.State, number: int) -> float:
        s += bl.gen("b")
        return 1 / number

    results = program.run_batch(
        [{"number": n} for n in (1, 0, 2)], backend=bl.Mock(BROKEN), on_error="return"
    )
    assert (results[0].result, results[2].result) == (1.0, 0.5)
    assert isinstance(results[1], ZeroDivisionError)


def test_6_a_long_program_sends_and_tokenizes_only_what_is_new() -> None:
    step_text = "x" * 100

    @bl.function
    def program(s: bl.State, steps: int) -> None:
        for number in range(steps):
            s += f"{number % 10}{step_text}" + bl.gen(f"v{number}")
            s[f"v{number}"]

    def tokenized(steps: int) -> int:
        mock = bl.Mock(lambda name, text: f"reply to {name[-1]}")
        state = program.run(steps, backend=mock)
        appended = sum(len(p) for op in state._run.ops for p in getattr(op, "parts", ()))
        assert appended == 101 * steps, "generated text went down again"
        return mock.stats().tokens_tokenized

    assert tokenized(10) == 10 * 101
    assert tokenized(5) == 5 * 101


def test_7_a_live_program_needs_no_thread() -> None:
    @bl.function
    def program(s: bl.State) -> int:
        s += bl.gen("b")
        s["b"]
        return threading.active_count()

    before = threading.active_count()
    states = program.run_batch([{}] * 400, backend=bl.Mock(BROKEN, latency_s=0.05))
    assert max(state.result for state in states) <= before + 1


def test_8_bound_programs_and_merged_options_lose_nothing() -> None:
    @bl.function(max_tokens=3, num_api_spec_tokens=8)
    def program(s: bl.State, word: str) -> Any:
        s += word + bl.gen("x", int, temperature=0.5)
        return s["x"]

    state = program.bind(word="w").run(temperature=0.9, backend=bl.Mock("12"))
    assert state.result == 12
    sampling = next(op.sampling for op in state._run.ops if hasattr(op, "sampling"))
    assert (sampling.max_tokens, sampling.temperature) == (3, 0.5)
    assert sampling.constraint is not None
    with pytest.raises(TypeError, match="words"):
        program.bind(words="w")


def test_9_a_typed_gen_with_a_stop_leaves_the_callers_list_alone() -> None:
    stops = ["\n"]

    @bl.function
    def program(s: bl.State, stop: Any) -> Any:
        s += bl.gen("x", dtype=int, stop=stop)  # type: ignore[call-arg]
        return s["x"]

    for stop in ("\n", stops, ("\n",)):
        assert program.run(stop, backend=bl.Mock("42\nrest")).result == 42
    assert stops == ["\n"]


@pytest.mark.parametrize("text", ["it's 3.5, ok?", "a-b", "ä(ö)\n"])
def test_10_text_may_hold_anything(text: str) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("x", str)
        return s["x"]

    assert program.run(backend=bl.Mock(text)).result == text


def test_11_unnamed_gens_and_arguments_named_like_options() -> None:
    @bl.function
    def unnamed(s: bl.State) -> Any:
        s += bl.gen() + bl.gen()
        return s["_0"], s["_1"]

    @bl.function
    def clashing(s: bl.State, n: int, temperature: str, stream: bool, backend: str) -> Any:
        s += bl.gen("x")
        return n, temperature, stream, backend, s["x"]

    assert unnamed.run(backend=bl.Mock(["a", "b"])).result == ("a", "b")
    with bl.Mock("v"):
        state = clashing.run(n=7, temperature="warm", stream=True, backend="mine")
        batch = clashing.run_batch([{"n": 1, "temperature": "t", "stream": 0, "backend": ""}])
    assert state.result == (7, "warm", True, "mine", "v")
    assert batch[0].result == (1, "t", 0, "", "v")


def test_12_appending_branches_works() -> None:
    @bl.function
    def program(s: bl.State) -> str:
        forks = s.fork(2)
        for number, branch in enumerate(forks):
            branch += f"[{number}" + bl.gen("x") + "]"
        forks.join("concate_and_append")
        return s.text()

    assert program.run(backend=bl.Mock("v")).result == "[0v][1v]"


def test_the_failing_program_of_many_ends_alone_and_quickly() -> None:
    @bl.function
    def program(s: bl.State, word: str) -> Any:
        s += word + bl.gen("x")
        return s["x"]

    mock = bl.Mock(lambda name, text: RuntimeError("no") if text == "bad" else "yes")
    begin = time.perf_counter()
    results = program.run_batch(
        ["bad" if n % 10 == 0 else "good" for n in range(300)], backend=mock, on_error="return"
    )
    assert sum(isinstance(item, bl.BackendError) for item in results) == 30
    assert time.perf_counter() - begin < 3
