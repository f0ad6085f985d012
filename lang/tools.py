"""Tools: Python functions a model may call, what it has called, and the results it gets back.

Invariant: the arguments of a call are instances of the types that the function declares, so a
function is never called with anything else. Knows nothing of formats, states or backends.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from branchline.lang.errors import ConstraintError, InvalidRequest, ProgramError, TruncatedError
from branchline.lang.json_types import MAX_INT, Mismatch
from branchline.lang.markers import reject
from branchline.lang.plain import DATE_PATTERN, DATETIME_PATTERN, TIME_PATTERN, UUID_PATTERN
from branchline.lang.schemas import Document, document_of_fields
from branchline.lang.types import load_json
from branchline.runtime.programs import protocol
from branchline.runtime.responses import ToolSpec, ToolUse, read_spec

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ITEM = re.compile(r"^(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_PARAM = re.compile(r"^:param\s+(?:\w+\s+)?(\w+):\s*(.*)$")


CALL_DEFAULTS = {"max_tokens": 512}
"""Weaker than every other default: a call cut short is of no use."""


_FORMATS = {
    f"^({pattern})$": name
    for pattern, name in (
        (DATE_PATTERN, "date"),
        (TIME_PATTERN, "time"),
        (DATETIME_PATTERN, "date-time"),
        (UUID_PATTERN, "uuid"),
    )
}


class Tool:
    """Something a model may call; calling it runs the function. Made by `tool`.

    Attributes:
        spec: what the model is told.
        func: the function; None for a tool that is only described.
        asynchronous: the function is an `async def`.
    """

    def __init__(
        self, spec: ToolSpec, func: Callable[..., Any] | None, read: Document | None
    ) -> None:
        self.spec = spec
        self.func = func
        self.asynchronous = inspect.iscoroutinefunction(func)
        self._read = read
        self.__doc__ = spec.description
        self.__name__ = spec.name

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.func is None:
            raise ProgramError(
                f"tool {self.name!r} is described only; there is nothing to run",
                value=self.name,
                hint="Make it of a function with @bl.tool, or run it yourself.",
            )
        return self.func(*args, **kwargs)

    def arguments(self, text: str) -> dict[str, Any]:
        """The arguments that a JSON text stands for, as instances.

        Raises:
            ConstraintError: a class's own validation refuses them.
        """
        try:
            value = load_json(text)
            found: dict[str, Any] = value if self._read is None else self._read.root.decode(value)
        except (Mismatch, ValueError) as error:
            raise ConstraintError(
                f"the arguments of a call of {self.name!r} are not valid: {error}",
                value=text,
                hint="Loosen the class's own validation, or state it in the type.",
            ) from error
        return found


class ToolFailure(msgspec.Struct, frozen=True):
    """What `Call.run` gives when the tool raises; as a result it tells the model of the error."""

    error: Exception

    def __str__(self) -> str:
        return f"Error: {type(self.error).__name__}: {self.error}"


class Call:
    """A call that the model has made.

    Attributes:
        id: names it in the conversation.
        name: of the tool.
        arguments: instances of the parameters' types; those left out are not there.
    """

    __slots__ = ("_tool", "arguments", "id", "name")

    def __init__(self, tool: Tool, made: protocol.ToolCall) -> None:
        self.id = made.id
        self.name = made.name
        self.arguments = tool.arguments(made.arguments)
        self._tool = tool

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({given})"

    def run(self) -> Any:
        """Run the tool: what it returns, or a `ToolFailure` when it raises.

        An async tool gives something to await where an event loop runs; elsewhere it is waited
        for. Raises `ProgramError` for a tool without a function.
        """
        if self._tool.asynchronous:
            import asyncio

            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(self.arun())
            return self.arun()
        if self._tool.func is None:
            return self._tool()  # says what is missing
        try:
            return self._tool(**self.arguments)
        except Exception as error:
            return ToolFailure(error)

    async def arun(self) -> Any:
        """Like `run`; a sync tool runs in a thread."""
        if not self._tool.asynchronous:
            import asyncio

            return await asyncio.to_thread(self.run)
        try:
            return await self._tool(**self.arguments)
        except Exception as error:
            return ToolFailure(error)


class Reply:
    """What a model says that may call tools; as a str, the text.

    Attributes:
        text: what is no call.
        calls: in order.
    """

    __slots__ = ("calls", "text")

    def __init__(self, text: str, calls: Iterable[Call] = ()) -> None:
        self.text = text
        self.calls = list(calls)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Reply({self.text!r}, {self.calls!r})"


class ToolBox(msgspec.Struct, frozen=True):
    """The tools of one expression.

    Attributes:
        tools: by name.
        use: what the backend is asked.
    """

    tools: dict[str, Tool]
    use: ToolUse

    def reply(self, found: protocol.ToolReply, *, truncated: bool) -> Reply:
        """The reply with typed calls.

        Raises:
            TruncatedError: the output was cut before a call was complete.
            ConstraintError: a class's own validation refuses arguments.
        """
        must = self.use.choice not in ("auto", "none")
        if truncated and (found.cut or (must and not found.calls)):
            raise TruncatedError(
                "the output was cut by max_tokens before the tool call was complete",
                value=found.text,
                hint="Raise max_tokens; the text is in meta(...).text.",
            )
        calls = [Call(self.tools[made.name], made) for made in found.calls]
        return Reply(found.text, calls)


def make_tool(
    func: Callable[..., Any], *, name: str | None = None, description: str | None = None
) -> Tool:
    """A tool of a function: its parameters' types are the schema, its docstring says the rest.

    Raises:
        InvalidRequest: a parameter has no type, or cannot be given by name.
        UnsupportedConstraint: a type that cannot be enforced; names the parameter.
    """
    name = name if name is not None else str(getattr(func, "__name__", ""))
    try:
        hints = typing.get_type_hints(func, include_extras=True)
    except (NameError, TypeError) as error:
        raise InvalidRequest(
            f"the annotations of tool {name!r} cannot be read: {error}",
            value=name,
            hint="Define what they name at module level.",
        ) from error
    fields: dict[str, Any] = {}
    required: list[str] = []
    kinds = inspect.Parameter
    for parameter in inspect.signature(func).parameters.values():
        if parameter.kind not in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY):
            raise InvalidRequest(
                f"a parameter of tool {name!r} cannot be given by name",
                value=str(parameter),
                hint="Use ordinary parameters.",
            )
        if parameter.name not in hints:
            raise InvalidRequest(
                f"a parameter of tool {name!r} has no type",
                value=parameter.name,
                hint=f"Annotate it: {parameter.name}: str.",
            )
        fields[parameter.name] = hints[parameter.name]
        if parameter.default is kinds.empty:
            required.append(parameter.name)
    read = document_of_fields(name, fields, required)
    about, notes = read_docstring(inspect.getdoc(func) or "")
    schema = dict(read.schema)
    schema["properties"] = {
        key: {**value, "description": notes[key]} if key in notes else value
        for key, value in schema["properties"].items()
    }
    spec = ToolSpec(
        name=name,
        description=description or about,
        parameters=read.schema,
        display=displayed(schema),
    )
    return Tool(spec, func, read)


def displayed(schema: Any) -> Any:
    """A schema in fewer words, for a model to read: formats by name, no bounds without meaning."""
    if isinstance(schema, list):
        return [displayed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: displayed(value)
        for key, value in schema.items()
        if not (key in ("minimum", "maximum") and value in (-MAX_INT, MAX_INT))
    }
    known = _FORMATS.get(found["pattern"]) if isinstance(found.get("pattern"), str) else None
    if known is not None:
        del found["pattern"]
        found["format"] = known
    return found


def as_tool(value: object) -> Tool:
    """A tool as it is; a function made one; a dict in OpenAI's form, described only."""
    if isinstance(value, Tool):
        return value
    if callable(value):
        return make_tool(value)
    return Tool(read_spec(value), None, None)


