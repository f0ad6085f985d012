"""Variable names of a state: which are free, and which expression gets which.

A name stands for one thing. A branch cannot take a name that its parent has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.lang.errors import NameInUse, ProgramError, UnknownVariable
from branchline.lang.variables import Items, Variable

if TYPE_CHECKING:
    from branchline.lang.state import State


def check_free(state: State, name: str) -> None:
    """Raise `NameInUse` (or `ProgramError`) when `name` cannot be defined here."""
    if not isinstance(name, str) or not name:
        raise ProgramError(
            "a variable needs a name that is a non-empty str", value=repr(name), hint="Name it."
        )
    if name not in state._variables:
        return
    if name in state._inherited and state._lane:
        raise NameInUse(
            f"branch variable {name!r} shadows the parent's",
            program=state._run.name,
            variable=name,
            hint="Give the branch's variable another name.",
        )
    raise NameInUse(
        f"variable {name!r} is defined already",
        program=state._run.name,
        variable=name,
        hint="Use another name, or append=True to make it a list.",
    )


def claim(state: State, name: str | None, *, append: bool) -> str:
    """The name an expression gets, `_0`, `_1`, … without one of its own; raises when taken."""
    if name is None:
        name = f"_{state._unnamed}"
        while name in state._variables:
            state._unnamed += 1
            name = f"_{state._unnamed}"
        state._unnamed += 1
        return name
    if append and name in state._variables and name not in state._inherited:
        return name
    check_free(state, name)
    return name


def define(state: State, name: str, variable: Variable, *, append: bool) -> None:
    """Let a claimed name stand for `variable`, or for a list that ends with it.

    A list begins with what the name stood for before.
    """
    if not append:
        state._variables[name] = variable
        return
    known = state._variables.get(name)
    before = [] if known is None else [known]
    items = known.items if isinstance(known, Items) else before
    state._variables[name] = Items([*items, variable])


def unknown(state: State, name: str) -> UnknownVariable:
    """The error of a read of something that nothing defines."""
    known = ", ".join(state._variables) or "none yet"
    return UnknownVariable(
        f"nothing defines variable {name!r}",
        program=state._run.name,
        variable=str(name),
        hint=f"Known variables: {known}.",
    )
