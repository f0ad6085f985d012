"""Chat turns as expressions. The model's own template renders them; nothing here knows how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from branchline.lang.errors import ProgramError
from branchline.lang.expressions import (
    Expression,
    RoleBegin,
    RoleEnd,
    RoleTurn,
    Text,
    as_expression,
)
from branchline.lang.markers import reject
from branchline.lang.tools import Call, Tool, make_tool, result_text


def system(content: object) -> RoleTurn:
    """A system turn: a str, an expression or a list of them."""
    return RoleTurn("system", as_expression(content))


def user(content: object) -> RoleTurn:
    """A user turn: a str, an expression or a list of them."""
    return RoleTurn("user", as_expression(content))


def assistant(content: object) -> RoleTurn:
    """An assistant turn: a str, an expression or a list of them."""
    return RoleTurn("assistant", as_expression(content))


@overload
def tool(content: Callable[..., Any], /) -> Tool: ...  # type: ignore[overload-overlap]


@overload
def tool(content: object, /) -> RoleTurn: ...


@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    content: object = None, /, *, name: str | None = None, description: str | None = None
) -> Any:
    """`@bl.tool` on a function: a tool. Of a str, an expression or a list of them: a tool turn.

    The types of the function's parameters are the schema; its docstring, with an `Args:` section,
    is what the model is told.

    Args:
        name: of the tool; the function's own otherwise.
        description: for the model; the docstring's otherwise.

    Raises:
        InvalidRequest: a parameter without a type, or that cannot be given by name.
        UnsupportedConstraint: a type that cannot be enforced; names the parameter.
    """
    if content is None:
        return lambda func: make_tool(func, name=name, description=description)
    if callable(content) and not isinstance(content, (str, Expression)):
        return make_tool(content, name=name, description=description)
    return RoleTurn("tool", as_expression(content))


_RUN = object()


def tool_result(call: Call, value: object = _RUN) -> RoleTurn:
    """The result of a call as a tool turn.

    Args:
        value: what the tool gave: text as it is, all else as JSON; an exception tells the model of
            the error. Left out: the tool is run.
    """
    if value is _RUN:
        value = call.run()
    if hasattr(value, "__await__"):
        raise ProgramError(
            f"the result of {call.name!r} has not been waited for",
            value=call.name,
            hint="Await it first: tool_result(call, await call.arun()).",
        )
    return RoleTurn("tool", Text(reject(result_text(value), "a tool's result")))


def system_begin() -> RoleBegin:
    """Open a system turn."""
    return RoleBegin("system")


def system_end() -> RoleEnd:
    """Close the open system turn."""
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    """Open a user turn."""
    return RoleBegin("user")


def user_end() -> RoleEnd:
    """Close the open user turn."""
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    """Open an assistant turn."""
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    """Close the open assistant turn."""
    return RoleEnd("assistant")


def tool_begin() -> RoleBegin:
    """Open a tool turn."""
    return RoleBegin("tool")


def tool_end() -> RoleEnd:
    """Close the open tool turn."""
    return RoleEnd("tool")
