"""What a lane holds back, so that tools can still be declared in the right place.

A lane's first turns and texts wait for the first op that needs them (a request, a read, a fork, the
end), and the markup that opens a turn waits for what comes in it. Tools declared by then stand in
the first turn, or before the turn that is about to open. The order of the ops alone decides, never
timing; what is held back is never more than markup and text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.runtime.programs.intake import LaneOp, TextPiece
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    DeclareTools,
    EndRole,
    SetVariable,
)

if TYPE_CHECKING:
    from branchline.runtime.programs.lane import Lane

_OPENING = (TextPiece, AppendText, BeginRole, EndRole, SetVariable)


def put(lane: Lane, step: LaneOp) -> None:
    """Add a step to the lane's queue, where it belongs."""
    queue = lane.queue
    if not isinstance(step, DeclareTools):
        queue.append(step)
        lane.begun = lane.begun or not isinstance(step, _OPENING)
    elif not lane.begun:
        queue.appendleft(step)
    elif queue and isinstance(queue[-1], BeginRole):
        queue.insert(len(queue) - 1, step)
    else:
        queue.append(step)


def may_run(lane: Lane, *, closing: bool) -> bool:
    """Whether the lane has a step that can be run now."""
    if lane.waiting is not None or not lane.queue:
        return False
    if closing or lane.dropped or lane.error is not None:
        return True
    held = len(lane.queue) == 1 and isinstance(lane.queue[0], BeginRole)
    return lane.begun and not held
