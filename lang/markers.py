"""Expressions inside ordinary strings: how `f"... {gen('x')} ..."` keeps its `gen`.

Formatting an expression gives a *marker*: a private-use character, a number drawn once per process,
the encoded expression, its checksum, and a closing character. `split` finds markers again. Nothing
is registered, so a marker costs no memory and never expires; the number cannot be guessed, so text
from elsewhere never turns into an expression; a marker that was cut or altered is an error.

Objects that have no encoding (Python types, calls of programs) travel as a `Box`: their key in a
bounded table. Knows nothing of what the payload means.
"""

from __future__ import annotations

import binascii
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache

from branchline.lang.errors import ProgramError

_OPEN = "\ue0b1"
_CLOSE = "\ue0b2"
MAX_BOXED = 4096


@cache
def _nonce() -> str:
    """Digits only, so that changing the case of a marker does not hide it."""
    return str(int.from_bytes(os.urandom(8), "big"))


@cache
def _pattern() -> re.Pattern[str]:
    return re.compile(f"{_OPEN}{_nonce()}:([0-9]+):([A-Za-z0-9+/=]*){_CLOSE}")


def wrap(payload: bytes) -> str:
    """A marker that carries `payload`."""
    body = binascii.b2a_base64(payload, newline=False).decode("ascii")
    return f"{_OPEN}{_nonce()}:{binascii.crc32(payload)}:{body}{_CLOSE}"


def present(text: str) -> bool:
    """True when `text` holds a marker, whole or damaged."""
    return _nonce() in text


def split(text: str) -> list[str | bytes]:
    """The pieces of `text`: plain text and payloads, in order, empty texts left out.

    Raises `ProgramError` when a marker was cut or changed.
    """
    if not present(text):
        return [text] if text else []
    pieces: list[str | bytes] = []
    at = 0
    for match in _pattern().finditer(text):
        _add_plain(pieces, text[at : match.start()])
        pieces.append(_payload(match))
        at = match.end()
    _add_plain(pieces, text[at:])
    return pieces


stand_in: ContextVar[Callable[[bytes], str] | None] = ContextVar("stand_in", default=None)
"""While a program is traced: the plain text to take in the place of an unknown value's marker."""


def reject(text: str, where: str) -> str:
    """Return `text`; raise `ProgramError` when it is none, or holds an expression, which `where`
    cannot.

    In a program that is being traced, values that are not known yet are replaced by a stand-in.
    """
    if not isinstance(text, str):
        raise ProgramError(f"{where} is a {type(text).__name__}", value=text, hint="Give a str.")
    if present(text):
        replace = stand_in.get()
        if replace is not None:
            pieces = split(str.__str__(text))
            return "".join(p if isinstance(p, str) else replace(p) for p in pieces)
        raise ProgramError(
            f"an expression was formatted into {where}, which takes plain text only",
            hint="Expressions in f-strings can only be appended: s += f'... {gen(...)} ...'.",
        )
    return text


def _payload(match: re.Match[str]) -> bytes:
    try:
        payload = binascii.a2b_base64(match[2])
    except binascii.Error as error:
        raise _damaged() from error
    if binascii.crc32(payload) != int(match[1]):
        raise _damaged()
    return payload


def _add_plain(pieces: list[str | bytes], text: str) -> None:
    if present(text):
        raise _damaged()
    if text:
        pieces.append(text)


class BrokenMarker(ProgramError):
    """A string that holds a part of a marker."""


def _damaged() -> BrokenMarker:
    return BrokenMarker(
        "a string with an expression in it was cut or changed before it was appended",
        hint="Append it as it is, or change the text before formatting the expression into it.",
    )


class Box:
    """An object that a marker can only refer to."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class BoxTable:
    """The most recently used boxed objects; equal hashable objects share one entry.

    Bounded: beyond `limit` the least recently used entry goes, and a string that still refers to it
    raises `ProgramError` when it is appended.
    """

    def __init__(self, limit: int = MAX_BOXED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._by_key: OrderedDict[int, Box] = OrderedDict()
        self._keys: dict[object, int] = {}
        self._next = 0

    def put(self, box: Box) -> int:
        """The key of `box`."""
        identity = self._identity(box)
        with self._lock:
            key = self._keys.get(identity)
            if key is None:
                key, self._next = self._next, self._next + 1
                self._keys[identity] = key
            self._by_key[key] = box
            self._by_key.move_to_end(key)
            if len(self._by_key) > self._limit:
                _, oldest = self._by_key.popitem(last=False)
                self._keys.pop(self._identity(oldest), None)
            return key

    def get(self, key: int) -> Box:
        """The box of `key`; `ProgramError` when it has gone."""
        with self._lock:
            box = self._by_key.get(key)
            if box is None:
                raise ProgramError(
                    "a string refers to an expression that is no longer known",
                    hint="Append strings with expressions soon after they are made.",
                )
            self._by_key.move_to_end(key)
            return box

    def __len__(self) -> int:
        return len(self._by_key)

    @staticmethod
    def _identity(box: Box) -> object:
        try:
            hash(box.value)
        except TypeError:
            return (None, id(box.value))
        return (type(box.value), box.value)


@cache
def boxes() -> BoxTable:
    """The process's table; markers are strings and may go anywhere in the process."""
    return BoxTable()
