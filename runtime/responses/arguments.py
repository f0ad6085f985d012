"""The arguments of a call: where their text ends, and what it says.

Invariant: an end is found by brackets and quotes alone, character by character, so that it does
not depend on how the text was cut; a text that is then no object is an `ArgumentsError`.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, NoReturn, Protocol

_SPACE = " \t\r\n"


class ArgumentsError(ValueError):
    """A text is no arguments of the tool; says why, in one clause.

    Args:
        at: characters of the text that was given last which come before what is wrong.
    """

    def __init__(self, why: str, at: int = 0) -> None:
        super().__init__(why)
        self.at = at


class Scanner(Protocol):
    """Finds the end of a call's arguments.

    Attributes:
        verbatim: the text is JSON already.
    """

    verbatim: bool

    def scan(self, text: str) -> int | None:
        """Take more text: how many of its characters belong to the arguments; None = all, and
        more may. Raises `ArgumentsError` when these are no arguments."""

    def read(self, text: str) -> dict[str, Any]:
        """The whole text's value; raises `ArgumentsError`."""


class JsonScanner:
    """An object in JSON; ends with its closing brace."""

    verbatim = True

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str) -> int | None:
        """See `Scanner.scan`."""
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif not self._depth:
                if char == "{":
                    self._depth = 1
                elif char not in _SPACE:
                    raise ArgumentsError("the arguments are no JSON object", at)
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return None

    def read(self, text: str) -> dict[str, Any]:
        """See `Scanner.read`."""
        try:
            value = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ArgumentsError(f"the arguments are no JSON ({error})") from error
        return _whole(value)


class PythonScanner:
    """Keyword arguments of a Python call; end before the parenthesis that closes it."""

    verbatim = False

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def scan(self, text: str) -> int | None:
        """See `Scanner.scan`."""
        for at, char in enumerate(text):
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._depth += 1
            elif char in ")]}":
                if not self._depth:
                    return at
                self._depth -= 1
        return None

    def read(self, text: str) -> dict[str, Any]:
        """See `Scanner.read`. `true`, `false` and `null` are read as JSON has them."""
        try:
            call = ast.parse(f"f({_ESCAPE.sub(_escape, text)})", mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ArgumentsError(f"the arguments are no Python ({error})") from error
        if not isinstance(call, ast.Call) or call.args:
            raise ArgumentsError("the arguments have no names")
        found: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in found:
                raise ArgumentsError("an argument is given twice, or by **")
            try:
                found[keyword.arg] = _python_value(keyword.value)
            except RecursionError as error:
                raise ArgumentsError("the arguments are nested too deeply") from error
        return _whole(found)


_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def _escape(found: re.Match[str]) -> str:
    """What Python has no meaning for is a backslash, but for JSON's slash."""
    if found[1] == "/":
        return "/"
    return found[0] if found[1] in "\n\\'\"abfnrtvxuUN0" else f"\\\\{found[1]}"


_NAMES = {"true": True, "false": False, "null": None}


def _python_value(node: ast.expr) -> Any:
    """The JSON value that a literal stands for."""
    match node:
        case ast.Constant(value=str() as text):
            return _paired(text)
        case ast.Constant(value=None | bool() | int() | float()):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_python_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return dict(zip(map(_key, keys), map(_python_value, values), strict=True))
    raise ArgumentsError("an argument is no literal value")


def _paired(text: str) -> str:
    """Characters that were written as two halves, as JSON has them, become one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _paired(node.value)
    raise ArgumentsError("a name in an object is no text")


def _whole(value: Any) -> dict[str, Any]:
    """An object without half characters and endless numbers."""
    if not isinstance(value, dict):
        raise ArgumentsError("the arguments are no object")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise ArgumentsError(f"the arguments cannot be written as JSON ({error})") from error
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
