"""The caller's side of a program: joins and tokenizes appended text before it reaches the loop.

Which texts are tokenized together is decided by the ops alone, never by timing: all text appended
to a lane between two other ops of that lane (or a join that waits for it, or `Close`) is one
piece, and a piece is tokenized as one text. So `s += "a"; s += "b"` gives the ids of "ab", while
text on the two sides of a generated value, a turn marker or a fork is tokenized apart, because the
ids before it are frozen. A piece of literals is tokenized here, in the thread that sends it; a
piece with a reference is tokenized on the loop thread when its text is known.
"""

from __future__ import annotations

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    Cancel,
    Close,
    DeclareTools,
    Drop,
    EndRole,
    Fork,
    Generate,
    Join,
    Op,
    ReadLane,
    Select,
    SetVariable,
)
from branchline.runtime.programs.text import Ids, TextEncoder
from branchline.runtime.programs.waits import Broken, JoinWait, Mark, RefWait


class TextPiece:
    """A whole piece of literal text with its ids; `node` is the first that appended to it."""

    __slots__ = ("ids", "lane", "node", "text")

    def __init__(self, lane: int, node: int, text: str, ids: Ids) -> None:
        self.lane = lane
        self.node = node
        self.text = text
        self.ids = ids


class SelectChoices:
    """A select with the ids of its choices."""

    __slots__ = ("choice_ids", "lane", "node", "op")

    def __init__(self, op: Select, choice_ids: tuple[Ids, ...]) -> None:
        self.op = op
        self.lane = op.lane
        self.node = op.node
        self.choice_ids = choice_ids


LaneOp = (
    TextPiece
    | AppendText
    | BeginRole
    | EndRole
    | DeclareTools
    | Generate
    | SelectChoices
    | Select
    | SetVariable
    | Fork
    | JoinWait
    | RefWait
    | Mark
    | Broken
    | ReadLane
)
Prepared = (
    TextPiece
    | AppendText
    | BeginRole
    | EndRole
    | DeclareTools
    | Generate
    | SelectChoices
    | Select
    | SetVariable
    | Fork
    | Join
    | ReadLane
    | Drop
    | Cancel
    | Close
)


class _Open:
    """The text piece of a lane that is still growing."""

    __slots__ = ("mixed", "node", "texts")

    def __init__(self, node: int) -> None:
        self.node = node
        self.texts: list[str] = []
        self.mixed = False


class Intake:
    """Turns ops into prepared ops, in order. Calls must not overlap."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._open: dict[int, _Open] = {}

    def prepare(self, ops: list[Op]) -> list[Prepared]:
        """What to hand to the loop now; open pieces stay here until something follows them.

        Raises ProgramError, before anything is taken, when something is not an op.
        """
        for op in ops:
            if not isinstance(op, Op):
                raise ProgramError(
                    "not an op of a program", value=op, hint="Send the messages of `protocol`."
                )
        out: list[Prepared] = []
        for op in ops:
            if isinstance(op, AppendText):
                self._text(op, out)
                continue
            if self._open:
                self._close_for(op, out)
            out.append(self._choices(op) if isinstance(op, Select) else op)
        return out

    def _text(self, op: AppendText, out: list[Prepared]) -> None:
        piece = self._open.get(op.lane)
        if piece is None:
            piece = self._open[op.lane] = _Open(op.node)
        literals = [part for part in op.parts if isinstance(part, str)]
        if len(literals) == len(op.parts) and not piece.mixed:
            piece.texts += literals
            return
        if piece.texts:
            out.append(AppendText(op.lane, piece.node, tuple(piece.texts)))
            piece.texts = []
        piece.mixed = True
        out.append(op)

    def _close_for(self, op: Op, out: list[Prepared]) -> None:
        if isinstance(op, Cancel):
            for lane in op.lanes:
                self._open.pop(lane, None)
        elif isinstance(op, Close):
            for lane in list(self._open):
                self._close(lane, out)
        elif isinstance(op, Drop):
            for lane in op.lanes:
                self._close(lane, out)
        else:
            self._close(op.lane, out)
            if isinstance(op, Join):
                for lane in op.children:
                    self._close(lane, out)

    def _close(self, lane: int, out: list[Prepared]) -> None:
        piece = self._open.pop(lane, None)
        if piece is None or not piece.texts:
            return
        text = "".join(piece.texts)
        try:
            out.append(TextPiece(lane, piece.node, text, self._encoder.encode(text)))
        except Exception:  # the loop meets the same error and reports it as the node's
            out.append(AppendText(lane, piece.node, (text,)))

    def _choices(self, op: Select) -> SelectChoices | Select:
        try:
            return SelectChoices(op, tuple(self._encoder.encode(item) for item in op.choices))
        except Exception:  # as above
            return op
