"""What each op does to its lane. One function an op; all run on the loop thread.

A step returns True when it is done, False when the lane now waits and the program will hear later.
It raises to fail its node; `run_step` turns that into the lane's first error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.errors import (
    BranchlineError,
    InvalidRequest,
    ProgramError,
    from_wire,
    wrap,
)
from branchline.runtime.programs.declarations import declare
from branchline.runtime.programs.healing import find_seam
from branchline.runtime.programs.intake import LaneOp, SelectChoices, TextPiece
from branchline.runtime.programs.lane import Lane
from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    DeclareTools,
    EndRole,
    Fork,
    Generate,
    JoinReady,
    LaneContent,
    NodeStats,
    Part,
    ReadLane,
    Select,
    SetVariable,
    VarRef,
)
from branchline.runtime.programs.runs import GenerateRun
from branchline.runtime.programs.selecting import begin_select
from branchline.runtime.programs.thinking import Thinking, think
from branchline.runtime.programs.tools import tool_sampling
from branchline.runtime.programs.waits import (
    Broken,
    JoinWait,
    Mark,
    RefWait,
    Wait,
    unknown_variable,
)

if TYPE_CHECKING:
    from branchline.runtime.programs.program import RunningProgram

logger = logging.getLogger(__name__)


def run_step(program: RunningProgram, lane: Lane, step: LaneOp) -> bool:
    """Run one op; True when it is done. Failures end the lane, not the caller."""
    if isinstance(step, Mark):
        return _mark(program, lane, step)
    if lane.error is not None:
        return _skip(program, lane, step)
    try:
        return _STEPS[type(step)](program, lane, step)
    except Exception as error:
        if not isinstance(error, BranchlineError):
            logger.exception("program %s: node %d failed", program.name, step.node)
        program.fail(lane, step.node, value_name(step) or "", wrap(error))
        if isinstance(step, Fork):
            _skip(program, lane, step)  # or its branches would wait for ever
        return True


def value_name(step: LaneOp) -> str | None:
    """Variable of a step that the program waits for ("" for a join); None for others."""
    if isinstance(step, (Generate, Select)):
        return step.name
    if isinstance(step, SelectChoices):
        return step.op.name
    return "" if isinstance(step, JoinWait) else None


def settle(program: RunningProgram, lane: Lane) -> None:
    """Tokenize resolved text that is still pending; what follows it is tokenized apart."""
    if lane.pending:
        text = "".join(lane.pending)
        lane.pending = []
        ids = program.encoder.encode(text)
        _append(program, lane, lane.pending_node, text, ids, literal=True)


def finish_wait(program: RunningProgram, lane: Lane, wait: Wait) -> None:
    """All that a waiting lane depended on is there: let it go on."""
    lane.waiting = None
    try:
        _complete(program, lane, wait)
    except Exception as error:
        program.fail(lane, wait.node, "", wrap(error))


def _append(
    program: RunningProgram,
    lane: Lane,
    node: int,
    text: str,
    ids: Sequence[int],
    *,
    literal: bool = False,
) -> None:
    before = len(lane.ids)
    lane.append(text, ids, program.encoder, literal=literal)
    now = program.now()
    program.report(
        NodeStats(
            node=node,
            start_s=now,
            end_s=now,
            tokens=len(lane.ids) - before,
            lane_tokens=len(lane.ids),
        )
    )


def _skip(program: RunningProgram, lane: Lane, step: LaneOp) -> bool:
    """A step of a lane that has failed: pass the error on."""
    name = value_name(step)
    if name is not None:
        program.emit_failure(lane, step.node, name)
    elif isinstance(step, Fork):
        for child in program.lanes.children_of(step):
            child.error = lane.error
            child.waiting = None
            program.make_ready(child)
    elif isinstance(step, ReadLane):
        program.emit(LaneContent(lane.id, step.node, tuple(lane.ids), "".join(lane.texts)))
    return True


def _text_piece(program: RunningProgram, lane: Lane, step: TextPiece) -> bool:
    lane.add_content(step.text)
    _append(program, lane, step.node, step.text, step.ids, literal=True)
    return True


def _append_text(program: RunningProgram, lane: Lane, op: AppendText) -> bool:
    _add_pending(lane, op.node, "".join([_resolve(lane, part) for part in op.parts]))
    return True


def _add_pending(lane: Lane, node: int, text: str) -> None:
    if not lane.pending:
        lane.pending_node = node
    lane.pending.append(text)
    lane.add_content(text)


def _resolve(lane: Lane, part: Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, ArgRef):
        raise ProgramError(
            "a text uses an argument that was not given",
            value=part.name,
            hint="Bind arguments with `graph.ops(arguments)`.",
        )
    if part.name not in lane.variables:
        raise unknown_variable(part, lane)
    return lane.variables[part.name]


def _begin_role(program: RunningProgram, lane: Lane, op: BeginRole) -> bool:
    settle(program, lane)
    history = lane.history
    lane.begin_turn(op.role)
    text, ids = program.turns.begin(history, op.role, lane.tools.by_template)
    _append(program, lane, op.node, text, ids)
    return True


def _declare(program: RunningProgram, lane: Lane, op: DeclareTools) -> bool:
    settle(program, lane)
    return declare(program, lane, op)


def _end_role(program: RunningProgram, lane: Lane, op: EndRole) -> bool:
    settle(program, lane)
    if lane.role is None:
        raise ProgramError("no turn is open", hint="Begin a turn before it is ended.")
    text, ids = program.turns.end(lane.history, lane.role, lane.tools.by_template)
    lane.end_turn()
    _append(program, lane, op.node, text, ids[_already_there(program, lane, ids) :])
    return True


def _already_there(program: RunningProgram, lane: Lane, ids: tuple[int, ...]) -> int:
    """How many of a turn's closing ids the model has generated itself at the lane's end."""
    if lane.tail == "generated" and ids and ids[0] in program.encoder.eos_ids:
        for count in range(min(len(ids), len(lane.ids)), 0, -1):
            if tuple(lane.ids[-count:]) == ids[:count]:
                return count
    return 0


def _ready(program: RunningProgram, lane: Lane) -> None:
    """Make the lane's ids a prompt: all text in them, and a start token where they are none."""
    settle(program, lane)
    lane.start(program.encoder.start_ids)
    if not lane.ids:
        raise InvalidRequest(
            "there is nothing to continue: the lane has no tokens and the model no start token",
            hint="Append some text first.",
        )


