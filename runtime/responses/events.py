"""What a parser of tool calls says. Joined, it is the same however the text was cut."""

from __future__ import annotations

from typing import Any

import msgspec

from branchline.runtime.responses.formats import Voice


class TextPiece(msgspec.Struct, frozen=True, tag="text"):
    """Text that belongs to no call; `voice` tells an answer from thinking."""

    text: str
    voice: Voice = "text"


class CallBegin(msgspec.Struct, frozen=True, tag="begin"):
    """A call of a known tool has begun.

    Attributes:
        index: of the call in the output, from 0.
        id: names it in a conversation.
    """

    index: int
    id: str
    name: str


class ArgumentsPiece(msgspec.Struct, frozen=True, tag="arguments"):
    """More of a call's arguments, as JSON text (formats that are not JSON give one piece)."""

    index: int
    text: str


class CallEnd(msgspec.Struct, frozen=True, tag="end"):
    """A call is complete, and its arguments are valid for the tool."""

    index: int
    arguments: dict[str, Any]


class CallBroken(msgspec.Struct, frozen=True, tag="broken"):
    """What had begun as a call is none; a `CallBegin` has come where its name was known.

    Never comes from text that a constraint allowed whole.

    Attributes:
        text: all that was taken for the call; it is text after all.
        reason: one clause.
        cut: the output ended inside the call.
    """

    index: int
    text: str
    reason: str
    cut: bool = False


ToolEvent = TextPiece | CallBegin | ArgumentsPiece | CallEnd | CallBroken
