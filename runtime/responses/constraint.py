"""The grammar of an output that may hold tool calls, from the same description the parser reads.

Invariant: every text of the grammar is read by the parser as calls with valid arguments, and text.
Markers end free text as soon as they are complete (lazy terminals); text without a block is any
text that the parser would not take for the beginning of one.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.responses.formats import ToolFormat
from branchline.runtime.responses.literals import compiled
from branchline.runtime.responses.specs import WORDS, ToolChoice, ToolSpec, ToolUse

_AS_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
    | {"title", "description", "$schema", "$id", "default", "examples"}
)
"""What keyword arguments can follow of the schema of an object."""
_BEGIN_JSON = frozenset('["-0123456789tfn')
"""What JSON other than an object begins with."""


def tool_constraint(
    form: ToolFormat,
    tools: Sequence[ToolSpec],
    choice: ToolChoice,
    parallel: bool,
    answer: Constraint | None = None,
) -> Constraint:
    """What an output must match.

    Args:
        choice: `auto`: text or calls; `required`: calls alone, at least one; `none`: text that
            begins no call; a tool's name: one call of that tool.
        parallel: more than one call is allowed (but for a tool's name).
        answer: JSON that the text must be, where there is text; the output is then calls alone or
            text alone (see `tool_parser`).

    Raises:
        InvalidRequest: no tools, two of one name, or a choice that is none of them.
        UnsupportedConstraint: a schema that the format cannot write, or an answer that it cannot
            tell from calls; names it.
    """
    use = ToolUse(tools=tuple(tools), choice=choice, parallel=parallel)
    writer = _Writer(form, use)
    if answer is None or choice != "auto":
        return Constraint(kind="lark", text=writer.text())
    schema = _schema_beside(form, answer)
    return Constraint(kind="lark", text=writer.either(schema), whitespace=answer.whitespace)


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self, form: ToolFormat, use: ToolUse) -> None:
        self._form = form
        self._use = use
        self._rules: dict[str, str] = {}
        self._json: dict[str, str] = {}
        self._special = re.compile("|".join(map(re.escape, sorted(form.special, key=len)[::-1])))

    def text(self) -> str:
        """The whole grammar."""
        choice = self._use.choice
        several = self._use.parallel and choice in WORDS
        if choice == "none":
            start = self._prose()
        elif choice == "auto":
            start = self._free(several)
        else:
            start = self._forced(several)
        return self._lines(start)

    def _lines(self, start: str) -> str:
        lines = [f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())]
        return "\n".join(lines) + "\n"

    def either(self, schema: Mapping[str, Any]) -> str:
        """The grammar of calls alone or JSON alone. A block begins with its marker, if there is
        one, so that its first character tells it from JSON."""
        calls = self._forced(self._use.parallel, bare=not self._form.marker)
        return self._lines(f"{calls} | {self._value(schema)}")

    # ---- the choices

    def _free(self, several: bool) -> str:
        """Text, or text and blocks."""
        form = self._form
        options: list[str] = []
        if form.bare:
            options.append(self._block(several, bare=True))
        if form.marker:
            led = f"{self._lead()} {self._block(several)}"
            if form.again and several and not options:
                return f"({led})* {self._prose()}"
            options.append(led)
        return " | ".join([*options, self._prose()])

    def _forced(self, several: bool, *, bare: bool = True) -> str:
        """Blocks alone; voices may come first. `bare`: without a marker, where that may be."""
        form = self._form
        if form.bare and bare:
            return self._block(several)
        led = f"{self._fixed(form.marker)} {self._block(several)}"
        if form.again and several:
            led = f"{led} ({self._fixed(form.gap)} {led})*"
        return f"{self._framed()}* {led}" if form.frames else led

    # ---- free text

    def _prose(self) -> str:
        """Text in which no block begins, in its voices."""
        self._rules["PROSE"] = self._no_block()
        return f"PROSE? {self._framed()}*" if self._form.frames else "PROSE?"

    def _framed(self) -> str:
        """Markup of a voice and the text in it."""
        frames = " | ".join(self._fixed(frame) for frame, _ in self._form.frames)
        self._rules["framed"] = f"({frames}) PROSE?"
        self._rules["PROSE"] = self._no_block()
        return "framed"

    def _lead(self) -> str:
        """Text up to and with a marker."""
        marker = self._form.marker
        if self._special.pattern and self._special.match(marker) is not None:
            return f"{self._prose()} {self._fixed(marker)}"  # text ends before a special token
        self._rules["LEAD"] = f"/(?s:.*){_exactly(marker)}/{self._not_bare()}"
        self._rules["lead[lazy]"] = "LEAD"
        return "lead"

    def _no_block(self) -> str:
        """A terminal for text that the parser reads as text alone; not empty."""
        form = self._form
        marks = [form.marker, *(frame for frame, _ in form.frames)]
        parts = ["/(?s:.+)/"]
        if any(marks):
            found = "|".join(_exactly(mark) for mark in marks if mark)
            parts.append(f"~/(?s:.*)(?:{found})(?s:.*)/")
        return " & ".join(parts) + self._not_bare()

    def _not_bare(self) -> str:
        """That text does not begin with a bare block."""
        if not self._form.bare:
            return ""
        heads = "|".join(_spaced(" " + head) for head in self._bare_heads(self._use.tools))
        return f" & ~/(?:{heads})(?s:.*)/"

    # ---- blocks

    def _bare_heads(self, tools: Sequence[ToolSpec]) -> list[str]:
        form = self._form
        return [form.opening + form.head + tool.name + form.middle for tool in tools]

    def _block(self, several: bool, *, bare: bool = False) -> str:
        """The calls of a block, without its marker. `bare`: it competes with free text, so its
        first terminal is lazy and goes to where the parser decides."""
        form, tools = self._form, self._use.callable
        bodies = [self._body(tool) for tool in tools]
        heads = [self._fixed(form.head + tool.name + form.middle) for tool in tools]
        self._rules["call"] = _either(heads, bodies)
        first = f"{self._fixed(form.opening)} call"
        if bare:
            for index, head in enumerate(self._bare_heads(tools)):
                self._rules[f"h{index}[lazy]"] = _string(head)
            self._rules["first"] = _either([f"h{index}" for index in range(len(tools))], bodies)
            first = "first"
        more = ""
        if several and form.separator is not None:
            more = f"({self._fixed(form.separator)} call)*"
        return f"{first} {more} {self._fixed(form.closing)}"

    def _body(self, tool: ToolSpec) -> str:
        """What follows the name of a tool."""
        if self._form.arguments == "json":
            arguments = self._value(tool.schema)
        else:
            arguments = self._keywords(tool)
        return f"{arguments} {self._fixed(self._form.tail)}"

    def _value(self, schema: Mapping[str, Any]) -> str:
        """The rule of a JSON value."""
        text = json.dumps(schema)
        if text not in self._json:
            self._json[text] = f"j{len(self._json)}"
            self._rules[self._json[text]] = f"%json {text}"
        return self._json[text]

    def _keywords(self, tool: ToolSpec) -> str:
        """Keyword arguments in the order of the schema; optional ones may be left out."""
        schema = tool.schema
        _check_keywords(tool, schema)
        shared: dict[str, Any] = {
            key: schema[key] for key in ("$defs", "definitions") if key in schema
        }
        fields: Mapping[str, Any] = schema.get("properties", {})
        required = frozenset(schema.get("required", ()))
        prefix = f"k{len(self._rules)}_"
        head = tail = '""'
        for index, (name, value) in reversed(list(enumerate(fields.items()))):
            item = f"{_string(name + '=')} {self._python(value, shared)}"
            heads, tails = [f"{item} {tail}"], [f'", " {item} {tail}']
            if name not in required:
                heads.append(head)
                tails.append(tail)
            head, tail = f"{prefix}h{index}", f"{prefix}t{index}"
            self._rules[head], self._rules[tail] = " | ".join(heads), " | ".join(tails)
        return head

    def _python(self, schema: Any, shared: Mapping[str, Any]) -> str:
        """A value; JSON is Python here but for three words."""
        schema = {} if schema is True else schema
        if schema == {"type": "boolean"} or (
            isinstance(schema, Mapping)
            and schema.get("type") == "boolean"
            and not schema.keys() - {"type", "title", "description", "default"}
        ):
            return '("True" | "False")'
        if not isinstance(schema, Mapping):
            return self._value({"not": {}})
        return self._value({**schema, **shared})

    def _fixed(self, text: str) -> str:
        """A text that is written as it stands; special tokens by their ids."""
        if not text:
            return ""
        if not self._special.pattern:
            return _string(text)
        parts: list[str] = []
        at = 0
        for found in self._special.finditer(text):
            if found.start() > at:
                parts.append(_string(text[at : found.start()]))
            parts.append(f"<[{self._form.special[found[0]]}]>")
            at = found.end()
        if at < len(text):
            parts.append(_string(text[at:]))
        return " ".join(parts)


def _schema_beside(form: ToolFormat, answer: Constraint) -> Mapping[str, Any]:
    """The schema of an answer that stands beside calls.

    Raises:
        UnsupportedConstraint: it is no JSON, or may begin as a call of the format does.
    """
    schema = json.loads(answer.text) if answer.kind == "json_schema" else None
    why = ""
    if not isinstance(schema, dict):
        why = "an answer beside tools must be JSON of a schema"
    elif form.frames:
        why = f"the format {form.name} cannot have a constrained answer beside tools"
    elif not form.marker or form.marker not in form.special:
        first = (form.marker or form.opening + form.head)[:1]
        if first == "{" or (first in _BEGIN_JSON and schema.get("type") != "object"):
            why = f"in the format {form.name} such an answer begins as a call does"
    if why or schema is None:
        raise UnsupportedConstraint(
            why, value=answer.kind, hint="Leave the tools or the constraint out of this request."
        )
    return dict(schema)


def _either(heads: Sequence[str], bodies: Sequence[str]) -> str:
    return " | ".join(f"{head} {body}" for head, body in zip(heads, bodies, strict=True))


def _check_keywords(tool: ToolSpec, schema: Mapping[str, Any]) -> None:
    fields = schema.get("properties", {})
    for key in schema:
        if key not in _AS_KEYWORDS:
            raise UnsupportedConstraint(
                f"tool {tool.name}: {key} at # cannot be enforced on keyword arguments",
                value=key,
                hint="Leave it out, or say it of single properties.",
            )
    for name in (*fields, *schema.get("required", ())):
        if not name.isidentifier() or keyword.iskeyword(name) or name not in fields:
            raise UnsupportedConstraint(
                f"tool {tool.name}: {name!r} cannot be a keyword argument",
                value=name,
                hint="Properties need names that Python allows, and required ones a schema.",
            )


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _exactly(text: str) -> str:
    """A pattern of this text alone."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _spaced(text: str) -> str:
    """A pattern of all that the parser takes for this text."""
    return "".join(_exactly(char) if char else r"[ \t\r\n]*" for char in compiled(text))
