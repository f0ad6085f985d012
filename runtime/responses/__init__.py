"""What a model says, taken apart: tool calls and text. Pure: text in, events out.

From one description of a format come the constraint, the parser and the declaration, so what the
constraint allows the parser reads. Knows no engine, no tokenizer and no server.
"""

from __future__ import annotations

from branchline.runtime.responses.constraint import tool_constraint
from branchline.runtime.responses.declaration import render_declaration, render_result
from branchline.runtime.responses.formats import DECLARED, FORMATS, ToolFormat, detect_format
from branchline.runtime.responses.parser import (
    ArgumentsPiece,
    CallBegin,
    CallBroken,
    CallEnd,
    TextPiece,
    ToolEvent,
    ToolParser,
    tool_parser,
)
from branchline.runtime.responses.specs import ToolChoice, ToolSpec, ToolUse, read_spec

__all__ = [
    "DECLARED",
    "FORMATS",
    "ArgumentsPiece",
    "CallBegin",
    "CallBroken",
    "CallEnd",
    "TextPiece",
    "ToolChoice",
    "ToolEvent",
    "ToolFormat",
    "ToolParser",
    "ToolSpec",
    "ToolUse",
    "detect_format",
    "read_spec",
    "render_declaration",
    "render_result",
    "tool_constraint",
    "tool_parser",
]