def _thinking(program: RunningProgram, lane: Lane, op: Generate) -> Thinking:
    """A format of tool calls that has voices of its own tells thinking from calls itself."""
    if op.tools is None:
        return think(program, lane, op, op.sampling)
    form = program.turns.tool_format
    sampling = tool_sampling(op, op.tools, form)
    return Thinking(None, sampling) if form.frames else think(program, lane, op, sampling)


def _generate(program: RunningProgram, lane: Lane, op: Generate) -> bool:
    _ready(program, lane)
    thinking = _thinking(program, lane, op)
    sampling = thinking.sampling
    prompt = lane.ids.copy()
    if sampling.max_tokens is None:
        room = max(1, program.port.max_context - len(prompt))
        sampling = msgspec.structs.replace(sampling, max_tokens=room)
    seam = None
    if program.port.heals:
        seam = find_seam(lane, sampling, program.port.tokenizer, op.heal)
    if seam is not None:
        prompt.pop()
        sampling = seam.sampling
    start = program.now()
    request = GenerateRequest(
        id=f"{lane.key}/{op.node}",
        prompt_ids=prompt,
        sampling=sampling,
        stream=op.stream,
        namespace=program.opened.namespace,
        priority=op.priority or program.opened.priority,
        deadline=program.deadline_after(op.deadline_s),
        program_id=program.opened.program_id,
        lane_id=lane.key,
        name=op.name,
        adapter=op.adapter,
    )
    run = GenerateRun(program, lane, op, request.id, start, seam, thinking)
    lane.waiting = run
    try:
        program.port.submit(request, run.on_output)
    except Exception:
        lane.waiting = None
        raise
    return False


