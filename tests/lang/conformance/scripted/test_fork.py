"""Forks: shared prefixes, joins, races, and how far an error reaches."""

from __future__ import annotations

import time
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import InvalidRequest, ProgramError


def run(body: Any, replies: Any = "reply", **options: Any) -> bl.State:
    return bl.function(body).run(backend=bl.Mock(replies, **options))


def test_gather_makes_lists_in_branch_order() -> None:
    def body(s: bl.State) -> Any:
        s += "p"
        forks = s.fork(3)
        for number, branch in enumerate(forks):
            branch += f"{number}" + bl.gen("x", int)
        forks.join()
        s += "q"
        return s["x"], s.text(), [branch.text() for branch in forks]

    assert run(body, lambda name, text: int(text[-1])).result == (
        [0, 1, 2],
        "pq",
        ["p00", "p11", "p22"],
    )


def test_leaving_the_block_joins_and_branches_overlap() -> None:
    def body(s: bl.State) -> float:
        begin = time.perf_counter()
        with s.fork(8) as forks:
            forks += "x" + bl.gen("x")
        assert s["x"] == ["reply"] * 8
        return time.perf_counter() - begin

    assert run(body, latency_s=0.25).result < 1.5, "one after the other they take 2 s"


def test_append_adds_the_branches_texts() -> None:
    def body(s: bl.State) -> Any:
        s += "p"
        forks = s.fork(2)
        for number, branch in enumerate(forks):
            branch += f"[{number}" + bl.gen("x") + "]"
        forks.join("append")
        s += "end"
        return s.text(), s["x"]

    text, values = run(body, ["a", "b"]).result
    assert text == "p[0a][1b]end"
    assert values == ["a", "b"]


@pytest.mark.parametrize("mode", ["gather_variable", "concate_and_append"])
def test_old_names_of_join_modes(mode: Any) -> None:
    def body(s: bl.State) -> Any:
        forks = s.fork(2)
        forks += bl.gen("x")
        forks.join(mode)
        return s["x"]

    assert run(body).result == ["reply", "reply"]


def test_branches_see_the_parents_variables() -> None:
    def body(s: bl.State) -> Any:
        s += bl.gen("x")
        with s.fork(2) as forks:
            for branch in forks:
                branch += branch["x"] + bl.gen("y")
        return s["y"], [branch["x"] for branch in forks], bl.fork(s, 2)[1]["y"]

    assert run(body, ["1", "2", "3"]).result == (["2", "3"], ["1", "1"], ["2", "3"])


def test_a_branch_variable_that_shadows_the_parents_is_an_error_that_says_so() -> None:
    def early(s: bl.State) -> None:
        s += bl.gen("x")
        forks = s.fork(2)
        forks += bl.gen("x")

    def late(s: bl.State) -> None:
        forks = s.fork(2)
        forks += bl.gen("x")
        s += bl.gen("x")
        forks.join()

    for body in (early, late):
        with pytest.raises(ProgramError, match="shadows the parent's") as caught:
            run(body)
        assert isinstance(caught.value, NameError)


def test_unnamed_values_of_branches_are_gathered_too() -> None:
    def body(s: bl.State) -> Any:
        s += bl.gen()
        with s.fork(2) as forks:
            forks += bl.gen()
        s += bl.gen()
        return s["_0"], s["_1"], s["_2"]

    assert run(body, list("abcd")).result == ("a", ["b", "c"], "d")


def test_nested_forks() -> None:
    def body(s: bl.State) -> Any:
        with s.fork(2) as outer:
            for branch in outer:
                with branch.fork(2) as inner:
                    inner += bl.gen("x")
        return s["x"]

    assert run(body, "v").result == [["v", "v"], ["v", "v"]]


def test_copy_is_a_state_of_its_own() -> None:
    def body(s: bl.State) -> Any:
        s += "a"
        other = s.copy()
        other += "b" + bl.gen("x")
        s += "c"
        return s.text(), other.text(), "x" in s

    assert run(body).result == ("ac", "abreply", False)


def test_first_takes_the_fastest_and_cancels_the_rest() -> None:
    def body(s: bl.State) -> Any:
        forks = s.fork(3)
        forks[0] += bl.gen("x") + bl.gen("y") + bl.gen("z")
        forks[1] += bl.gen("x")
        forks[2] += bl.gen("x") + bl.gen("y")
        winners = forks.first()
        losers = [branch for branch in forks if branch not in winners]
        for loser in losers:
            with pytest.raises(bl.Cancelled):
                loser["y"]
            with pytest.raises(bl.Cancelled):
                loser += "more"
        forks.join()
        return [winner["x"] for winner in winners], winners == [forks[1]], s["x"]

    values, fastest, gathered = run(body, latency_s=0.1).result
    assert values == gathered == ["reply"]
    assert fastest


def test_first_k_in_order_of_finishing() -> None:
    def body(s: bl.State) -> Any:
        forks = s.fork(3)
        forks[0] += bl.gen("x") + bl.gen("y")
        forks[2] += bl.gen("x")
        forks[1] += bl.gen("x") + bl.gen("y") + bl.gen("z")
        return [list(forks).index(winner) for winner in forks.first(2)]

    assert run(body, latency_s=0.05).result == [2, 0]


