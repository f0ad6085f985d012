"""Tools of a node: what its output may call, and what it has called.

The port's turns know how the model writes calls; everything else is `responses`. Ids of calls are
made of the lane's and the node's number, so a program that runs again has the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from branchline.runtime.programs.protocol import (
    Generate,
    ToolCall,
    ToolReply,
)
from branchline.runtime.responses import (
    CallBegin,
    CallBroken,
    CallEnd,
    TextPiece,
    ToolEvent,
    ToolFormat,
    ToolParser,
    ToolSpec,
    ToolUse,
    tool_constraint,
    tool_parser,
)

if TYPE_CHECKING:
    from branchline.runtime.core.sampling_params import SamplingParams


def tool_sampling(op: Generate, use: ToolUse, form: ToolFormat) -> SamplingParams:
    """The node's parameters with what its tools ask of the output.

    Raises:
        UnsupportedConstraint: a schema that the format cannot write.
    """
    constraint = tool_constraint(form, use.tools, use.choice, use.parallel)
    return msgspec.structs.replace(
        op.sampling, constraint=constraint, skip_special_tokens=not form.special
    )


def output_parser(op: Generate, form: ToolFormat, tools: Sequence[ToolSpec]) -> ToolParser:
    """A parser of an output of the node."""
    return tool_parser(form, tools, prefix=f"{op.lane}_{op.node}_")


class ReplyBuilder:
    """Gathers the events of one output into a reply, call by call."""

    def __init__(self, parser: ToolParser) -> None:
        self._parser = parser
        self._names: dict[int, CallBegin] = {}
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._cut = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take more of the output; new text and complete calls, in order."""
        return self._take(self._parser.feed(text))

    def finish(self) -> list[str | ToolCall]:
        """The output has ended; what was held back."""
        return self._take(self._parser.finish())

    def reply(self) -> ToolReply:
        """All of it."""
        return ToolReply(
            "".join(self._texts), tuple(self._calls), "".join(self._reasoning), self._cut
        )

    def _take(self, events: list[ToolEvent]) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        for event in events:
            if isinstance(event, TextPiece):
                if event.voice == "reasoning":
                    self._reasoning.append(event.text)
                    continue
                found.append(event.text)
            elif isinstance(event, CallBegin):
                self._names[event.index] = event
            elif isinstance(event, CallEnd):
                found.append(self._call(event.index, event.arguments))
            elif isinstance(event, CallBroken):
                self._cut = self._cut or event.cut
                found.append(event.text)
        self._texts += [piece for piece in found if isinstance(piece, str)]
        self._calls += [piece for piece in found if isinstance(piece, ToolCall)]
        return found

    def _call(self, index: int, arguments: dict[str, Any]) -> ToolCall:
        begin = self._names[index]
        return ToolCall(begin.id, begin.name, json.dumps(arguments, ensure_ascii=False))


def read_reply(op: Generate, form: ToolFormat, text: str) -> ToolReply:
    """What a finished output of a node with tools says."""
    assert op.tools is not None
    builder = ReplyBuilder(output_parser(op, form, op.tools.tools))
    builder.feed(text)
    builder.finish()
    return builder.reply()
