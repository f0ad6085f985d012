"""Tools as a model is told of them: a name, what it does, and a schema of its arguments.

Invariant: a spec that was made is well-formed: a name that no format has to escape, and parameters
that are the schema of an object. Whether a schema can be enforced is for the grammar to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from branchline.runtime.errors import InvalidRequest

ToolChoice = str
"""`auto` (text or calls), `required` (at least one call), `none` (text), or the name of a tool."""

WORDS = frozenset({"auto", "required", "none"})
MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tool.

    Attributes:
        name: a letter or `_`, then letters, digits, `_`, `.` and `-`, 64 at most.
        description: for the model.
        parameters: JSON Schema of the arguments, an object; `{}` = it takes none.
        display: the schema that the model is shown, where that says the same with fewer words.

    Raises:
        InvalidRequest: the name or the schema is not of that form.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    display: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            _refuse("not the name of a tool", self.name, "Use letters, digits, _, . and -.")
        if self.name in WORDS:
            _refuse("a tool has the name of a tool choice", self.name, "Give it another name.")
        if not isinstance(self.parameters, Mapping):
            _refuse(f"the parameters of tool {self.name} are no schema", self.parameters)
        kind = self.parameters.get("type", "object")
        if kind != "object":
            _refuse(f"the parameters of tool {self.name} are no object", kind)

    @property
    def schema(self) -> dict[str, Any]:
        """The parameters, spelled out: the schema of an object, closed when it takes none."""
        schema = {"type": "object", **self.parameters}
        if not self.parameters:
            schema |= {"properties": {}, "additionalProperties": False}
        return schema

    @property
    def shown(self) -> dict[str, Any]:
        """The schema as the model is shown it."""
        return self.schema if self.display is None else {"type": "object", **self.display}

    def to_openai(self) -> dict[str, Any]:
        """The form that chat templates and OpenAI's API take."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {"properties": {}, **self.shown},
        }
        return {"type": "function", "function": function}


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """Which tools an output may call, and whether it has to.

    Attributes:
        choice: see `ToolChoice`.
        parallel: more than one call is allowed.

    Raises:
        InvalidRequest: no tool, too many, two of one name, or a choice that is none of them.
    """

    tools: tuple[ToolSpec, ...]
    choice: ToolChoice = "auto"
    parallel: bool = True

    def __post_init__(self) -> None:
        check_tools(self.tools)
        names = [tool.name for tool in self.tools]
        if self.choice not in WORDS and self.choice not in names:
            known = ", ".join([*sorted(WORDS), *names])
            _refuse("no tool has the name that is chosen", self.choice, f"Known: {known}.")

    @property
    def callable(self) -> tuple[ToolSpec, ...]:
        """The tools that the choice leaves."""
        if self.choice in WORDS:
            return () if self.choice == "none" else self.tools
        return tuple(tool for tool in self.tools if tool.name == self.choice)


def check_tools(tools: Sequence[ToolSpec]) -> None:
    """Raise `InvalidRequest` for no tools, too many, or two of one name."""
    if not tools:
        _refuse("no tools", "[]", "Give at least one.")
    if len(tools) > MAX_TOOLS:
        _refuse("too many tools", len(tools), f"Give at most {MAX_TOOLS}.")
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        _refuse("two tools have one name", twice, "Rename one of them.")


def read_spec(value: object) -> ToolSpec:
    """A spec from a dict as OpenAI's APIs (`{"type": "function", "function": {...}}`, or flat) or
    Anthropic's (`input_schema`) have it.

    Raises `InvalidRequest` for anything else; names what is missing.
    """
    if isinstance(value, ToolSpec):
        return value
    if not isinstance(value, Mapping):
        _refuse("not a tool", value)
    if value.get("type", "function") != "function":
        _refuse("a tool of an unknown type", value.get("type"), "Only functions can be called.")
    body = value.get("function", value)
    if not isinstance(body, Mapping) or "name" not in body:
        _refuse("a tool without a name", value)
    parameters = body.get("parameters", body.get("input_schema"))
    return ToolSpec(
        name=body["name"],
        description=str(body.get("description") or ""),
        parameters={} if parameters is None else parameters,
    )


def _refuse(
    what: str, value: object, hint: str = "Give name, description and parameters."
) -> NoReturn:
    raise InvalidRequest(what, value=value, hint=hint)