def _select(program: RunningProgram, lane: Lane, step: SelectChoices) -> bool:
    _ready(program, lane)
    begin_select(program, lane, step, lane.ids.copy())
    return False


def _select_raw(program: RunningProgram, lane: Lane, op: Select) -> bool:
    """A select whose choices could not be tokenized by the sender: meet the error here."""
    choices = tuple(program.encoder.encode(choice) for choice in op.choices)
    return _select(program, lane, SelectChoices(op, choices))


def _set(program: RunningProgram, lane: Lane, op: SetVariable) -> bool:
    lane.variables[op.name] = op.text
    return True


def _fork(program: RunningProgram, lane: Lane, op: Fork) -> bool:
    settle(program, lane)
    for child in program.lanes.fork(lane, op):
        child.waiting = None
        program.make_ready(child)
    now = program.now()
    program.report(NodeStats(node=op.node, start_s=now, end_s=now, lane_tokens=len(lane.ids)))
    return True


def _wait(program: RunningProgram, lane: Lane, wait: Wait) -> bool:
    wait.start = program.now()
    if isinstance(wait, JoinWait):
        settle(program, lane)
    if wait.remaining:
        lane.waiting = wait
        return False
    _complete(program, lane, wait)
    return True


def _complete(program: RunningProgram, lane: Lane, wait: Wait) -> None:
    if wait.error is not None:
        raise from_wire(wait.error)
    if isinstance(wait, RefWait):
        known = wait.values
        text = "".join(
            [
                known[part] if isinstance(part, VarRef) and part in known else _resolve(lane, part)
                for part in wait.op.parts
            ]
        )
        _add_pending(lane, wait.node, text)
        return
    before = len(lane.ids)
    if wait.op.mode == "append":
        for child in wait.op.children:
            lane.absorb(wait.additions[child], program.encoder)
    program.report(
        NodeStats(
            node=wait.node,
            start_s=wait.start,
            end_s=program.now(),
            tokens=len(lane.ids) - before,
            lane_tokens=len(lane.ids),
        )
    )
    program.emit(JoinReady(lane.id, wait.node))


def _mark(program: RunningProgram, lane: Lane, mark: Mark) -> bool:
    """The lane has come to where another one reads it. Must count down whatever happened."""
    # A join takes the lane's tokens; a reference only looks at a variable and must not split text.
    if lane.error is None and isinstance(mark.wait, JoinWait):
        try:
            settle(program, lane)
        except Exception as error:
            program.fail(lane, lane.pending_node, "", wrap(error))
    wait = mark.wait
    wait.collect(lane)
    wait.remaining -= 1
    if wait.remaining == 0:
        program.wake_waiter(wait)
    return True


def _read(program: RunningProgram, lane: Lane, op: ReadLane) -> bool:
    settle(program, lane)
    program.emit(LaneContent(lane.id, op.node, tuple(lane.ids), "".join(lane.texts)))
    return True


def _broken(program: RunningProgram, lane: Lane, step: Broken) -> bool:
    raise step.error


_STEPS: dict[type, Callable[[RunningProgram, Lane, Any], bool]] = {
    TextPiece: _text_piece,
    AppendText: _append_text,
    BeginRole: _begin_role,
    EndRole: _end_role,
    DeclareTools: _declare,
    Generate: _generate,
    SelectChoices: _select,
    Select: _select_raw,
    SetVariable: _set,
    Fork: _fork,
    JoinWait: _wait,
    RefWait: _wait,
    ReadLane: _read,
    Broken: _broken,
}
