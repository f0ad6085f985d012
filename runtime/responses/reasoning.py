"""Reasoning sections: what a model thinks before it answers, told apart from the answer.

Laws: the pieces joined are the same however a text was split; every character of a text is part of
the reasoning, of the answer, or of the markup between them. A format is found from the model's own
chat template. Knows no engine and no constraint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from branchline.runtime.core.section import Section
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.responses.spans import Spans

Position = Literal["open", "closed", "undecided"]
"""Where a turn stands: inside a section; behind one; or before the model has shown which."""


class ReasoningFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models marks its reasoning.

    Attributes:
        name: see `FORMATS`.
        begin, end: what stands around a section.
        gap: what stands between a section and the answer. White space may be shorter; other text is
            there as a whole, or what follows is part of the answer.
        again: what opens one more section right behind one; "" = there is only one.
        answer: what opens an answer that has no section before it.
        off: what a turn begins with in which the model is not to think; "" = nothing.
        by_default: the model thinks unless it is told otherwise.
    """

    name: str
    begin: str
    end: str
    gap: str = "\n\n"
    again: str = ""
    answer: str = ""
    off: str = ""
    by_default: bool = True

    def position(self, turn: str) -> Position:
        """Where the next token of an assistant turn stands.

        Args:
            turn: text of the turn so far, the markup that opens it included.
        """
        begun, ended = turn.rfind(self.begin), turn.rfind(self.end)
        if begun < 0 and ended < 0:
            return "closed" if self.answer and self.answer in turn else "undecided"
        return "open" if begun > ended else "closed"

    def section(self, encode: Callable[[str], Sequence[int]]) -> Section:
        """The section that an output begins with, where one is open.

        Args:
            encode: ids of markup: special-token strings are read as such.
        """
        return Section(end=self.end, gap=self.gap, gap_ids=tuple(encode(self.gap)))


def _tags(name: str, begin: str, end: str, gap: str = "\n\n") -> ReasoningFormat:
    return ReasoningFormat(name=name, begin=begin, end=end, gap=gap)


FORMATS: dict[str, ReasoningFormat] = {
    item.name: item
    for item in (
        ReasoningFormat(
            name="harmony",
            begin="<|channel|>analysis<|message|>",
            end="<|end|>",
            gap="<|start|>assistant<|channel|>final<|message|>",
            again="<|start|>assistant<|channel|>analysis<|message|>",
            answer="<|channel|>final<|message|>",
            off="<|channel|>final<|message|>",
        ),
        _tags("mistral", "[THINK]", "[/THINK]", ""),
        _tags("cohere", "<|START_THINKING|>", "<|END_THINKING|>", ""),
        _tags("kimi", "◁think▷", "◁/think▷"),
        _tags("seed", "<seed:think>", "</seed:think>"),
        _tags("think", "<think>", "</think>"),
        _tags("thinking", "<thinking>", "</thinking>"),
        _tags("reasoning", "<reasoning>", "</reasoning>"),
    )
}
"""Formats by name."""

ALIASES = {
    "gpt-oss": "harmony",
    "gpt_oss": "harmony",
    "magistral": "mistral",
    "deepseek-r1": "think",
    "deepseek_r1": "think",
    "deepseek-v3": "think",
    "deepseek_v3": "think",
    "qwen3": "think",
    "qwen3-thinking": "think",
    "glm45": "think",
    "kimi_k2": "think",
    "step3": "think",
    "minimax": "think",
}
"""Other names: those of models, as servers name their reasoning parsers."""


def format_named(name: str) -> ReasoningFormat:
    """The format of that name.

    Raises:
        InvalidRequest: there is none; names those there are.
    """
    found = FORMATS.get(ALIASES.get(name.lower(), name.lower()))
    if found is None:
        known = ", ".join(sorted([*FORMATS, *ALIASES]))
        raise InvalidRequest("unknown reasoning format", value=name, hint=f"Known: {known}.")
    return found


def detect_reasoning(chat_template: str) -> ReasoningFormat | None:
    """The format that a chat template speaks of; None for models that do not think."""
    for item in FORMATS.values():
        markers = (item.end,) if item.name != "harmony" else ("<|channel|>", "analysis")
        if all(marker in chat_template for marker in markers):
            switch = "enable_thinking" in chat_template
            empty = f"{item.begin}\n\n{item.end}{item.gap}" if switch else ""
            asked = not switch and _ASKED_FOR.search(chat_template) is not None
            return msgspec.structs.replace(item, off=item.off or empty, by_default=not asked)
    return None


_ASKED_FOR = re.compile(r"\bif\s+thinking\b")
"""Of templates in which a variable turns reasoning on."""


class ReasoningPiece(NamedTuple):
    """More of the reasoning."""

    text: str


