"""Batches: order, errors, bounds, and many programs at once without a thread each."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import InvalidRequest


@bl.function
def echo(s: bl.State, word: str, fail: bool = False) -> str:
    s += f"{word}:" + bl.gen("x")
    if fail:
        raise ValueError(f"bad {word}")
    value: str = s["x"]
    return value


@bl.function
async def aecho(s: bl.State, word: str, fail: bool = False) -> str:
    s += f"{word}:"
    value: str = await s.gen("x")
    if fail:
        raise ValueError(f"bad {word}")
    return value


def last_word(name: str, text: str) -> str:
    return text.rstrip(":").rpartition("\n")[2]


WORDS = [f"w{number}" for number in range(40)]
BOTH = pytest.mark.parametrize("program", [echo, aecho], ids=lambda p: p.name)


@BOTH
@pytest.mark.parametrize("limits", [{}, {"max_concurrency": 3}, {"workers": 4}], ids=str)
def test_results_are_in_order(program: Any, limits: dict[str, Any]) -> None:
    items = [{"word": word} for word in WORDS]
    states = program.run_batch(items, backend=bl.Mock(last_word), **limits)
    assert [state.result for state in states] == WORDS


@BOTH
@pytest.mark.parametrize("limits", [{}, {"workers": 2}], ids=str)
def test_a_failed_item_leaves_its_exception_in_its_place(program: Any, limits: Any) -> None:
    items = [{"word": word, "fail": number % 5 == 2} for number, word in enumerate(WORDS)]
    items[7] = {"wrong": 1}
    results = program.run_batch(items, on_error="return", backend=bl.Mock(last_word), **limits)
    for number, result in enumerate(results):
        if number == 7:
            assert isinstance(result, TypeError)
        elif number % 5 == 2:
            assert str(result) == f"bad {WORDS[number]}"
        else:
            assert result.result == WORDS[number]


@BOTH
@pytest.mark.parametrize("limits", [{}, {"workers": 2}], ids=str)
def test_by_default_the_first_error_ends_the_batch_and_says_which_item(
    program: Any, limits: Any
) -> None:
    mock = bl.Mock(last_word, latency_s=0.02)
    items = [{"word": word, "fail": word == "w3"} for word in WORDS]
    with pytest.raises(ValueError, match="bad w3") as caught:
        program.run_batch(items, backend=mock, **limits)
    assert caught.value.__notes__ == ["in item 3 of the batch"]
    deadline = time.monotonic() + 3
    while mock.stats().programs_open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mock.stats().programs_open == 0


def test_items_may_be_dicts_tuples_or_single_arguments() -> None:
    states = echo.run_batch([{"word": "a"}, ("b",), "c"], backend=bl.Mock(last_word))
    assert [state.result for state in states] == ["a", "b", "c"]
    assert echo.run_batch([], backend=bl.Mock("x")) == []


@BOTH
def test_concurrency_is_bounded_and_used(program: Any) -> None:
    alive = [0, 0]
    lock = threading.Lock()

    def reply(name: str, text: str) -> str:
        return "x"

    @bl.function
    def counted(s: bl.State, word: str) -> None:
        with lock:
            alive[0] += 1
            alive[1] = max(alive)
        s += bl.gen("x")
        s["x"]
        with lock:
            alive[0] -= 1

    counted.run_batch(WORDS, backend=bl.Mock(reply, latency_s=0.01), max_concurrency=7)
    assert alive == [0, 7]


def test_programs_of_a_batch_share_one_thread() -> None:
    threads: set[int] = set()

    @bl.function
    def where(s: bl.State) -> None:
        s += bl.gen("x")
        threads.add(threading.get_ident())
        s["x"]
        threads.add(threading.get_ident())

    before = threading.active_count()
    where.run_batch([{}] * 100, backend=bl.Mock("x", latency_s=0.05))
    assert threads == {threading.get_ident()}
    assert threading.active_count() <= before + 3, "the backend's own threads alone"


def test_workers_let_blocking_programs_overlap() -> None:
    together = threading.Barrier(8, timeout=20)

    @bl.function
    def blocks(s: bl.State) -> None:
        together.wait()  # for all eight, or it breaks

    states = blocks.run_batch([{}] * 8, workers=8, backend=bl.Mock("x"))
    assert len(states) == 8


@pytest.mark.parametrize(
    "options",
    [{"max_concurrency": 0}, {"workers": -1}, {"on_error": "ignore"}, {"concurrency": 3}],
    ids=str,
)
def test_wrong_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        echo.run_batch(WORDS, backend=bl.Mock("x"), **options)


def test_sampling_of_the_batch_and_old_names() -> None:
    states = echo.run_batch(
        ["a"], backend=bl.Mock("abcdef"), max_tokens=2, num_threads=4, progress_bar=True
    )
    assert states[0].result == "ab"


def test_a_failing_backend_fails_every_item_alone() -> None:
    mock = bl.Mock(["fine", RuntimeError("once"), "fine"])
    results = echo.run_batch(["a", "b", "c"], backend=mock, on_error="return", max_concurrency=1)
    assert [isinstance(item, bl.State) for item in results] == [True, False, True]


def test_nested_batches_run_on_the_same_hub() -> None:
    @bl.function
    def outer(s: bl.State, word: str) -> Any:
        inner = echo.run_batch([f"{word}{number}" for number in range(3)], max_concurrency=2)
        return [state.result for state in inner]

    mock = bl.Mock(last_word, latency_s=0.3)
    begin = time.perf_counter()
    states = outer.run_batch(["a", "b", "c", "d"], backend=mock)
    assert [state.result for state in states] == [[f"{w}{n}" for n in range(3)] for w in "abcd"]
    assert time.perf_counter() - begin < 2.0, "outer programs wait for each other: 2.4 s and more"


def test_an_error_in_a_nested_batch_stays_with_its_program() -> None:
    @bl.function
    def outer(s: bl.State, word: str) -> Any:
        items = [{"word": word, "fail": word == "b"}, {"word": "z"}]
        return [state.result for state in echo.run_batch(items)]

    results = outer.run_batch(["a", "b", "c"], backend=bl.Mock(last_word), on_error="return")
    assert results[0].result == ["a", "z"]
    assert str(results[1]) == "bad b"
    assert results[2].result == ["c", "z"]
