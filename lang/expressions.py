"""Expression nodes: what can be appended to a state. Frozen values; they do nothing by themselves.

`a + b` concatenates; formatting one into a string gives a marker that appending splits again.
Knows nothing of states, backends or sampling rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from branchline.lang import markers
from branchline.lang.compat_call import Readable
from branchline.lang.errors import ProgramError
from branchline.lang.markers import Box
from branchline.runtime.programs.protocol import SelectMethod


class Expression(msgspec.Struct, frozen=True, tag_field="kind"):
    """Something that can be appended to a state."""

    def __add__(self, other: object) -> Concat:
        return Concat(parts=_parts(self) + _parts(as_expression(other)))

    def __radd__(self, other: object) -> Concat:
        return Concat(parts=_parts(as_expression(other)) + _parts(self))

    def __str__(self) -> str:
        return markers.wrap(_encoder().encode(self))

    def __format__(self, spec: str) -> str:
        if spec:
            raise ProgramError(
                "an expression cannot be formatted with a format specification",
                value=spec,
                hint="Its text is not known yet; write {expr} without ':…'.",
            )
        return str(self)


class Text(Expression, frozen=True, tag="text"):
    """Literal text."""

    text: str


class Gen(Expression, frozen=True, tag="gen", kw_only=True):
    """Generate.

    Attributes:
        name: variable that takes the value; None = the next unnamed one.
        type: boxed Python type or constraint object; None = text.
        options: sampling and request options given at the call, by name.
        append: the variable is a list, and this adds an item.
        keep_reasoning: what the model thinks first becomes a variable of its own, too.
        tools: boxed `ToolBox`; the value is a `Reply`.
    """

    name: str | None = None
    type: Box | None = None
    options: dict[str, Any] = {}
    append: bool = False
    keep_reasoning: bool = False
    tools: Box | None = None


class Select(Expression, frozen=True, tag="select", kw_only=True):
    """Score every choice and take the best.

    Attributes:
        choices: texts; of choices that are types or constraints, how a reader would write them.
        types: boxed types of each choice, None for a text; empty = all are texts.
        baseline: see `protocol.Select`.
    """

    name: str | None = None
    choices: tuple[str, ...]
    types: tuple[Box | None, ...] = ()
    max_tokens: int = 128
    baseline: str | None = None
    method: SelectMethod = "token_length_normalized"
    temperature: float = 0.0
    options: dict[str, Any] = {}
    append: bool = False


class RoleBegin(Expression, frozen=True, tag="begin"):
    """Open a chat turn."""

    role: str


class RoleEnd(Expression, frozen=True, tag="end"):
    """Close the open chat turn, which must be `role`'s."""

    role: str


class RoleTurn(Expression, frozen=True, tag="turn"):
    """A whole chat turn."""

    role: str
    body: Node


class Concat(Expression, frozen=True, tag="concat"):
    """One after the other."""

    parts: tuple[Node, ...]


class ProgramCall(Expression, Readable, frozen=True, tag="call"):
    """Run another program inline; read like a state, it runs alone. `call`: an `Invocation`."""

    call: Box


class Reference(Expression, frozen=True, tag="ref"):
    """Text known only at run time: a variable's or an argument's; made while tracing.

    Attributes:
        nodes: nodes whose values the text depends on.
        exact: the text is the variable's own; else Python computed it from the variable.
    """

    name: str
    lane: int = 0
    argument: bool = False
    nodes: tuple[int, ...] = ()
    exact: bool = True


Node = Text | Gen | Select | RoleBegin | RoleEnd | RoleTurn | Concat | ProgramCall | Reference


def as_expression(value: object) -> Node:
    """`value` as an expression; strings are split where expressions were formatted into them.

    Raises `ProgramError` for anything that is neither text nor an expression.
    """
    if isinstance(value, str):
        return _from_text(str.__str__(value))  # a placeholder's own methods are of no use here
    if isinstance(value, Expression):
        return value  # type: ignore[return-value]  # Node lists every subclass
    if isinstance(value, (list, tuple)):
        return concat(value)
    if value is None:
        raise ProgramError("None was appended", hint="Append a str or an expression.")
    raise ProgramError(
        f"a value of type {type(value).__name__} cannot be appended",
        value=value,
        hint="Append a str or an expression; turn other values into text with str() or f'{…}'.",
    )


def concat(items: Iterable[object]) -> Concat:
    """All items, one after the other."""
    parts: tuple[Node, ...] = ()
    for item in items:
        parts += _parts(as_expression(item))
    return Concat(parts=parts)


def _parts(node: Expression) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Concat) else (node,)  # type: ignore[return-value]


def _from_text(text: str) -> Node:
    pieces = markers.split(text)
    if not pieces:
        return Text("")
    nodes = tuple(Text(piece) if isinstance(piece, str) else decode(piece) for piece in pieces)
    return nodes[0] if len(nodes) == 1 else Concat(parts=nodes)


def decode(payload: bytes) -> Node:
    """The expression that a marker carries."""
    return _decoder().decode(payload)


def _encode_box(value: object) -> object:
    if isinstance(value, Box):
        return markers.boxes().put(value)
    raise ProgramError(
        f"an option of type {type(value).__name__} cannot be used inside an f-string",
        value=value,
        hint="Append the expression with s += instead.",
    )


def _decode_box(kind: type, value: Any) -> Any:
    return markers.boxes().get(value)


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_encode_box)


@cache
def _decoder() -> msgspec.msgpack.Decoder[Node]:
    return msgspec.msgpack.Decoder(Node, dec_hook=_decode_box)
