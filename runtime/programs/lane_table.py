"""The lanes of one program: which exist, which wait for their fork, which are gone.

Invariant: a lane number is used once; a number that was dropped stays known as gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.lane import UNBORN, Lane
from branchline.runtime.programs.protocol import Fork

MAX_COPIED = 1 << 26
"""Entries (tokens, texts, …) that the branches of a program may have been given when they began."""


class LaneTable:
    """Lanes by number; lane 0 is there from the start.

    Args:
        program_id: first part of the lanes' lease names.
    """

    def __init__(self, program_id: str) -> None:
        self._program_id = program_id
        self._lanes: dict[int, Lane] = {0: Lane(0, f"{program_id}/0")}
        self._gone: set[int] = set()
        self._copied = 0

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def get(self, lane_id: int) -> Lane | None:
        """The lane, or None when there is none (any more)."""
        return self._lanes.get(lane_id)

    def register(self, op: Fork) -> ProgramError | None:
        """Make the children of a fork that has arrived; they wait until it is reached.

        Returns what is wrong when a number is taken; nothing is made then.
        """
        taken = [child for child in op.children if child in self._lanes or child in self._gone]
        if taken or len(set(op.children)) != len(op.children):
            return ProgramError(
                "a fork creates a lane that exists",
                value=taken[0] if taken else op.children,
                hint="Give every lane a number of its own.",
            )
        for child in op.children:
            self._lanes[child] = Lane(child, f"{self._program_id}/{child}", UNBORN)
        return None

    def children_of(self, op: Fork) -> Iterator[Lane]:
        """Lanes of a fork that still wait for it."""
        for child in op.children:
            lane = self._lanes.get(child)
            if lane is not None and lane.waiting is UNBORN:
                yield lane

    def fork(self, lane: Lane, op: Fork) -> list[Lane]:
        """Let the lanes of a fork start with all that `lane` has.

        Raises:
            ProgramError: the branches of this program would hold too much; none has begun.
        """
        children = list(self.children_of(op))
        copied = len(children) * lane.entries
        if self._copied + copied > MAX_COPIED:
            raise ProgramError(
                f"the branches of a program hold more than {MAX_COPIED * 8 >> 20} MiB of what they "
                "began with",
                value=f"{len(children)} branches of {len(lane.ids)} tokens",
                hint="Fork a shorter text, or fewer branches at a time; drop those that are over.",
            )
        self._copied += copied
        for child in children:
            lane.copy_to(child)
        return children

    def forget(self, lane: Lane) -> None:
        """Free a lane that was dropped."""
        if self._lanes.pop(lane.id, None) is not None:
            self._copied -= lane.fork_point.entries
            self._gone.add(lane.id)
            lane.clear()

    def clear(self) -> None:
        """Free all."""
        for lane in self._lanes.values():
            lane.clear()
        self._lanes = {}
        self._copied = 0

    def unknown(self, lane_id: int) -> ProgramError:
        """The error of an op on a lane that takes none."""
        gone = lane_id in self._gone or lane_id in self._lanes
        return ProgramError(
            "a lane that was dropped takes no more ops" if gone else "there is no such lane",
            value=lane_id,
            hint="Drop a lane after its last use." if gone else "Create lanes with a fork.",
        )