class AnswerPiece(NamedTuple):
    """More of the answer."""

    text: str


Piece = ReasoningPiece | AnswerPiece
_Where = Literal["start", "reasoning", "gap", "answer"]
_BEGIN: dict[Position, _Where] = {"open": "reasoning", "closed": "answer", "undecided": "start"}


class ReasoningParser:
    """Reads one output.

    White space around the reasoning belongs to the markup. Where the model has not shown yet
    whether it thinks, a text that does not begin with a section is all answer.

    Args:
        format: of the model.
        position: where the output begins; see `ReasoningFormat.position`.
    """

    def __init__(self, format: ReasoningFormat, position: Position = "undecided") -> None:
        self._format = format
        self._where: _Where = _BEGIN[position]
        self._held = ""
        self._shown = False  # some of this section has been given out
        self._lead = ""  # between this section and the one before
        self._gap_left = ""  # of a gap of white space
        self._read = 0
        self._spans = Spans()
        if self._where == "reasoning":
            self._spans.begin(0)

    @property
    def complete(self) -> bool:
        """False while a section is open: the answer has not begun."""
        return self._where not in ("reasoning", "start")

    @property
    def sections(self) -> list[tuple[int, int]]:
        """Where the sections stand in the text so far, without their markers."""
        return self._spans.until(self._read)

    def feed(self, text: str) -> list[Piece]:
        """Read on; gives what is certain."""
        self._held += text
        self._read += len(text)
        return self._run(finished=False)

    def finish(self) -> list[Piece]:
        """Nothing follows; gives the rest."""
        return self._run(finished=True)

    def _run(self, *, finished: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            where = self._where
            if where == "start":
                self._start(finished)
            elif where == "reasoning":
                self._reasoning(pieces, finished)
            elif where == "gap":
                self._gap(finished)
            if self._where == where:
                break
        if self._where == "answer" and self._held:
            pieces.append(AnswerPiece(self._held))
            self._held = ""
        return pieces

    def _start(self, finished: bool) -> None:
        held = self._held.lstrip()
        openings: list[tuple[str, _Where]] = [
            (self._format.begin, "reasoning"),
            (self._format.answer, "answer"),
        ]
        for opening, where in openings:
            if opening and held.startswith(opening):
                self._where, self._held = where, held[len(opening) :]
                self._note()
                return
        if finished or not any(opening and opening.startswith(held) for opening, _ in openings):
            self._where = "answer"

    def _reasoning(self, pieces: list[Piece], finished: bool) -> None:
        text, found, rest = self._held.partition(self._format.end)
        if not found and not finished:
            text, rest = _split_off(text, _overlap(text, self._format.end))
        if not self._shown:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            pieces.append(ReasoningPiece(self._lead + kept))
            self._shown, self._lead = True, ""
        if found:
            self._spans.end(self._read - len(rest) - len(found))
            self._lead = "\n\n" if self._shown else self._lead
            self._shown = False
            self._where, self._held = "gap", rest
            self._gap_left = "" if self._format.gap.strip() else self._format.gap
        else:
            self._held = "" if finished else text[len(kept) :] + rest

    def _gap(self, finished: bool) -> None:
        while self._gap_left and self._held.startswith(self._gap_left[0]):
            self._held, self._gap_left = self._held[1:], self._gap_left[1:]
        exact = self._format.gap if self._format.gap.strip() else ""
        options: list[tuple[str, _Where]] = [(self._format.again, "reasoning"), (exact, "answer")]
        for text, where in options:
            if text and self._held.startswith(text):
                self._where, self._held = where, self._held[len(text) :]
                self._note()
                return
        if not finished:
            if self._gap_left and not self._held:
                return
            if any(text and text.startswith(self._held) for text, _ in options):
                return
        self._where = "answer"

    def _note(self) -> None:
        if self._where == "reasoning":
            self._spans.begin(self._read - len(self._held))


class Split(NamedTuple):
    """An output, divided.

    Attributes:
        complete: False when it ended inside its reasoning.
    """

    reasoning: str
    answer: str
    complete: bool


def split(format: ReasoningFormat, text: str, position: Position = "undecided") -> Split:
    """A whole output at once."""
    parser = ReasoningParser(format, position)
    pieces = [*parser.feed(text), *parser.finish()]
    thought = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece))
    answer = "".join(piece.text for piece in pieces if isinstance(piece, AnswerPiece))
    return Split(thought, answer, parser.complete)


def _overlap(text: str, marker: str) -> int:
    """Characters at the end of `text` that may be the beginning of `marker`."""
    most = min(len(text), len(marker) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(marker[:n])), 0)


def _split_off(text: str, count: int) -> tuple[str, str]:
    return (text[: len(text) - count], text[len(text) - count :])
