"""Chat turns as methods of a state: `with s.user(): …` or `s.user("…")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from branchline.lang.append import append
from branchline.lang.expressions import Concat, RoleBegin, RoleEnd, RoleTurn, as_expression

if TYPE_CHECKING:
    from branchline.lang.state import State


class Turns:
    """Base of `State`.

    Without content each method gives a block: what is appended inside is a turn of that role. With
    content the turn is appended at once; the result adds nothing when it is appended, so that
    `s += s.user("…")` is one turn, too.
    """

    @overload
    def system(self) -> Turn: ...
    @overload
    def system(self, content: object) -> Concat: ...
    def system(self, content: object = None) -> Turn | Concat:
        """A system turn."""
        return _turn(self, "system", content)

    @overload
    def user(self) -> Turn: ...
    @overload
    def user(self, content: object) -> Concat: ...
    def user(self, content: object = None) -> Turn | Concat:
        """A user turn."""
        return _turn(self, "user", content)

    @overload
    def assistant(self) -> Turn: ...
    @overload
    def assistant(self, content: object) -> Concat: ...
    def assistant(self, content: object = None) -> Turn | Concat:
        """An assistant turn."""
        return _turn(self, "assistant", content)

    @overload
    def tool(self) -> Turn: ...
    @overload
    def tool(self, content: object) -> Concat: ...
    def tool(self, content: object = None) -> Turn | Concat:
        """A tool turn."""
        return _turn(self, "tool", content)


class Turn:
    """A chat turn as a `with` block, also in async programs."""

    __slots__ = ("_role", "_state")

    def __init__(self, state: State, role: str) -> None:
        self._state = state
        self._role = role

    def __enter__(self) -> State:
        self._state += RoleBegin(self._role)
        return self._state

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._state += RoleEnd(self._role)


def _turn(state: Turns, role: str, content: object) -> Turn | Concat:
    from branchline.lang.state import State

    assert isinstance(state, State)
    if content is None:
        return Turn(state, role)
    state._check()
    append(state, RoleTurn(role, as_expression(content)))
    return Concat(parts=())
