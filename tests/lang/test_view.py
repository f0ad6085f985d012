"""The terminal view shows what runs, and what it cost."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import branchline as bl
from branchline.lang.view.terminal import run_in_terminal


@bl.function
def program(s: bl.State, word: str) -> str:
    s += bl.user(f"Say {word}")
    s += bl.assistant(bl.gen("said"))
    with s.fork(2) as forks:
        forks += bl.gen("more")
    s += bl.select("choice", ["yes", "no"])
    value: str = s["said"]
    return value


def console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def shown(view: Console) -> str:
    assert isinstance(view.file, io.StringIO)
    return view.file.getvalue()


def test_text_branches_and_nodes_are_shown() -> None:
    view = console()
    mock = bl.Mock({"said": "hello there", "more": "branch text", "choice": "no"})
    state = run_in_terminal(program, {"word": "hi"}, mock, console=view)
    assert state.result == "hello there"
    text = shown(view)
    for part in ("user: Say hi", "hello there", "branch 1: branch text", "generate said", "no"):
        assert part in text, part


def test_a_failure_is_shown_and_raised() -> None:
    view = console()
    mock = bl.Mock({"said": RuntimeError("broken")})
    with pytest.raises(bl.BackendError, match="broken"):
        run_in_terminal(program, {"word": "hi"}, mock, console=view)
    assert "✗" in shown(view)
