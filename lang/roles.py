"""Chat turns as expressions. The model's own template renders them; nothing here knows how."""

from __future__ import annotations

from branchline.lang.expressions import RoleBegin, RoleEnd, RoleTurn, as_expression


def system(content: object) -> RoleTurn:
    """A system turn: a str, an expression or a list of them."""
    return RoleTurn("system", as_expression(content))


def user(content: object) -> RoleTurn:
    """A user turn: a str, an expression or a list of them."""
    return RoleTurn("user", as_expression(content))


def assistant(content: object) -> RoleTurn:
    """An assistant turn: a str, an expression or a list of them."""
    return RoleTurn("assistant", as_expression(content))


def tool(content: object) -> RoleTurn:
    """A tool turn: a str, an expression or a list of them."""
    return RoleTurn("tool", as_expression(content))


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
