"""Calls of programs outside of one: in SGLang's language `f(x)` runs, here it is an expression.

Both hold: a call that is appended runs inline, one that is read like a state runs then, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchline.lang.markers import Box
    from branchline.lang.program import Program
    from branchline.lang.state import State


class Invocation:
    """A program and its arguments; `state()` is that of its one run."""

    __slots__ = ("_state", "args", "kwargs", "program")

    def __init__(self, program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.program = program
        self.args = args
        self.kwargs = dict(kwargs)
        self._state: State | None = None

    def state(self) -> State:
        """Run, unless that was done; raises what `Program.run` raises."""
        if self._state is None:
            self._state = self.program.run(*self.args, **self.kwargs)
        return self._state


class Readable:
    """Base of the expression that is a call: what a `State` has, of the call's own run."""

    __slots__ = ()

    if TYPE_CHECKING:
        call: Box

    def __getitem__(self, name: str) -> Any:
        return self._ran()[name]

    def __setitem__(self, name: str, value: object) -> None:
        self._ran()[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._ran()

    def __getattr__(self, name: str) -> Any:
        from branchline.lang.state import State

        if name.startswith("_") or not (name == "result" or hasattr(State, name)):
            raise AttributeError(
                f"a call of a program has no attribute {name!r}; append it, or read its variables"
            )
        return getattr(self._ran(), name)

    def _ran(self) -> State:
        call: Invocation = self.call.value  # type: ignore[assignment]
        return call.state()
