"""What a lane was given and what it wrote, in order, as the language sees it.

A forked lane refers to its parent's pieces and never copies them. Knows nothing of templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from branchline.lang.variables import Slot, Variable


class RoleMark(NamedTuple):
    """A turn begins, or (role "") ends."""

    role: str


Piece = str | Slot | RoleMark


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


class Transcript:
    """Pieces of one lane.

    Attributes:
        pieces: this lane's own.
        role: the open turn, "" when none is.
    """

    __slots__ = ("_base", "_base_length", "pieces", "role")

    def __init__(self, base: Transcript | None = None) -> None:
        self._base = base
        self._base_length = 0 if base is None else len(base.pieces)
        self.pieces: list[Piece] = []
        self.role: str = "" if base is None else base.role

    def all_pieces(self) -> list[Piece]:
        """Inherited pieces first."""
        chain: list[list[Piece]] = [self.pieces]
        lane = self
        while lane._base is not None:
            chain.append(lane._base.pieces[: lane._base_length])
            lane = lane._base
        return [piece for pieces in reversed(chain) for piece in pieces]

    def readable(self, begin: int, end: int) -> list[str | Variable]:
        """Own texts and variables from `begin` to `end`, without turn marks."""
        return [piece for piece in self.pieces[begin:end] if not isinstance(piece, RoleMark)]

    def variables(self) -> Iterator[Slot]:
        """All variables, inherited ones first."""
        return (piece for piece in self.all_pieces() if isinstance(piece, Slot))

    def messages(self) -> list[Message]:
        """Chat turns; text outside of turns is left out. All variables must be ready."""
        found: list[Message] = []
        inside = False
        for piece in self.all_pieces():
            if isinstance(piece, RoleMark):
                inside = bool(piece.role)
                if inside:
                    found.append(Message(role=piece.role, content=""))
            elif inside:
                found[-1]["content"] += piece if isinstance(piece, str) else piece.text()
        return found
