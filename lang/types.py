"""From a Python type to what an output must match, and from the text back to an instance.

Invariant: a text that matches a `ValueType`'s constraint can be parsed by it. Numbers are bounded,
so that no model can go on writing digits for ever. Knows nothing of states or backends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Literal, get_args, get_origin

import msgspec

from branchline.lang.constraints import Choices, Regex, checked_choices, regex
from branchline.lang.errors import (
    ConstraintError,
    InvalidRequest,
    TruncatedError,
    UnsupportedConstraint,
)
from branchline.runtime.core.sampling_params import Constraint

INT_PATTERN = r"-?(0|[1-9][0-9]{0,17})"
"""At most 18 digits: always within a signed 64-bit integer."""
FLOAT_PATTERN = r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,2})?"
BOOL_PATTERN = r"[Tt]rue|[Ff]alse"
"""Both spellings, so that JSON-like and Python-like prompts each get the likelier one."""


class ValueType(msgspec.Struct, frozen=True):
    """How a variable's text is constrained and read.

    Attributes:
        name: for error messages.
        constraint: None = any text.
        parse: the instance of a complete text; raises ValueError or KeyError when it is not one.
        complete: whether a text that was cut is complete all the same; None = `parse` tells.
    """

    name: str
    constraint: Constraint | None
    parse: Callable[[str], Any] | None = None
    complete: Callable[[str], bool] | None = None

    def value(self, text: str, *, truncated: bool) -> Any:
        """The instance of `text`.

        Args:
            truncated: the output was cut by max_tokens.

        Raises:
            TruncatedError: it was cut before it was complete.
            ConstraintError: it is not what the constraint allows.
        """
        if truncated and self.complete is not None and not self.complete(text):
            raise self._truncated(text)
        if self.parse is None:
            return text
        try:
            return self.parse(text)
        except (ValueError, KeyError) as error:
            if truncated:
                raise self._truncated(text) from error
            raise ConstraintError(
                f"the output is not a {self.name}",
                value=text,
                hint="The backend did not enforce the type; the text is in meta(...).text.",
            ) from error

    def _truncated(self, text: str) -> TruncatedError:
        return TruncatedError(
            f"the output was cut by max_tokens before it was a complete {self.name}",
            value=text,
            hint="Raise max_tokens; the text is in meta(...).text.",
        )


TEXT = ValueType("str", None)


def refuse_keywords(given: Mapping[str, object]) -> None:
    """Raise `UnsupportedConstraint` for a constraint keyword that has a value."""
    for name, value in given.items():
        if value is not None:
            raise UnsupportedConstraint(
                f"{name}= is not supported", value=value, hint=f"Supported: {_SUPPORTED}."
            )


def resolve(wanted: object = None, *, pattern: str | None = None) -> ValueType:
    """What the `type` and `regex` arguments of `gen` ask for.

    Raises:
        UnsupportedConstraint: something that cannot be enforced; names it.
        InvalidRequest: more than one constraint.
    """
    if pattern is None:
        return _resolve_type(wanted)
    if wanted is not None and wanted is not str:
        raise InvalidRequest(
            "a gen takes one constraint; both type and regex were given",
            value=f"type={_describe(wanted)}, regex={pattern!r}",
            hint="Drop one of them.",
        )
    return _resolve_type(regex(pattern))


_SUPPORTED = "str, int, float, bool, Literal, Enum, regex and choices"


def _resolve_type(wanted: object) -> ValueType:
    if wanted is None or wanted is str:
        return TEXT
    if wanted is int:
        return _from_pattern("int", INT_PATTERN, _strict_int)
    if wanted is float:
        return _from_pattern("float", FLOAT_PATTERN, _strict_float)
    if wanted is bool:
        return _from_pattern("bool", BOOL_PATTERN, _parse_bool)
    if isinstance(wanted, Regex):
        return ValueType(
            f"match of {wanted.pattern!r}",
            Constraint(kind="regex", text=wanted.pattern),
            complete=partial(_matches, wanted.pattern),
        )
    if isinstance(wanted, Choices):
        return _one_of("choice", {item: item for item in wanted.items})
    if get_origin(wanted) is Literal:
        return _one_of(_describe(wanted), _by_text(wanted, get_args(wanted)))
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return _one_of(wanted.__name__, _by_text(wanted, tuple(wanted)))
    raise UnsupportedConstraint(
        "this type cannot be generated", value=_describe(wanted), hint=f"Supported: {_SUPPORTED}."
    )


def _from_pattern(name: str, pattern: str, parse: Callable[[str], Any]) -> ValueType:
    return ValueType(name, Constraint(kind="regex", text=pattern), parse)


def _one_of(name: str, by_text: Mapping[str, object]) -> ValueType:
    texts = checked_choices(by_text)
    constraint = Constraint(kind="choices", text=msgspec.json.encode(texts).decode())
    return ValueType(name, constraint, by_text.__getitem__)


def _by_text(wanted: object, values: tuple[object, ...]) -> dict[str, object]:
    """Text of each value to the value; values that read the same cannot be told apart."""
    by_text: dict[str, object] = {}
    for value in values:
        text = str(value.value) if isinstance(value, Enum) else str(value)
        if not text:
            raise UnsupportedConstraint(
                "a value of the type has no text", value=_describe(wanted), hint="Give it one."
            )
        if text in by_text:
            raise UnsupportedConstraint(
                f"two values of the type read {text!r}",
                value=_describe(wanted),
                hint="Give them different texts.",
            )
        by_text[text] = value
    if not by_text:
        raise UnsupportedConstraint("the type has no values", value=_describe(wanted))
    return by_text


def _matches(pattern: str, text: str) -> bool:
    """Whether `text` matches; a pattern that Python's dialect cannot read counts as unmatched."""
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return False


def _strict_int(text: str) -> int:
    """`int` also reads blanks and underscores; an output never has them."""
    if text != text.strip() or "_" in text:
        raise ValueError(text)
    return int(text)


def _strict_float(text: str) -> float:
    if text != text.strip() or "_" in text:
        raise ValueError(text)
    return float(text)


def _parse_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _describe(wanted: object) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
