"""How a type or constraint that cannot be meant is refused: by name, with the path to it."""

from __future__ import annotations

from typing import get_origin

from branchline.lang.errors import UnsupportedConstraint

HINT = (
    "Use str, int, float, bool, None, Literal, Enum, date, time, datetime, UUID, list, tuple, "
    "dict[str, T], unions, dataclasses, TypedDict, NamedTuple, pydantic models, a JSON Schema, "
    "regex, choices, lark, ebnf, structural_tag, or a composition of these."
)


def describe(wanted: object) -> str:
    """A type as a reader would write it."""
    if isinstance(wanted, type) and get_origin(wanted) is None:
        return wanted.__name__
    return str(wanted)


def refused(wanted: object, path: str = "", why: str = "") -> UnsupportedConstraint:
    """The error for a type at `path` ("" = the type itself)."""
    where = f" at {path}" if path else ""
    reason = f": {why}" if why else ""
    return UnsupportedConstraint(
        f"this type cannot be generated{where}{reason}", value=describe(wanted), hint=HINT
    )
