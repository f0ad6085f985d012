"""The constraints a program can give as a `type`, and how they are composed.

They only build nodes of `grammar`; `types.resolve` turns those into what a backend enforces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from branchline.lang.errors import InvalidRequest, UnsupportedConstraint
from branchline.lang.grammar import (
    Capture,
    Choices,
    Ebnf,
    Grammar,
    Json,
    JsonSchema,
    Lark,
    Optional,
    Regex,
    Repeat,
    Seq,
    StructuralTag,
    Until,
    as_grammar,
    capture_names,
    schema_text,
)
from branchline.lang.markers import Box, reject
from branchline.lang.refusals import refused
from branchline.runtime.core.sampling_params import Whitespace

MAX_CHOICES = 4096
MAX_REPEAT = 10_000


def regex(pattern: str) -> Regex:
    """Output must match `pattern` as a whole.

    Raises `InvalidRequest` for an empty pattern and `UnsupportedConstraint` for anything but a str.
    """
    if not isinstance(pattern, str):
        raise UnsupportedConstraint(
            "a regex must be a str", value=pattern, hint="Give the pattern as text."
        )
    pattern = reject(pattern, "a regex")
    if not pattern:
        raise InvalidRequest("an empty regex allows no output", value=pattern, hint="Drop it.")
    return Regex(pattern)


def choices(items: Iterable[str]) -> Choices:
    """Output must be one of `items`, sampled under a mask (where `select` scores every item).

    Raises `InvalidRequest` for an empty, repeated or non-text item, or no item at all.
    """
    return Choices(checked_choices(items))


def checked_choices(items: Iterable[str]) -> tuple[str, ...]:
    """`items` as a tuple; `InvalidRequest` names what is wrong with them."""
    if isinstance(items, str):
        raise InvalidRequest(
            "choices is a single text", value=items, hint="Give a list of texts: choices=[...]."
        )
    texts = tuple(items)
    if not texts:
        raise InvalidRequest("choices is empty", value="[]", hint="Give at least one choice.")
    if len(texts) > MAX_CHOICES:
        raise InvalidRequest(
            "too many choices", value=len(texts), hint=f"Give at most {MAX_CHOICES}."
        )
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(
                f"a choice is a {type(text).__name__}", value=text, hint="Choices are texts."
            )
        if not text:
            raise InvalidRequest("a choice is empty", value=repr(texts), hint="Drop it.")
    texts = tuple(reject(text, "a choice") for text in texts)
    if len(set(texts)) != len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise InvalidRequest("a choice is given twice", value=twice, hint="Drop one of them.")
    return texts


def seq(*parts: object) -> Seq:
    """One after the other: texts (matched as they are), types and constraints.

    The value is the whole text; `capture` the parts you want.

    Raises:
        InvalidRequest: nothing is given.
        UnsupportedConstraint: a part is neither text, type nor constraint.
    """
    if not parts:
        raise InvalidRequest("seq is empty", value="()", hint="Give at least one part.")
    found: list[Grammar] = []
    for part in map(as_grammar, parts):
        found += part.parts if isinstance(part, Seq) else (part,)
    made = Seq(tuple(found))
    capture_names(made)
    return made


def optional(part: object) -> Optional:
    """`part` or nothing. The value is None for nothing. Raises as `seq`."""
    return Optional(as_grammar(part))


def repeat(part: object, low: int = 0, high: int | None = None) -> Repeat:
    """`part` at least `low` times and at most `high` times (None = any number).

    The value is the list of the parts' values.

    Raises:
        InvalidRequest: the bounds are no bounds.
        UnsupportedConstraint: `part` is neither text, type nor constraint.
    """
    for bound in (low, low if high is None else high):
        if not isinstance(bound, int) or isinstance(bound, bool) or not 0 <= bound <= MAX_REPEAT:
            raise InvalidRequest(
                "a bound of repeat is out of range", value=bound, hint=f"Use 0 to {MAX_REPEAT}."
            )
    if high is not None and (high < low or high == 0):
        raise InvalidRequest(
            "repeat allows nothing", value=f"{low}, {high}", hint="Use 0 <= low <= high, high > 0."
        )
    return Repeat(as_grammar(part), low, high)


def capture(name: str, part: object) -> Capture:
    """The same as `part`; its value becomes the variable `name` too (a list inside `repeat`; None
    where it was not part of the text).

    Raises:
        InvalidRequest: the name is empty or used twice.
        UnsupportedConstraint: `part` is neither text, type nor constraint.
    """
    name = reject(name, "the name of a capture")
    if not name:
        raise InvalidRequest("a capture has no name", value=repr(name), hint="Name it.")
    made = Capture(name, as_grammar(part))
    capture_names(made)
    return made


def until(stop: str) -> Until:
    """Any text up to and including the first `stop`; the value is the text before it."""
    if not isinstance(stop, str) or not stop:
        raise InvalidRequest("until takes a text", value=repr(stop), hint="Give what ends it.")
    return Until(reject(stop, "until"))


def json_schema(schema: object, *, whitespace: Whitespace = "fixed") -> JsonSchema | Json:
    """Output must be JSON of a schema (a dict, or the text of one) or of a Python type.

    The value is an instance of the type, or what `json.loads` gives for a schema.

    Args:
        whitespace: "fixed" = as `json.dumps` writes it, "compact" = none, "flexible" = a bounded
            run between any two tokens.

    Raises:
        InvalidRequest: the schema is no JSON, or there is no such policy.
        UnsupportedConstraint: `schema` is neither schema nor type.
    """
    if whitespace not in get_args(Whitespace):
        raise InvalidRequest(
            "no policy for white space",
            value=whitespace,
            hint=f"Use one of {', '.join(get_args(Whitespace))}.",
        )
    if isinstance(schema, (dict, str, bool)):
        return JsonSchema(schema_text(schema), whitespace)
    if isinstance(schema, Grammar) or schema is None:
        raise refused(schema, why="json_schema takes a schema or a type")
    return Json(Box(schema), whitespace)


def lark(text: str) -> Lark:
    """Output must be a text of a grammar in Lark's notation (start rule `start`).

    The `lark` package's syntax: rules, terminals, templates, `%import common`, `%ignore`. What the
    engine cannot do is refused by name when the grammar is used. Raises `InvalidRequest` for "".
    """
    return Lark(_grammar_text(text, "lark"))


def ebnf(text: str) -> Ebnf:
    """Output must be a text of a grammar in GBNF notation (start rule `root`)."""
    return Ebnf(_grammar_text(text, "ebnf"))


def structural_tag(tag: Mapping[str, Any]) -> StructuralTag:
    """Output is free text in which tagged parts must match what belongs to their tag."""
    return StructuralTag(schema_text(dict(tag)))


def _grammar_text(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(f"{where} takes the text of a grammar", value=text, hint="Give one.")
    return reject(text, "a grammar")
