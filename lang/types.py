"""From a type or constraint to what an output must match, and from the text back to an instance.

Invariant: a text that matches a `ValueType`'s constraint can be parsed by it. Scalars at the top
are plain text; everything else that is a Python type is JSON. Knows nothing of states or backends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache, partial
from typing import Any, Literal, get_args, get_origin

import msgspec

from branchline.lang import compose, rematch
from branchline.lang.constraints import checked_choices
from branchline.lang.errors import (
    ConstraintError,
    TruncatedError,
    UnsupportedConstraint,
)
from branchline.lang.grammar import (
    Choices,
    Ebnf,
    Grammar,
    Json,
    JsonSchema,
    Lark,
    Regex,
    StructuralTag,
    Typed,
    capture_names,
    schema_text,
)
from branchline.lang.json_types import ANY, JsonType
from branchline.lang.plain import plain
from branchline.lang.refusals import describe
from branchline.lang.schemas import document
from branchline.runtime.core.sampling_params import Constraint, Whitespace

REMEMBERED = 1024
"""Types whose constraint is kept."""


class ValueType(msgspec.Struct, frozen=True):
    """How a variable's text is constrained and read.

    Attributes:
        name: for error messages.
        constraint: None = any text.
        parse: the instance of a complete text; raises ValueError or KeyError when it is not one.
        complete: whether a text that was cut is a value all the same; None = never: more digits, or
            another item, might have followed.
        json: how the value is written, when it is JSON.
        captures: names of the captures inside; True for those that are lists.
        find: the captures' values in a complete text; raises ValueError.
    """

    name: str
    constraint: Constraint | None
    parse: Callable[[str], Any] | None = None
    complete: Callable[[str], bool] | None = None
    json: JsonType | None = None
    captures: dict[str, bool] = {}
    find: Callable[[str], dict[str, Any]] | None = None

    def value(self, text: str, *, truncated: bool) -> Any:
        """The instance of `text`.

        Args:
            truncated: the output was cut by max_tokens.

        Raises:
            TruncatedError: it was cut before it was complete.
            ConstraintError: it is not what the constraint allows.
        """
        self._check_whole(text, truncated)
        return text if self.parse is None else self._read(self.parse, text)

    def captured(self, text: str, *, truncated: bool) -> dict[str, Any]:
        """The captures' values in `text`. Raises as `value`."""
        self._check_whole(text, truncated)
        return {} if self.find is None else self._read(self.find, text)

    def _check_whole(self, text: str, truncated: bool) -> None:
        whole = not truncated or self.constraint is None
        if not whole and (self.complete is None or not self.complete(text)):
            raise self._truncated(text)

    def _read(self, parse: Callable[[str], Any], text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, KeyError) as error:
            why = f": {error}" if self.json is not None else ""
            raise ConstraintError(
                f"the output is not a {self.name}{why}",
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


def resolve(wanted: object = None) -> ValueType:
    """What a type or constraint asks of an output; None = any text.

    Raises `UnsupportedConstraint` for something that cannot be enforced; names it.
    """
    if wanted is None or wanted is str:
        return TEXT
    try:
        hash(wanted)
    except TypeError:  # metadata of an Annotated, say
        return _read(wanted)
    return _remembered(wanted)


@lru_cache(maxsize=REMEMBERED)
def _remembered(wanted: object) -> ValueType:
    return _read(wanted)


def _read(wanted: object) -> ValueType:
    if isinstance(wanted, Typed):
        return resolve(wanted.type.value)
    if isinstance(wanted, Grammar):
        return _from_grammar(wanted)
    if isinstance(wanted, dict):
        return _from_grammar(JsonSchema(schema_text(wanted)))
    form = plain(wanted)
    if form is not None:
        return _from_pattern(describe(wanted), form.pattern, form.parse)
    if get_origin(wanted) is Literal:
        return _one_of(describe(wanted), _by_text(wanted, get_args(wanted)))
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return _one_of(wanted.__name__, _by_text(wanted, tuple(wanted)))
    return _as_json(wanted)


def _as_json(wanted: object, whitespace: Whitespace = "fixed") -> ValueType:
    found = document(wanted)
    text = msgspec.json.encode(found.schema).decode()
    return ValueType(
        describe(wanted),
        Constraint(kind="json_schema", text=text, whitespace=whitespace),
        lambda text: found.root.decode(load_json(text)),
        json=found.root,
    )


def _from_grammar(node: Grammar) -> ValueType:
    match node:
        case Regex(pattern=pattern):
            return ValueType(
                f"match of {pattern!r}",
                Constraint(kind="regex", text=pattern),
                complete=partial(_matches, pattern),
            )
        case Choices(items=items):
            return _one_of("choice", {item: item for item in items})
        case Json(type=box, whitespace=whitespace):
            return _as_json(box.value, whitespace)
        case JsonSchema(text=text, whitespace=whitespace):
            constraint = Constraint(kind="json_schema", text=text, whitespace=whitespace)
            return ValueType("JSON value of the schema", constraint, load_json, json=ANY)
        case Lark(text=text):
            constraint = Constraint(kind="lark", text=compose.lark_text(text))
            return ValueType("text of the grammar", constraint)
        case Ebnf(text=text):
            constraint = Constraint(kind="ebnf", text=text)
            return ValueType("text of the grammar", constraint)
        case StructuralTag(text=text):
            constraint = Constraint(kind="structural_tag", text=text)
            return ValueType("text of the structural tag", constraint)
    return _composed(node)


def _composed(node: Grammar) -> ValueType:
    names = capture_names(node)
    constraint = compose.to_constraint(node, resolve)
    return ValueType(
        "text of the composition",
        constraint,
        lambda text: rematch.read(node, text, resolve).value,
        captures=names,
        find=lambda text: rematch.captures(node, text, resolve),
    )


def load_json(text: str) -> Any:
    """`json.loads`; every failure is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
                "a value of the type has no text", value=describe(wanted), hint="Give it one."
            )
        if text in by_text:
            raise UnsupportedConstraint(
                f"two values of the type read {text!r}",
                value=describe(wanted),
                hint="Give them different texts.",
            )
        by_text[text] = value
    if not by_text:
        raise UnsupportedConstraint("the type has no values", value=describe(wanted))
    return by_text


def _matches(pattern: str, text: str) -> bool:
    """Whether `text` matches; a pattern that Python's dialect cannot read counts as unmatched."""
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return False
