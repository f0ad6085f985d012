"""The one representation of what an output must match: small frozen nodes, of any size together.

`a | b` is either. Knows nothing of engines (`compose`), of reading a text (`rematch`), or of how a
Python type is written (`types`): a type stands here as it was given.
"""

from __future__ import annotations

import msgspec

from branchline.lang.errors import InvalidRequest
from branchline.lang.markers import Box, reject
from branchline.lang.refusals import refused
from branchline.runtime.core.sampling_params import Whitespace


class Grammar(msgspec.Struct, frozen=True):
    """Something that an output, or a part of one, must match."""

    def __or__(self, other: object) -> Alt:
        return Alt((*_branches(self), *_branches(as_grammar(other))))

    def __ror__(self, other: object) -> Alt:
        return Alt((*_branches(as_grammar(other)), *_branches(self)))


class Literal(Grammar, frozen=True):
    """This text. The value is the text."""

    text: str


class Regex(Grammar, frozen=True):
    """Text that matches a pattern as a whole. The value is the text."""

    pattern: str


class Choices(Grammar, frozen=True):
    """One of some texts, sampled under a mask. The value is the text."""

    items: tuple[str, ...]


class JsonSchema(Grammar, frozen=True):
    """JSON that satisfies a schema (a JSON document). The value is what `json.loads` gives."""

    text: str
    whitespace: Whitespace = "fixed"


class Json(Grammar, frozen=True):
    """A Python type (boxed), written as JSON whatever it is; the value is an instance."""

    type: Box
    whitespace: Whitespace = "fixed"


class Typed(Grammar, frozen=True):
    """A Python type (boxed); the value is an instance."""

    type: Box


class Lark(Grammar, frozen=True):
    """Text of a context-free grammar in Lark's notation. The value is the text."""

    text: str


class Ebnf(Grammar, frozen=True):
    """Text of a context-free grammar in GBNF notation. The value is the text."""

    text: str


class StructuralTag(Grammar, frozen=True):
    """Free text with tagged parts (`text`: a JSON document). The value is the text."""

    text: str


class Seq(Grammar, frozen=True):
    """One after the other. The value is the text."""

    parts: tuple[Grammar, ...]


class Alt(Grammar, frozen=True):
    """Either of some. The value is that of the branch that matched, the first that can."""

    branches: tuple[Grammar, ...]


class Optional(Grammar, frozen=True):
    """Something or nothing. The value is None for nothing."""

    body: Grammar


class Repeat(Grammar, frozen=True):
    """Something `low` to `high` times (None = any number). The value is the list of values."""

    body: Grammar
    low: int
    high: int | None


class Capture(Grammar, frozen=True):
    """The same as `body`; its value is also that of the variable `name`."""

    name: str
    body: Grammar


class Until(Grammar, frozen=True):
    """Any text up to and including the first `stop`. The value is the text before it."""

    stop: str


def as_grammar(operand: object) -> Grammar:
    """What an operand of a composition stands for: a str is that text, a type is its grammar.

    Raises `UnsupportedConstraint` for anything else.
    """
    if isinstance(operand, Grammar):
        return operand
    if isinstance(operand, str):
        text = reject(operand, "a grammar")
        if not text:
            raise InvalidRequest("an operand is an empty text", value="''", hint="Drop it.")
        return Literal(text)
    if isinstance(operand, dict):
        return JsonSchema(schema_text(operand))
    if operand is None or isinstance(operand, (int, float, list, tuple, bytes)):
        raise refused(operand, why="an operand is a text, a type or a constraint")
    return Typed(Box(operand))


def schema_text(schema: object) -> str:
    """A JSON schema as the text of a document.

    Raises `InvalidRequest` for one that is no JSON object (or true, or false).
    """
    if isinstance(schema, str):
        try:
            read = msgspec.json.decode(reject(schema, "a schema"))
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"json_schema is not JSON: {error}", value=schema, hint="Give a JSON document."
            ) from error
        text = schema
    else:
        read = schema
        try:
            text = msgspec.json.encode(schema).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"json_schema cannot be written as JSON: {error}",
                value=schema,
                hint="Give a dict of JSON values.",
            ) from error
    if not isinstance(read, (dict, bool)):
        raise InvalidRequest(
            "json_schema is no JSON object", value=schema, hint='Give a dict: {"type": …}.'
        )
    return text


def children(node: Grammar) -> tuple[Grammar, ...]:
    """The nodes directly inside."""
    match node:
        case Seq(parts=nodes) | Alt(branches=nodes):
            return nodes
        case Optional(body=body) | Repeat(body=body) | Capture(body=body):
            return (body,)
        case _:
            return ()


def capture_names(node: Grammar) -> dict[str, bool]:
    """Names of all captures inside, in order; True for those that may match several times."""
    found: dict[str, bool] = {}
    _find_captures(node, False, found)
    return found


def _find_captures(node: Grammar, repeated: bool, found: dict[str, bool]) -> None:
    if isinstance(node, Capture):
        if node.name in found:
            raise InvalidRequest(
                "two captures have one name", value=node.name, hint="Give each its own."
            )
        found[node.name] = repeated
    repeated = repeated or isinstance(node, Repeat)
    for child in children(node):
        _find_captures(child, repeated, found)


def _branches(node: Grammar) -> tuple[Grammar, ...]:
    return node.branches if isinstance(node, Alt) else (node,)
