"""One lane: token ids that only ever grow, the text they stand for, and the turns in it.

Invariant: ids once in `ids` are frozen; what comes later is appended behind them, so two lanes
forked from one another share every token before the fork. Knows nothing about engines or queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from branchline.runtime.core.packed_ids import PackedIds
from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.text import Ids, TextEncoder

if TYPE_CHECKING:
    from branchline.runtime.programs.intake import LaneOp
    from branchline.runtime.programs.runs import Run
    from branchline.runtime.programs.waits import Wait
    from branchline.runtime.responses import ToolSpec


Tail = Literal["generated", "literal", "markup"]


_VARIABLE_ENTRIES = 12  # what one takes in a dictionary


class Unborn:
    """Marks a lane whose fork has not been reached."""


UNBORN = Unborn()


class ForkPoint(NamedTuple):
    """How much of each of a lane's lists came from its parent, and `Lane.entries` of all that."""

    ids: int = 0
    texts: int = 0
    turns: int = 0
    content: int = 0
    role: str | None = None
    entries: int = 0


class Addition(NamedTuple):
    """What a lane has added since its fork."""

    ids: list[int]
    texts: list[str]
    turns: list[tuple[str, str]]
    content: list[str]
    fork_role: str | None
    role: str | None


class Declared(NamedTuple):
    """Tools that a lane's model was told of, and those of them that its template shows."""

    all: tuple[ToolSpec, ...] = ()
    by_template: tuple[ToolSpec, ...] = ()


class Lane:
    """State of one lane; lives on the loop thread.

    Attributes:
        key: name of the lane's lease.
        ids: exact tokens.
        texts: pieces of text the ids stand for, template markup included; an implicit start
            token has no piece.
        variables: text of each variable the lane knows.
        history: finished turns (role, content).
        role, content: the open turn, if any, and its text so far, without reasoning.
        turn_texts: pieces of `texts` before the open turn; 0 where none is open.
        pending: resolved text that is not tokenized yet (see `intake`).
        queue: ops not started.
        waiting: what the lane waits for; None = can run.
        begun: something came that needs the lane's text (see `openings`).
        tools: that the model was told of.
        error: wire form of the error that ended it.
        tail: where the last ids came from: a generate node, text that the program appended, or
            else markup.
    """

    __slots__ = (
        "begun",
        "content",
        "dropped",
        "error",
        "fork_point",
        "history",
        "id",
        "ids",
        "key",
        "leased",
        "pending",
        "pending_node",
        "queue",
        "role",
        "tail",
        "texts",
        "tools",
        "turn_texts",
        "variables",
        "waiting",
    )

    def __init__(self, lane_id: int, key: str, waiting: Unborn | None = None) -> None:
        self.id = lane_id
        self.key = key
        self.ids = PackedIds()
        self.texts: list[str] = []
        self.variables: dict[str, str] = {}
        self.history: list[tuple[str, str]] = []
        self.role: str | None = None
        self.content: list[str] = []
        self.turn_texts = 0
        self.pending: list[str] = []
        self.pending_node = 0
        self.queue: deque[LaneOp] = deque()
        self.waiting: Run | Wait | Unborn | None = waiting
        self.error: dict[str, Any] | None = None
        self.dropped = False
        self.leased = False
        self.tail: Tail = "markup"
        self.begun = False
        self.tools = Declared()
        self.fork_point = ForkPoint()

    def start(self, start_ids: Ids) -> None:
        """Give an empty lane its first token. Not counted as added by this lane."""
        if not self.ids and start_ids:
            self.ids.extend(start_ids)
            if self.fork_point.ids == 0:
                self.fork_point = self.fork_point._replace(ids=len(start_ids))

    def append(
        self, text: str, ids: Sequence[int], encoder: TextEncoder, *, literal: bool = False
    ) -> None:
        """Append a piece; the tokenizer's leading ids come before the first one.

        Args:
            literal: it is text of the program, not markup.
        """
        if not self.ids and ids and (leading := encoder.leading_ids) and ids[0] != leading[0]:
            self.start(leading)
        self.ids.extend(ids)
        if text:
            self.texts.append(text)
        self.tail = "literal" if literal and ids else "markup"

    def add_content(self, text: str) -> None:
        """Count text as part of the open turn, if there is one."""
        if self.role is not None and text:
            self.content.append(text)

    def begin_turn(self, role: str) -> None:
        """Open a turn; ProgramError when one is open."""
        if self.role is not None:
            raise ProgramError(
                f"a turn of {self.role!r} is still open",
                value=role,
                hint="End a turn before the next one begins.",
            )
        self.role, self.content = role, []
        self.turn_texts = len(self.texts)

    def end_turn(self) -> None:
        """Close the open turn."""
        if self.role is None:
            raise ProgramError("no turn is open", hint="Begin a turn before it is ended.")
        self.history.append((self.role, "".join(self.content)))
        self.role, self.content = None, []
        self.turn_texts = 0

    def turn_text(self) -> str:
        """Text of the open turn, its markup included; of the whole lane where none is open."""
        return "".join(self.texts[self.turn_texts :])

    @property
    def entries(self) -> int:
        """What a branch that starts with all of this lane copies, in entries of eight bytes."""
        lists = len(self.ids) + len(self.texts) + len(self.history) + len(self.content)
        return lists + _VARIABLE_ENTRIES * len(self.variables)

    def copy_to(self, child: Lane) -> None:
        """Make `child` start with all this lane has."""
        child.ids = self.ids.copy()
        child.texts = self.texts.copy()
        child.variables = self.variables.copy()
        child.history = self.history.copy()
        child.role, child.content = self.role, self.content.copy()
        child.turn_texts = self.turn_texts
        child.tail = self.tail
        child.begun = True
        child.tools = self.tools
        child.fork_point = ForkPoint(
            len(self.ids),
            len(self.texts),
            len(self.history),
            len(self.content),
            self.role,
            self.entries,
        )

    def added(self) -> Addition:
        """What this lane holds beyond its parent's part."""
        point = self.fork_point
        same_turn = len(self.history) == point.turns and self.role == point.role
        return Addition(
            self.ids[point.ids :],
            self.texts[point.texts :],
            self.history[point.turns :],
            self.content[point.content if same_turn else 0 :],
            point.role,
            self.role,
        )

    def absorb(self, addition: Addition, encoder: TextEncoder) -> None:
        """Append what a branch has added. ProgramError when its turns do not fit this lane's."""
        if addition.turns and (addition.fork_role is not None or self.role is not None):
            raise ProgramError(
                "a branch that closed a turn cannot be appended inside a turn",
                value=addition.turns[0][0],
                hint="End the turn before the fork, or gather instead of appending.",
            )
        if addition.role != self.role:
            raise ProgramError(
                "a branch and the lane it is appended to stand in different turns",
                value=f"{addition.role or 'no turn'} and {self.role or 'no turn'}",
                hint="End the branch's turn before the join.",
            )
        self.append("", addition.ids, encoder)
        self.texts += addition.texts
        self.history += addition.turns
        if self.role is not None:
            self.content += addition.content

    def clear(self) -> None:
        """Free everything but the error."""
        self.ids = PackedIds()
        self.texts, self.history, self.content, self.pending = [], [], [], []
        self.variables = {}
        self.queue.clear()
        self.waiting = None