def toolbox(tools: object, choice: object, parallel: bool) -> ToolBox:
    """The tools of an expression.

    Raises `InvalidRequest` for no tools, two of one name, or a choice that none of them has.
    """
    given = (tools,) if isinstance(tools, (Tool, Mapping)) or callable(tools) else tools
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise InvalidRequest("tools is a list of tools", value=tools, hint="Give tools=[...].")
    found = [as_tool(each) for each in given]
    wanted = choice.name if isinstance(choice, Tool) else choice
    if not isinstance(wanted, str):
        raise InvalidRequest(
            "a tool choice is a text or a tool",
            value=choice,
            hint="Use auto, required, none, or a tool's name.",
        )
    specs = tuple(tool.spec for tool in found)
    use = ToolUse(tools=specs, choice=reject(wanted, "a tool choice"), parallel=parallel)
    return ToolBox({tool.name: tool for tool in found}, use)


def result_text(value: object) -> str:
    """A tool's result as the model reads it: text as it is, all else as JSON where it can be."""
    if isinstance(value, BaseException):
        value = ToolFailure(value) if isinstance(value, Exception) else str(value)
    if isinstance(value, (str, ToolFailure)):
        return str(value)
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return str(value)


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of each of its arguments.

    Reads sections with a heading (`Args:`) and fields (`:param x:`).
    """
    about: list[str] = []
    notes: dict[str, str] = {}
    section, item, indent = "", "", 0
    for line in text.splitlines():
        found = _SECTION.match(line)
        field = _PARAM.match(line.strip())
        if found is not None:
            section, item = found[1], ""
        elif field is not None:
            section, item = "Args", field[1]
            notes[item] = field[2].strip()
            indent = len(line) - len(line.lstrip())
        elif not section:
            if not line.strip().startswith(":"):
                about.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            entry = _ITEM.match(line.strip())
            if entry is not None and (not item or depth <= indent):
                item, indent = entry[1], depth
                notes[item] = entry[2].strip()
            elif item and depth > indent:
                notes[item] = f"{notes[item]} {line.strip()}".strip()
    return " ".join("\n".join(about).split()), {key: note for key, note in notes.items() if note}
