"""`branchline run FILE[:FUNCTION]`: one program of a file, live in the terminal."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import branchline as bl
from branchline.cli.options import engine_settings
from branchline.lang.program import Program
from branchline.runtime.errors import InvalidRequest


def run(arguments: argparse.Namespace) -> int:
    """Load the file, find the program, run it, show it."""
    program = find_program(arguments.file)
    values = program_arguments(program, arguments.args)
    with closing(make_backend(arguments)) as backend, backend:
        if arguments.plain or not sys.stdout.isatty():
            state = program.run(**values)
            print(state.text() if state.result is None else state.result)
        else:
            from branchline.lang.view.terminal import run_in_terminal

            state = run_in_terminal(program, values, backend=backend)
    if arguments.trace:
        state.graph.to_html(arguments.trace)
        print(f"trace: {arguments.trace}", file=sys.stderr)
    return 0


def make_backend(arguments: argparse.Namespace) -> bl.Engine | bl.Endpoint:
    """The engine of the given settings, or the server of `--endpoint`.

    Raises:
        InvalidRequest: settings for an engine that is the server's own.
    """
    settings = engine_settings(arguments)
    if not arguments.endpoint:
        return bl.Engine(**settings)
    if settings:
        raise InvalidRequest(
            "settings of the engine mean nothing with --endpoint",
            value=", ".join(settings),
            hint="Give them to `branchline serve`.",
        )
    return bl.Endpoint(arguments.endpoint)


def find_program(place: str) -> Program:
    """The program named by FILE or FILE:FUNCTION.

    Raises:
        InvalidRequest: no such file, no such function, or several and none named.
    """
    name = ""
    if not Path(place).exists() and ":" in place:
        place, _, name = place.rpartition(":")
    path = Path(place)
    if not path.is_file():
        hint = "Use branchline run FILE.py or FILE.py:FUNCTION."
        raise InvalidRequest("there is no such file", value=place, hint=hint)
    module = _load(path)
    programs: dict[str, Program] = {
        key: value for key, value in vars(module).items() if _is_program(value, module)
    }
    known = ", ".join(programs) or "none"
    if name:
        if name not in programs:
            hint = f"Programs (functions with @bl.function) of {path.name}: {known}."
            raise InvalidRequest("there is no such program", value=name, hint=hint)
        return programs[name]
    if not programs:
        hint = "Put @bl.function above the function that is the program."
        raise InvalidRequest("the file has no program", value=place, hint=hint)
    if len(programs) != 1:
        hint = f"Name one: branchline run {place}:NAME. Programs: {known}."
        raise InvalidRequest("the file does not have exactly one program", value=place, hint=hint)
    return next(iter(programs.values()))


def _is_program(value: object, module: ModuleType) -> bool:
    # A program imported from elsewhere is a part, not what the file is for.
    return isinstance(value, Program) and value.func.__module__ == module.__name__


def _load(path: Path) -> ModuleType:
    name = f"_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidRequest("this is not a Python file", value=path, hint="Name a .py file.")
    module = importlib.util.module_from_spec(spec)
    # As `python FILE` does: the file's neighbours can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def program_arguments(program: Program, given: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as the program's arguments, each with the type that it is annotated with.

    Raises:
        InvalidRequest: no "=", an unknown or missing name, or a value that is not JSON.
    """
    parameters = program.signature.parameters
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidRequest("--arg takes NAME=VALUE", value=text, hint=f"Use {text}=….")
        if name not in parameters:
            hint = f"Parameters: {', '.join(parameters) or 'none'}."
            raise InvalidRequest("the program has no such parameter", value=name, hint=hint)
        values[name] = _value(name, value, parameters[name].annotation)
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if name not in values and not optional:
            hint = f"Add --arg {name}=VALUE."
            raise InvalidRequest("the program needs an argument", value=name, hint=hint)
    return values


def _value(name: str, text: str, annotation: Any) -> Any:
    if annotation in (str, "str"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if annotation is inspect.Parameter.empty:
            return text
        hint = f"Give JSON that fits {annotation}."
        raise InvalidRequest(
            "an argument cannot be read", value=f"{name}={text}", hint=hint
        ) from None
