"""Whether the arguments of a call are valid for its tool.

Invariant: a schema and a text, whoever wrote them, take a bounded time: patterns are searched by
`patterns.search`, never by Python's backtracking `re`. A pattern that it cannot search (lookbehind,
a backreference, more work than its bound) passes every text: where an output is constrained, the
constraint has enforced the pattern or refused the schema. `unevaluatedProperties` in a schema with
`patternProperties` is left to the constraint, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.patterns.search import search_for
from branchline.runtime.responses.arguments import ArgumentsError

if TYPE_CHECKING:
    from branchline.runtime.responses.specs import ToolSpec

MAX_KEPT_CHARS = 16_384
"""Of a schema whose checker is kept for the next outputs of the same tool."""


def validator(tool: ToolSpec) -> Callable[[dict[str, Any]], None]:
    """Checks arguments against the tool's schema; raises `ArgumentsError`. Any thread.

    Raises:
        InvalidRequest: the schema is no schema.
    """
    text = json.dumps(tool.schema)
    make = _kept if len(text) <= MAX_KEPT_CHARS else _made
    try:
        checker = make(text)
    except _NoSchema as error:
        raise InvalidRequest(
            f"the parameters of tool {tool.name} are no JSON Schema: {error}",
            value=error.value,
            hint="Correct the schema.",
        ) from error

    def check(arguments: dict[str, Any]) -> None:
        from referencing.exceptions import Unresolvable

        try:
            error = next(iter(checker.iter_errors(arguments)), None)
        except (Unresolvable, RecursionError) as failure:
            raise ArgumentsError(f"the schema cannot be followed ({failure})") from failure
        if error is not None:
            raise ArgumentsError(f"{error.json_path}: {error.message}"[:300])

    return check


class _NoSchema(Exception):
    """Why a schema is none."""

    def __init__(self, why: str, value: object) -> None:
        super().__init__(why)
        self.value = value


def _made(text: str) -> Any:
    """The checker of a schema in JSON. Making one takes milliseconds, where checking takes some
    20 us."""
    import jsonschema
    import referencing
    from jsonschema.validators import validator_for

    schema = json.loads(text)
    plain = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        # Formats are not checked: "regex" would mean Python's there, and patterns are ECMA-262's.
        plain.check_schema(schema, format_checker=None)
    except jsonschema.SchemaError as error:
        raise _NoSchema(error.message, error.instance) from error
    kind = _linear(plain, '"patternProperties"' in text)
    return kind(schema, registry=referencing.Registry())  # nothing is fetched


_kept = lru_cache(maxsize=128)(_made)


@cache
def _linear(plain: Any, named_by_pattern: bool) -> Any:
    """The validator class of a draft, with the keywords that search in text replaced.

    Args:
        named_by_pattern: `patternProperties` is somewhere in the schema.
    """
    from jsonschema.validators import extend

    replaced = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    if named_by_pattern:
        replaced["unevaluatedProperties"] = _nothing
    known = plain.VALIDATORS
    return extend(plain, {name: check for name, check in replaced.items() if name in known})


def _found(pattern: str, text: str) -> bool | None:
    """Whether a search finds the pattern; None = not known."""
    search = search_for(pattern)
    return None if search is None else search.found_in(text)


def _pattern(checker: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if checker.is_type(value, "string") and _found(pattern, value) is False:
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    checker: Any, schemas: Mapping[str, Any], value: Any, schema: Any
) -> Iterator[Any]:
    if not checker.is_type(value, "object"):
        return
    for pattern, inner in schemas.items():
        for name, item in value.items():
            if _found(pattern, name):
                yield from checker.descend(item, inner, path=name, schema_path=pattern)


def _additional_properties(checker: Any, inner: Any, value: Any, schema: Any) -> Iterator[Any]:
    if not checker.is_type(value, "object"):
        return
    patterns = schema.get("patternProperties", {})
    for name, item in value.items():
        if name in schema.get("properties", {}):
            continue
        if all(_found(pattern, name) is False for pattern in patterns):
            yield from checker.descend(item, inner, path=name)


def _nothing(checker: Any, inner: Any, value: Any, schema: Any) -> Iterator[Any]:
    yield from ()
