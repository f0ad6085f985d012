"""Reads text as a format has it, in any pieces.

Law: the events, joined, depend on the whole text alone and not on how it was cut. What a
constraint of the same tools allows is read as calls with valid arguments; all else is text. The
parser decides on every character as soon as it can be decided, and holds back nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from branchline.runtime.responses.arguments import (
    ArgumentsError,
    JsonScanner,
    PythonScanner,
    Scanner,
)
from branchline.runtime.responses.events import (
    ArgumentsPiece,
    CallBegin,
    CallBroken,
    CallEnd,
    TextPiece,
    ToolEvent,
)
from branchline.runtime.responses.formats import ToolFormat, Voice
from branchline.runtime.responses.literals import Alternatives
from branchline.runtime.responses.spans import Spans
from branchline.runtime.responses.specs import ToolSpec, check_tools
from branchline.runtime.responses.validation import validator

__all__ = [
    "ArgumentsPiece",
    "CallBegin",
    "CallBroken",
    "CallEnd",
    "TextPiece",
    "ToolEvent",
    "ToolParser",
    "tool_parser",
]

_SPACE = " \t\r\n"


def tool_parser(
    form: ToolFormat,
    tools: Sequence[ToolSpec],
    *,
    prefix: str | None = None,
    apart: bool = False,
) -> ToolParser:
    """A parser of one output.

    Args:
        prefix: of the calls' ids, which end in the call's index; None = drawn at random.
        apart: the output is calls alone or text alone, so that what does not begin as a call is
            text to its end, whatever it spells.

    Raises:
        InvalidRequest: no tools, or two of one name.
    """
    check_tools(tools)
    prefix = os.urandom(8).hex() if prefix is None else prefix
    return ToolParser(Reading(form, tools), prefix, apart=apart)


class Reading:
    """What parsers of one format and some tools share. May be used by several threads."""

    def __init__(self, form: ToolFormat, tools: Sequence[ToolSpec]) -> None:
        self.form = form
        self.tools = tuple(tools)
        self.voices: dict[str, Voice] = dict(form.frames)
        self.marks = sorted(filter(None, [form.marker, *self.voices]), key=len, reverse=True)
        self.search = re.compile("|".join(map(re.escape, self.marks)) or r"(?!)")
        before = (form.head or form.opening, form.head or form.separator or "")
        space = " " if any(text[-1:].isspace() for text in before) else ""
        self._names = {tool.name: space + tool.name + form.middle for tool in tools}
        opening = form.opening + form.head
        self._bare = {tool.name: f" {opening}{tool.name}{form.middle}" for tool in tools}
        more = {} if form.separator is None else {"more": form.separator + form.head}
        self._next = more | ({"close": form.closing} if form.closing else {})
        self._checks: dict[str, Callable[[dict[str, Any]], None]] = {}

    def openings(self) -> Alternatives[str]:
        """What stands between a marker and the first name."""
        return Alternatives({"head": self.form.opening + self.form.head})

    def names(self) -> Alternatives[str]:
        """A name and what follows it, for each tool."""
        return Alternatives(self._names)

    def bare(self) -> Alternatives[str]:
        """The beginning of a block without a marker, for each tool."""
        return Alternatives(self._bare)

    def tails(self) -> Alternatives[str]:
        """What ends a call."""
        return Alternatives({"tail": self.form.tail})

    def followers(self) -> Alternatives[str]:
        """What follows a call in its block."""
        return Alternatives(self._next)

    def scanner(self) -> Scanner:
        """For the arguments of one call."""
        return JsonScanner() if self.form.arguments == "json" else PythonScanner()

    def check(self, name: str, arguments: dict[str, Any]) -> None:
        """Raise `ArgumentsError` when they are not valid for the tool."""
        if name not in self._checks:
            tool = next(tool for tool in self.tools if tool.name == name)
            self._checks[name] = validator(tool)
        self._checks[name](arguments)

    @cached_property
    def longest_mark(self) -> int:
        """Characters of the longest marker or frame."""
        return max(map(len, self.marks), default=0)


class ToolParser:
    """One output. Made by `tool_parser`; not for several threads at once."""

    def __init__(self, reading: Reading, prefix: str, *, apart: bool = False) -> None:
        self._reading = reading
        self._form = reading.form
        self._prefix = prefix
        self._buffer = ""  # not decided yet
        self._read = 0
        self._spans = Spans()  # of reasoning
        self._events: list[ToolEvent] = []
        self._voice: Voice = "text"
        self._index = -1  # of the latest call
        self._name = ""
        self._taken: list[str] = []  # of what will be a call, or text after all
        self._scanner: Scanner = reading.scanner()
        self._arguments: list[str] = []
        self._matching: Alternatives[str] | None = None
        self._matched = 0  # characters of the buffer that `_matching` has seen
        self._gap = False  # white space is held back: a call came before it
        self._otherwise: Callable[[], bool] = self._plain if apart else self._text
        self._state: Callable[[], bool] = self._first if self._form.bare else self._text
        if apart and self._form.marker:
            self._state = self._marked

    def feed(self, text: str) -> list[ToolEvent]:
        """Take more text; the events that it decides."""
        self._buffer += text
        self._read += len(text)
        while self._state():
            pass
        return self._take_events()

    @property
    def reasoning(self) -> list[tuple[int, int]]:
        """Where in the text so far the reasoning stands, in a format with voices."""
        return self._spans.until(self._read)

    def finish(self) -> list[ToolEvent]:
        """The output has ended; the last events."""
        if self._state in (self._read_arguments, self._tail):
            self._break("the output ended inside the call", cut=True, whole=True)
        elif self._state in (self._opening, self._name_state):
            self._index += 1
            self._break("the output ended before the call's name", cut=True, whole=True)
        elif self._gap and not self._buffer.strip(_SPACE):
            self._buffer = ""
        self._say("".join(self._taken) + self._buffer)
        self._buffer, self._taken = "", []
        return self._take_events()

    # ---- states: each returns whether the buffer may hold more to decide

    def _first(self) -> bool:
        """Nothing was read: a block may begin without a marker."""
        found = self._match(self._reading.bare)
        if found is None:
            return False
        if not found:
            self._state = self._otherwise
            return True
        self._begin(found)
        return True

    def _marked(self) -> bool:
        """Nothing was read: a block begins with its marker, or all is text."""
        marker = self._form.marker
        if len(self._buffer) < len(marker) and marker.startswith(self._buffer):
            return False
        self._state = self._text if self._buffer.startswith(marker) else self._plain
        return True

    def _plain(self) -> bool:
        self._say(self._buffer)
        self._buffer = ""
        return False

    def _text(self) -> bool:
        if self._gap and not self._close_gap():
            return False
        found = self._reading.search.search(self._buffer)
        if found is None:
            held = self._partial_mark()
            self._say(self._buffer[: len(self._buffer) - held])
            self._buffer = self._buffer[len(self._buffer) - held :]
            return False
        self._say(self._buffer[: found.start()])
        self._buffer = self._buffer[found.end() :]
        behind = self._read - len(self._buffer)
        self._spans.end(behind - len(found[0]))
        voice = self._reading.voices.get(found[0])
        if voice == "reasoning":
            self._spans.begin(behind)
        if voice is not None:
            self._voice = voice
            return True
        self._taken = [found[0]]
        self._state = self._opening
        return True

    def _opening(self) -> bool:
        found = self._match(self._reading.openings)
        if found:
            self._state = self._name_state
        elif found is not None:
            self._give_up()
        return found is not None

    def _name_state(self) -> bool:
        found = self._match(self._reading.names)
        if found:
            self._begin(found)
        elif found is not None:
            self._give_up()
        return found is not None

    def _read_arguments(self) -> bool:
        if not self._buffer:
            return False
        try:
            end = self._scanner.scan(self._buffer)
        except ArgumentsError as error:
            self._taken.append(self._buffer[: error.at])
            self._buffer = self._buffer[error.at :]
            self._break(str(error))
            return True
        piece = self._buffer if end is None else self._buffer[:end]
        self._buffer = "" if end is None else self._buffer[end:]
        self._taken.append(piece)
        self._arguments.append(piece)
        if self._scanner.verbatim:
            if len(self._arguments) == 1:
                piece = piece.lstrip(_SPACE)
                self._arguments = [piece] if piece else []
            if piece:
                self._events.append(ArgumentsPiece(self._index, piece))
        if end is None:
            return False
        self._state = self._tail
        return True

    def _tail(self) -> bool:
        found = self._match(self._reading.tails)
        if found is None:
            return False
        if not found:
            self._break("the call does not end as it should")
            return True
        try:
            arguments = self._scanner.read("".join(self._arguments))
            self._reading.check(self._name, arguments)
        except ArgumentsError as error:
            self._break(str(error))
            return True
        if not self._scanner.verbatim:
            text = json.dumps(arguments, ensure_ascii=False)
            self._events.append(ArgumentsPiece(self._index, text))
        self._events.append(CallEnd(self._index, arguments))
        self._taken = []
        self._state = self._follow
        return True

    def _follow(self) -> bool:
        """After a call of a block."""
        if self._form.separator is None and not self._form.closing:
            return self._end_block()
        found = self._match(self._reading.followers)
        if found is None:
            return False
        if found == "more":
            self._state = self._name_state
            return True
        if found == "close":
            self._taken = []
        return self._end_block()

    # ---- steps

    def _end_block(self) -> bool:
        self._buffer, self._taken = "".join(self._taken) + self._buffer, []
        self._gap = True
        self._state = self._text
        return True

    def _begin(self, name: str) -> None:
        self._index += 1
        self._name = name
        self._scanner, self._arguments = self._reading.scanner(), []
        self._events.append(CallBegin(self._index, f"call_{self._prefix}{self._index}", name))
        self._state = self._read_arguments

    def _match(self, expected: Callable[[], Alternatives[str]]) -> str | None:
        """Match the buffer with what is expected: the key; "" = it does not match; None = more is
        needed. What matched is moved to `_taken`."""
        if self._matching is None:
            self._matching, self._matched = expected(), 0
            found = self._matching.at_once()
            if found is not None:
                self._matching = None
                return found
        while self._matched < len(self._buffer):
            found = self._matching.step(self._buffer[self._matched])
            self._matched += 1
            if found is not None:
                self._taken.append(self._buffer[: self._matched])
                self._buffer = self._buffer[self._matched :]
                self._matching = None
                return found
            if self._matching.dead:
                self._matching = None
                return ""
        return None

    def _give_up(self) -> None:
        """No call after all: what began it is text, what came behind is read again."""
        marker, rest = self._taken[0], self._taken[1:]
        self._buffer, self._taken = "".join(rest) + self._buffer, []
        self._gap = False
        self._say(marker)
        self._state = self._text

    def _break(self, reason: str, *, cut: bool = False, whole: bool = False) -> None:
        if whole:
            self._taken.append(self._buffer)
            self._buffer = ""
        text, self._taken = "".join(self._taken), []
        self._events.append(CallBroken(self._index, text, reason, cut))
        self._gap = False
        self._matching = None
        self._state = self._text

    def _close_gap(self) -> bool:
        """Whether it is known what the white space behind a call stands before."""
        rest = self._buffer.lstrip(_SPACE)
        marker = self._form.marker
        if not rest or (len(rest) < len(marker) and marker.startswith(rest)):
            return False
        self._gap = False
        if marker and rest.startswith(marker):
            self._buffer = rest
        return True

    def _partial_mark(self) -> int:
        """Characters at the buffer's end that may begin a marker or frame."""
        for size in range(min(self._reading.longest_mark - 1, len(self._buffer)), 0, -1):
            end = self._buffer[-size:]
            if any(mark.startswith(end) for mark in self._reading.marks if len(mark) > size):
                return size
        return 0

    def _say(self, text: str) -> None:
        if text:
            self._events.append(TextPiece(text, self._voice))

    def _take_events(self) -> list[ToolEvent]:
        found, self._events = self._events, []
        return list(_joined(found))


def _joined(events: Iterable[ToolEvent]) -> Iterable[ToolEvent]:
    """Neighbouring pieces of text as one."""
    last: TextPiece | None = None
    for event in events:
        if isinstance(event, TextPiece) and last is not None and last.voice == event.voice:
            last = TextPiece(last.text + event.text, last.voice)
            continue
        if last is not None:
            yield last
        last = event if isinstance(event, TextPiece) else None
        if last is None:
            yield event
    if last is not None:
        yield last