def failing_second(name: str, text: str) -> Any:
    return ValueError("second fails") if text.endswith("1") else "fine"


def test_an_error_cancels_the_siblings_and_fails_the_program() -> None:
    seen: list[Any] = []

    def body(s: bl.State) -> None:
        forks = s.fork(3)
        for number, branch in enumerate(forks):
            branch += bl.gen("x", deadline_s=0.05 if number == 1 else None) + bl.gen("y")
        seen.append(forks)
        forks.join()
        s["x"]

    begin = time.perf_counter()
    with pytest.raises(bl.DeadlineExceeded):
        run(body, latency_s=20)
    assert time.perf_counter() - begin < 10, "siblings were not cancelled"
    for branch in (seen[0][0], seen[0][2]):
        with pytest.raises(bl.BranchlineError):
            branch["y"]


def test_errors_can_be_kept_in_their_branch() -> None:
    def body(s: bl.State) -> Any:
        forks = s.fork(3, on_error="keep")
        for number, branch in enumerate(forks):
            branch += f"{number}" + bl.gen("x")
        with pytest.raises(bl.BackendError, match="second fails"):
            forks[1]["x"]
        with pytest.raises(bl.BackendError, match="second fails"):
            forks[1] += "more"
        forks.join()
        s += bl.gen("after")
        return s["x"], s["after"]

    values, after = run(body, failing_second).result
    assert after == "fine"
    assert [values[0], values[2]] == ["fine", "fine"]
    assert isinstance(values[1], bl.BackendError)


def test_first_raises_when_too_few_can_succeed() -> None:
    def body(s: bl.State) -> None:
        forks = s.fork(2, on_error="keep")
        forks[0] += "1" + bl.gen("x")
        forks[1] += "2" + bl.gen("x")
        assert [list(forks).index(winner) for winner in forks.first(1)] == [1]
        forks.first(2)

    with pytest.raises(bl.BackendError, match="second fails"):
        run(body, failing_second)


def test_an_exception_in_the_block_cancels_the_branches() -> None:
    seen: list[bl.State] = []

    def body(s: bl.State) -> None:
        with s.fork(2) as forks:
            forks += bl.gen("x")
            seen.extend(forks)
            raise KeyboardInterrupt

    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run(body, latency_s=2.0)
    assert time.perf_counter() - begin < 1.0
    with pytest.raises(bl.Cancelled):
        seen[0]["x"]


@pytest.mark.parametrize("n", [0, -1, 2.5, "3", True, 100_000])
def test_a_wrong_number_of_branches_is_refused(n: Any) -> None:
    def body(s: bl.State) -> None:
        s.fork(n)

    with pytest.raises(InvalidRequest):
        run(body)


@pytest.mark.parametrize(
    "use",
    [
        lambda forks: forks.join("mix"),
        lambda forks: forks.first(3),
        lambda forks: (forks.join(), forks.join()),
        lambda forks: (forks.join(), forks.__iadd__("late")),
    ],
)
def test_wrong_uses_of_forks(use: Any) -> None:
    def body(s: bl.State) -> None:
        use(s.fork(2))

    with pytest.raises((InvalidRequest, ProgramError)):
        run(body)


def test_forks_inside_a_turn() -> None:
    def body(s: bl.State) -> Any:
        s += bl.user("q") + bl.assistant_begin()
        with s.fork(2) as forks:
            forks += bl.gen("x") + bl.assistant_end()
        return [branch.messages() for branch in forks]

    for messages in run(body, ["a", "b"]).result:
        assert [message["role"] for message in messages] == ["user", "assistant"]


def test_dropped_branches_free_their_lanes() -> None:
    def body(s: bl.State) -> Any:
        for _ in range(50):
            branch = s.copy()
            branch += bl.gen("x")
            branch["x"]
            del branch
        s += "end"
        return s.text()

    state = run(body)
    assert state.result == "end"
    drops = [op for op in state._run.ops if type(op).__name__ == "Drop"]
    assert not drops, "drops are no part of the recorded program"


def test_a_branch_that_fails_after_the_function_has_returned_cancels_its_siblings() -> None:
    def reply(name: str, text: str) -> str:
        if text.endswith("1"):
            raise RuntimeError("branch 1 failed")
        return "z" * 100_000

    def body(s: bl.State) -> None:
        forks = s.fork(3)
        for number, branch in enumerate(forks):
            branch += str(number) + bl.gen("x", max_tokens=None)
            branch += bl.gen("y", max_tokens=None)

    mock = bl.Mock(reply, latency_s=0.2)
    with pytest.raises(bl.BackendError, match="branch 1 failed"):
        bl.function(body).run(backend=mock)
    end = time.monotonic() + 5
    while mock.stats().programs_open and time.monotonic() < end:
        time.sleep(0.01)
    assert mock.stats().programs_open == 0
