"""Scalar types as plain text: for each, the exact pattern of its texts and how one is read.

Invariant: what a pattern matches, its parser reads. Numbers are bounded, so that no model can go on
writing digits for ever; dates have the real days of each month. Knows nothing of JSON.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

INT_PATTERN = r"-?(0|[1-9][0-9]{0,17})"
"""At most 18 digits: always within a signed 64-bit integer."""
FLOAT_PATTERN = r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,2})?"
BOOL_PATTERN = r"[Tt]rue|[Ff]alse"
"""Both spellings, so that JSON-like and Python-like prompts each get the likelier one."""

_CENTURY_LEAP = r"(0[48]|[2468][048]|[13579][26])00"
_LEAP = rf"({_CENTURY_LEAP}|[0-9][0-9](0[48]|[2468][048]|[13579][26]))"
_YEAR = r"([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DAYS_28 = r"(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_DAYS_30 = r"(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
DATE_PATTERN = rf"({_YEAR}-({_DAYS_28}|{_DAYS_30})|{_LEAP}-02-29)"
"""Years 0001 to 9999, the days that the Gregorian calendar has."""
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])?"
TIME_PATTERN = _CLOCK + _ZONE
DATETIME_PATTERN = f"{DATE_PATTERN}T{TIME_PATTERN}"
UUID_PATTERN = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


class Plain(NamedTuple):
    """A type written as plain text.

    Attributes:
        pattern: regex of all its texts.
        parse: the instance of a text; raises ValueError or KeyError.
    """

    pattern: str
    parse: Callable[[str], Any]


def plain(wanted: object) -> Plain | None:
    """How `wanted` is written as plain text; None when it is not one of the scalar types."""
    return _PLAIN.get(wanted) if isinstance(wanted, type) else None


def _strict_int(text: str) -> int:
    """`int` also reads blanks and underscores; an output never has them."""
    _no_extras(text)
    return int(text)


def _strict_float(text: str) -> float:
    _no_extras(text)
    return float(text)


def _no_extras(text: str) -> None:
    if text != text.strip() or "_" in text:
        raise ValueError(text)


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_PLAIN: dict[type, Plain] = {
    int: Plain(INT_PATTERN, _strict_int),
    float: Plain(FLOAT_PATTERN, _strict_float),
    bool: Plain(BOOL_PATTERN, _bool),
    datetime.date: Plain(DATE_PATTERN, datetime.date.fromisoformat),
    datetime.time: Plain(TIME_PATTERN, datetime.time.fromisoformat),
    datetime.datetime: Plain(DATETIME_PATTERN, datetime.datetime.fromisoformat),
    uuid.UUID: Plain(UUID_PATTERN, uuid.UUID),
}
