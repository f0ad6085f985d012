"""How models write tool calls: one description a format; which one a chat template is made for.

A description is data. An output is text in which *blocks* of calls stand:

    block = marker opening call (separator call)* closing
    call  = head NAME middle ARGUMENTS tail

Where a description has white space, a parser takes any; a constraint takes exactly that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

Voice = Literal["text", "reasoning"]


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """One way to write tool calls.

    Attributes:
        name: of the format.
        marker: begins a block, wherever it stands; "" = only a bare block begins one.
        bare: a block may also begin without the marker, as the very first thing of an output. So
            that ordinary text is not mistaken for it, it counts from a tool's name on.
        opening, closing: around the calls of a block.
        head, middle, tail: before a tool's name, between it and the arguments, after them.
        separator: between the calls of a block; None = a block holds one call.
        again: text and more blocks may follow a block; `gap` is usual between two.
        arguments: an object in JSON, or Python's keyword arguments.
        frames: markup that is no text, and whose voice follows it.
        special: ids of those texts of the description that are special tokens of the model.
        native: the model's own chat template declares tools and shows their results.
    """

    name: str
    marker: str = ""
    bare: bool = False
    opening: str = ""
    closing: str = ""
    head: str = ""
    middle: str = ""
    tail: str = ""
    separator: str | None = None
    again: bool = False
    gap: str = ""
    arguments: Literal["json", "python"] = "json"
    frames: tuple[tuple[str, Voice], ...] = ()
    special: dict[str, int] = {}
    native: bool = True

    def texts(self) -> list[str]:
        """Every text of the description."""
        own = (self.marker, self.opening, self.closing, self.head, self.middle, self.tail)
        return [*own, self.separator or "", *(frame for frame, _ in self.frames)]


_JSON_HEAD = '{"name": "'
_JSON_MIDDLE = '", "arguments": '

HERMES = ToolFormat(
    name="hermes",
    marker="<tool_call>",
    head="\n" + _JSON_HEAD,
    middle=_JSON_MIDDLE,
    tail="}\n</tool_call>",
    again=True,
    gap="\n",
)
LLAMA3 = ToolFormat(
    name="llama3",
    marker="<|python_tag|>",
    bare=True,
    head=_JSON_HEAD,
    middle='", "parameters": ',
    tail="}",
    separator="; ",
)
MISTRAL = ToolFormat(
    name="mistral",
    marker="[TOOL_CALLS]",
    opening=" [",
    closing="]",
    head=_JSON_HEAD,
    middle=_JSON_MIDDLE,
    tail="}",
    separator=", ",
)
MISTRAL_ARGS = ToolFormat(name="mistral_args", marker="[TOOL_CALLS]", middle="[ARGS]", again=True)
PYTHONIC = ToolFormat(
    name="pythonic",
    bare=True,
    opening="[",
    closing="]",
    middle="(",
    tail=")",
    separator=", ",
    arguments="python",
)
DEEPSEEK = ToolFormat(
    name="deepseek",
    marker="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    tail="\n```<｜tool▁call▁end｜>",
    separator="\n",
    closing="<｜tool▁calls▁end｜>",
)
DEEPSEEK_PLAIN = ToolFormat(
    name="deepseek_plain",
    marker="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    tail="<｜tool▁call▁end｜>",
    separator="",
    closing="<｜tool▁calls▁end｜>",
)
HARMONY = ToolFormat(
    name="harmony",
    marker="<|channel|>commentary to=functions.",
    middle=" <|constrain|>json<|message|>",
    frames=(
        ("<|channel|>analysis<|message|>", "reasoning"),
        ("<|channel|>commentary<|message|>", "text"),
        ("<|channel|>final<|message|>", "text"),
        ("<|end|><|start|>assistant", "text"),
    ),
)
DECLARED = ToolFormat(
    name="declared",
    marker="<tool_call>",
    head=_JSON_HEAD,
    middle=_JSON_MIDDLE,
    tail="}</tool_call>",
    again=True,
    gap="\n",
    native=False,
)
"""Our own, for models whose template knows no tools."""

FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        HERMES,
        LLAMA3,
        MISTRAL,
        MISTRAL_ARGS,
        PYTHONIC,
        DEEPSEEK,
        DEEPSEEK_PLAIN,
        HARMONY,
        DECLARED,
    )
}


def detect_format(
    chat_template: str, special_tokens: Mapping[str, int] | None = None
) -> ToolFormat:
    """The format that a model was trained on, as its chat template shows it.

    Args:
        chat_template: Jinja text; "" = the model has none.
        special_tokens: text of each special token to its id, for formats that use some.
    """
    found = _declared_by(chat_template) if re.search(r"\btools\b", chat_template) else DECLARED
    known = special_tokens or {}
    used = {
        text: token
        for text, token in known.items()
        if text and any(text in part for part in found.texts())
    }
    return msgspec.structs.replace(found, special=used)


def _declared_by(template: str) -> ToolFormat:
    """The format of a template that takes tools."""
    if "<|channel|>" in template and "functions." in template:
        return HARMONY
    if DEEPSEEK.marker in template:
        return DEEPSEEK if "```json" in template else DEEPSEEK_PLAIN
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return MISTRAL_ARGS
        spaced = re.search(r"\[TOOL_CALLS\]\s*\[", template)
        tight = spaced is not None and " " not in spaced[0]
        return msgspec.structs.replace(MISTRAL, opening="[") if tight else MISTRAL
    if "<|tool_call_start|>" in template:
        begin, end = "<|tool_call_start|>", "<|tool_call_end|>"
        return msgspec.structs.replace(PYTHONIC, marker=begin, bare=False, closing="]" + end)
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if re.search(r"\[\w+\(\w+=", template):
        return PYTHONIC
    if "<|python_tag|>" in template or re.search(r'"parameters"\s*:', template):
        known = "<|python_tag|>" in template
        return LLAMA3 if known else msgspec.structs.replace(LLAMA3, marker="")
    return DECLARED
