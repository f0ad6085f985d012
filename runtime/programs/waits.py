"""Dependencies between lanes: a join, or a text that reads another lane's variable.

Invariant: a wait counts one mark for each lane it depends on, put into that lane's queue at the
moment the wait arrives. So it sees exactly the ops sent before it, and, since marks only ever
stand for earlier ops, waits cannot form a circle.
"""

from __future__ import annotations

from typing import Any

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.lane import Addition, Lane
from branchline.runtime.programs.protocol import AppendText, Join, VarRef


class JoinWait:
    """A join and how many of its children are still running.

    Attributes:
        additions: by child, what it has added ("append" only).
        error: first error of a child, when it spoils the join.
    """

    __slots__ = ("additions", "error", "lane", "node", "op", "remaining", "start")

    def __init__(self, op: Join) -> None:
        self.op = op
        self.lane = op.lane
        self.node = op.node
        self.remaining = 0
        self.start = 0.0
        self.additions: dict[int, Addition] = {}
        self.error: dict[str, Any] | None = None

    def collect(self, lane: Lane) -> None:
        """`lane` has run its ops. Appending a branch that failed fails the join."""
        if self.op.mode == "append":
            if lane.error is not None:
                self.error = self.error or lane.error
            else:
                self.additions[lane.id] = lane.added()


class RefWait:
    """A text whose references into other lanes are not all known."""

    __slots__ = ("error", "lane", "node", "op", "remaining", "start", "values")

    def __init__(self, op: AppendText) -> None:
        self.op = op
        self.lane = op.lane
        self.node = op.node
        self.remaining = 0
        self.start = 0.0
        self.values: dict[VarRef, str] = {}
        self.error: dict[str, Any] | None = None

    def collect(self, lane: Lane) -> None:
        """`lane` has run its ops; read its variables."""
        for part in self.op.parts:
            if isinstance(part, VarRef) and part.lane == lane.id:
                if part.name in lane.variables:
                    self.values[part] = lane.variables[part.name]
                elif self.error is None:
                    self.error = lane.error or unknown_variable(part, lane).to_wire()


Wait = JoinWait | RefWait


class Mark:
    """Stands in a lane's queue for one of the things a wait waits for."""

    __slots__ = ("lane", "node", "wait")

    def __init__(self, lane: int, wait: Wait) -> None:
        self.lane = lane
        self.node = wait.node
        self.wait = wait


class Broken:
    """An op that was wrong when it arrived; fails its lane when its turn comes."""

    __slots__ = ("error", "lane", "node")

    def __init__(self, lane: int, node: int, error: ProgramError) -> None:
        self.lane = lane
        self.node = node
        self.error = error


def unknown_variable(ref: VarRef, lane: Lane) -> ProgramError:
    """The error of a reference to something the lane does not know."""
    known = ", ".join(sorted(lane.variables)) or "none"
    return ProgramError(
        "a text uses a variable that has no value",
        value=ref.name,
        hint=f"Variables of lane {lane.id}: {known}.",
    )
