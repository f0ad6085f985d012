"""Constraints as each API names them, as one `Constraint`.

Invariant: a request has at most one; two are an error that names both, never a silent choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from branchline.runtime.core.sampling_params import Constraint, ConstraintKind, Whitespace
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.fields import GenerationFields, Json
from branchline.runtime.server.limits import Limits, check, check_depth

ANY_OBJECT = '{"type": "object"}'


class JsonSchemaFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format.json_schema` of chat completions."""

    name: str = ""
    description: str | None = None
    schema_: Json | None = msgspec.field(default=None, name="schema")
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format` of completions and chat completions.

    Attributes:
        structures, triggers: the first form of structural tags.
        format: the later one.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[Json] | None = None
    triggers: list[str] | None = None
    format: Json | None = None


def constraint_of(
    fields: GenerationFields, response_format: ResponseFormat | None, limits: Limits
) -> Constraint | None:
    """The constraint of a completion or chat completion.

    Raises:
        Refused: more than one, or one that is not complete.
        InvalidRequest: it is beyond a limit.
    """
    given: dict[str, tuple[ConstraintKind, Any]] = {}
    if response_format is not None and response_format.type != "text":
        given["response_format"] = _of_response_format(response_format)
    plain: tuple[tuple[str, ConstraintKind], ...] = (
        ("regex", "regex"),
        ("ebnf", "ebnf"),
        ("json_schema", "json_schema"),
        ("structural_tag", "structural_tag"),
        ("guided_json", "json_schema"),
        ("guided_regex", "regex"),
        ("guided_choice", "choices"),
        ("guided_grammar", "ebnf"),
    )
    for name, kind in plain:
        value = getattr(fields, name)
        if value is not None:
            given[name] = (grammar_kind(value) if name == "guided_grammar" else kind, value)
    structured = fields.structured_outputs
    if structured is not None:
        nested: tuple[tuple[str, ConstraintKind], ...] = (
            ("json", "json_schema"),
            ("regex", "regex"),
            ("choice", "choices"),
            ("structural_tag", "structural_tag"),
        )
        for name, kind in nested:
            value = getattr(structured, name)
            if value is not None:
                given[f"structured_outputs.{name}"] = (kind, value)
        if structured.grammar is not None:
            kind = grammar_kind(structured.grammar)
            given["structured_outputs.grammar"] = (kind, structured.grammar)
        if structured.json_object:
            given["structured_outputs.json_object"] = ("json_schema", ANY_OBJECT)
    return only_one(given, limits, fields.whitespace)


def only_one(
    given: Mapping[str, tuple[ConstraintKind, Any]],
    limits: Limits,
    whitespace: Whitespace | None = None,
) -> Constraint | None:
    """The one constraint of `given`: field name to (kind, text or JSON value).

    Args:
        whitespace: the policy for JSON; None = the default.

    Raises:
        Refused: more than one, one that is not complete, or a policy without JSON.
        InvalidRequest: it is beyond a limit.
    """
    if not given:
        if whitespace is not None:
            raise _no_json(whitespace)
        return None
    if len(given) > 1:
        first, second = list(given)[:2]
        raise Refused(
            400,
            f"{first} and {second} both constrain the output",
            param=second,
            hint="Send one of them.",
        )
    [(name, (kind, value))] = given.items()
    return bounded(name, kind, value, limits, whitespace)


def bounded(
    name: str,
    kind: ConstraintKind,
    value: Any,
    limits: Limits,
    whitespace: Whitespace | None = None,
) -> Constraint:
    """A constraint within the server's limits; `value` is text, or a JSON value.

    Raises:
        InvalidRequest: beyond a limit.
        Refused: a JSON constraint that is no JSON, or a policy without JSON.
    """
    if whitespace is not None and kind not in ("json_schema", "structural_tag", "lark"):
        raise _no_json(whitespace)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    check("max_schema_bytes", f"the size of {name}", len(text.encode()), limits.max_schema_bytes)
    if kind in ("json_schema", "structural_tag", "choices"):
        try:
            document = msgspec.json.decode(text) if isinstance(value, str) else value
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(400, f"{name} is not valid JSON: {error}", param=name) from error
        check_depth(name, document, limits.max_schema_depth)
    return Constraint(kind=kind, text=text, whitespace=whitespace or "fixed")


def _no_json(whitespace: Whitespace) -> Refused:
    return Refused(
        400,
        "whitespace is a policy for JSON, and nothing here constrains the output to hold some",
        param="whitespace",
        value=whitespace,
        hint="Send a JSON schema, a structural tag or a grammar with it, or leave it out.",
    )


def grammar_kind(text: str) -> ConstraintKind:
    """Whether a grammar text is Lark or EBNF: Lark rules have a colon, EBNF's `::=`."""
    return "ebnf" if "::=" in text else "lark"


def _of_response_format(form: ResponseFormat) -> tuple[ConstraintKind, Any]:
    if form.type == "json_object":
        return "json_schema", ANY_OBJECT
    if form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise Refused(
                400,
                "response_format of type json_schema has no schema",
                param="response_format.json_schema.schema",
            )
        return "json_schema", form.json_schema.schema_
    if form.format is not None:
        return "structural_tag", {"type": "structural_tag", "format": form.format}
    if form.structures is None:
        raise Refused(
            400,
            "response_format of type structural_tag has no format",
            param="response_format.format",
        )
    tag = {"type": "structural_tag", "structures": form.structures, "triggers": form.triggers or []}
    return "structural_tag", tag
