"""Running programs as the outside sees them: plain data of bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from branchline.runtime.programs.program import RunningProgram

MAX_VIEWS = 50
"""Programs that are told at once, the oldest."""


class ProgramView(NamedTuple):
    """A running program.

    Attributes:
        lanes: that it holds.
        tokens: of all lanes; what lanes share counts once for each.
    """

    name: str
    namespace: str
    age_s: float
    lanes: int
    tokens: int


def view_of(program: RunningProgram, now: float) -> ProgramView:
    """How far a program is at `now`, of its executor's clock. Loop thread."""
    lanes = list(program.lanes)
    tokens = sum(len(lane.ids) for lane in lanes)
    opened = program.opened
    return ProgramView(program.name, opened.namespace, now - program.started, len(lanes), tokens)
