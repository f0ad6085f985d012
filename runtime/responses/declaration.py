"""Telling a model of tools, and of what they gave, where its own template cannot.

Invariant: the declaration shows the calls exactly as the format's parser reads them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from branchline.runtime.responses.formats import ToolFormat
from branchline.runtime.responses.specs import ToolSpec, check_tools


def render_declaration(tools: Sequence[ToolSpec], form: ToolFormat) -> str:
    """Text that tells a model which tools there are and how to call one.

    Raises:
        InvalidRequest: no tools, or two of one name.
    """
    check_tools(tools)
    listed = "\n".join(json.dumps(_entry(tool), ensure_ascii=False) for tool in tools)
    call = example_call(form)
    return (
        f"You can call these tools, one JSON object for each:\n{listed}\n"
        f"To call a tool, write exactly this, with its name and its arguments:\n{call}\n"
        "The result follows in the next turn. Without a call, answer in plain text."
    )


def render_result(content: str) -> str:
    """What a tool gave, for a turn of another role."""
    return f"<tool_response>\n{content}\n</tool_response>"


def example_call(form: ToolFormat) -> str:
    """A block with one call, with words in the places of its parts."""
    arguments = '{"ARGUMENT": VALUE}' if form.arguments == "json" else "ARGUMENT=VALUE"
    head = form.marker + form.opening + form.head
    return f"{head}NAME{form.middle}{arguments}{form.tail}{form.closing}"


def _entry(tool: ToolSpec) -> dict[str, object]:
    entry: dict[str, object] = {"name": tool.name}
    if tool.description:
        entry["description"] = tool.description
    return {**entry, "parameters": tool.shown}
