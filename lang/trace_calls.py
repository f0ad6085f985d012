"""Notices where a traced program reads the characters of an unknown value behind Python's back.

Most of what Python does with a `Placeholder` goes through its own methods. Compiled patterns, and
searches in a text that is known, read a str's memory instead; while a program is traced, a profile
function sees their calls. What such a call is given, its place in the source says: variables of its
frame, or a value that was read last, on its lines. Invariant: no call does anything else than
without. Not seen: `value in "a known text"`, which calls nothing.
"""

from __future__ import annotations

import ast
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

from branchline.lang.placeholders import Placeholder

_READERS = frozenset(
    (
        *("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix"),
        *("removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("startswith", "strip"),
    )
)
"""Methods of a known text that read the text they are given. `replace` is none of them: what it is
given is what it puts in, nearly always, and that stays a reference.
"""

_OWN = ("branchline.lang.", "branchline.runtime.")


@contextmanager
def watched_calls(
    look: Callable[[tuple[int, ...]], None], last: Callable[[], Read]
) -> Iterator[None]:
    """While inside, calls of this thread that read an unknown text are told to `look`.

    Args:
        last: the value that the program read last.
    """

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or not _reads(called):
            return
        if str(frame.f_globals.get("__name__", "")).startswith(_OWN):
            return
        if nodes := _given(frame, last()):
            look(tuple(dict.fromkeys(nodes)))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


class Read:
    """A value that the program has read: its nodes, and the line that reads it."""

    __slots__ = ("_frame", "_line", "_nodes")

    def __init__(self, nodes: tuple[int, ...] = ()) -> None:
        self._nodes = nodes
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_OWN):
            frame = frame.f_back
        self._frame = None if frame is None else id(frame)
        self._line = 0 if frame is None else frame.f_lineno

    def nodes_at(self, frame: FrameType) -> tuple[int, ...]:
        """The nodes, if a call of this frame may have been given the value as it was read: a call
        stands on the line of its arguments, or above.
        """
        near = self._frame == id(frame) and self._line >= frame.f_lineno
        return self._nodes if near else ()


def _given(frame: FrameType, last: Read) -> list[int]:
    """Nodes of what the call that a frame makes is given; without its source, of all that the frame
    has.
    """
    arguments = _arguments(frame.f_code, frame.f_lasti)
    if arguments is None:
        values, computes = list(frame.f_locals.values()), True
    else:
        values = [frame.f_locals[name] for name in arguments.names if name in frame.f_locals]
        computes = arguments.computes
    found = [node for each in _within(values, 2) for node in each]
    return found or (list(last.nodes_at(frame)) if computes else [])


class _Arguments(NamedTuple):
    """Of one call: the names in them, and whether there is more than names and literals."""

    names: tuple[str, ...]
    computes: bool


@lru_cache(maxsize=1024)
def _arguments(code: CodeType, at: int) -> _Arguments | None:
    """Those of the call at an instruction; None where the source is not at hand."""
    place = next(islice(code.co_positions(), at // 2, None), (None,) * 4)
    line, last_line, column, last_column = place
    if line is None or last_line is None or column is None or last_column is None:
        return None
    lines = [text.encode() for text in linecache.getlines(code.co_filename)[line - 1 : last_line]]
    if len(lines) != last_line - line + 1:
        return None
    lines[-1] = lines[-1][:last_column]
    lines[0] = lines[0][column:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(call, ast.Call):
        return None
    parts = [part for each in (*call.args, *call.keywords) for part in ast.walk(each)]
    names = tuple(part.id for part in parts if isinstance(part, ast.Name))
    plain = (ast.Name, ast.Constant, ast.expr_context, ast.keyword, ast.Starred)
    return _Arguments(names, not all(isinstance(part, plain) for part in parts))


def _reads(called: Any) -> bool:
    owner = getattr(called, "__self__", None)
    if isinstance(owner, re.Pattern):
        return True
    return type(owner) is str and getattr(called, "__name__", "") in _READERS


def _within(values: Any, depth: int) -> Iterator[tuple[int, ...]]:
    """Nodes of the placeholders among values, and in containers among them."""
    for value in list(values):
        if isinstance(value, Placeholder):
            yield value.reference.nodes
        elif depth and isinstance(value, (list, tuple, set)):
            yield from _within(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _within(value.values(), depth - 1)
