"""How a lane's model is told of tools: by its own template where that is possible, else as text.

Invariant: each tool is declared once in a lane and in what forks from it, and never inside a turn
that has begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.intake import TextPiece
from branchline.runtime.programs.lane import Declared, Lane
from branchline.runtime.programs.protocol import BeginRole, DeclareTools, EndRole
from branchline.runtime.responses import render_declaration

if TYPE_CHECKING:
    from branchline.runtime.programs.program import RunningProgram


def declare(program: RunningProgram, lane: Lane, op: DeclareTools) -> bool:
    """Run a `DeclareTools` in a lane without pending text.

    By the template in the first turn, where it can; else as text there, or as a turn of its own
    where turns stand already.
    """
    new = tuple(tool for tool in op.tools if tool not in lane.tools.all)
    if not new:
        return True
    form = program.turns.tool_format
    fresh = not (lane.ids or lane.history or lane.pending)
    in_turns = bool(lane.history) or any(isinstance(step, BeginRole) for step in lane.queue)
    if lane.role is not None:
        raise ProgramError(
            "tools cannot be declared inside a turn that has begun",
            value=", ".join(tool.name for tool in new),
            hint="Let the call be the first thing in its turn, or use the tools earlier.",
        )
    told = lane.tools.all + new
    if fresh and in_turns and form.native:
        lane.tools = Declared(told, told)
        return True
    lane.tools = lane.tools._replace(all=told)
    text = render_declaration(new, form)
    ahead = _piece(program, op, text + "\n\n")
    first = lane.queue[0] if lane.queue else None
    if not in_turns:
        program.insert(lane, [ahead])
    elif fresh and isinstance(first, BeginRole) and first.role == "system":
        lane.queue.popleft()
        program.insert(lane, [ahead])
        lane.queue.appendleft(first)
    elif _shows(program, lane, "system"):
        begin, end = BeginRole(lane.id, op.node, "system"), EndRole(lane.id, op.node)
        program.insert(lane, [begin, _piece(program, op, text), end])
    elif isinstance(first, BeginRole) and first.role == "user":
        lane.queue.popleft()
        program.insert(lane, [ahead])
        lane.queue.appendleft(first)
    else:
        begin, end = BeginRole(lane.id, op.node, "user"), EndRole(lane.id, op.node)
        program.insert(lane, [begin, _piece(program, op, text), end])
    return True


def _piece(program: RunningProgram, op: DeclareTools, text: str) -> TextPiece:
    return TextPiece(op.lane, op.node, text, program.encoder.encode(text))


def _shows(program: RunningProgram, lane: Lane, role: str) -> bool:
    """Whether the template has a turn of `role` here."""
    try:
        program.turns.begin(lane.history, role, lane.tools.by_template)
    except ProgramError:
        return False
    return True
