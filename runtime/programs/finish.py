"""What a finished run means for its lane: a value and new tokens, or the lane's first error."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import msgspec

from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.errors import from_wire
from branchline.runtime.programs.protocol import (
    ChoiceScore,
    Generate,
    NodeStats,
    Select,
    ToolReply,
    ValueReady,
)
from branchline.runtime.programs.runs import (
    GenerateRun,
    Run,
    SelectRun,
    failure_of,
    total_meta,
)
from branchline.runtime.programs.select import Selection, choose
from branchline.runtime.programs.tools import read_reply
from branchline.runtime.responses.reasoning import Split

if TYPE_CHECKING:
    from branchline.runtime.programs.lane import Lane
    from branchline.runtime.programs.program import RunningProgram


def finish_run(program: RunningProgram, lane: Lane, run: Run) -> None:
    """Append what a run has produced and report it; on failure fail the lane."""
    if isinstance(run, GenerateRun):
        _finish_generate(program, lane, run)
    else:
        _finish_select(program, lane, run)


def _finish_generate(program: RunningProgram, lane: Lane, run: GenerateRun) -> None:
    op = run.op
    results = run.ordered()
    first = results[0]
    meta = total_meta(results)
    error = next((e for r in results if (e := failure_of(r.error, r.meta)) is not None), None)
    if lane.error is not None or error is not None:
        program.report(_stats(program, run, op.node, meta, 0, lane))
        if lane.error is not None:
            program.emit_failure(lane, op.node, op.name, first.text, meta)
        elif error is not None:
            program.fail(lane, op.node, op.name, error, first.text, meta)
        return
    before = len(lane.ids)
    if run.seam is not None:
        lane.ids.pop()  # the first of the result's ids stand for its text, too
    divided = run.divided()
    _extend(program, lane, op, divided[0].answer, first.token_ids, shown=first.text)
    tokens = len(lane.ids) - before + run.thinking.written
    program.report(_stats(program, run, op.node, meta, tokens, lane))
    replies = _replies(program, run, [part.answer for part in divided])
    program.emit(
        ValueReady(
            lane=lane.id,
            node=op.node,
            name=op.name,
            texts=tuple([part.answer for part in divided]),
            reasoning=_reasoning(run, divided, replies),
            meta=meta,
            logprobs=tuple(first.logprobs),
            replies=replies,
            stats=program.take_stats(),
        )
    )


def _replies(program: RunningProgram, run: GenerateRun, texts: list[str]) -> tuple[ToolReply, ...]:
    if run.op.tools is None:
        return ()
    form = program.turns.tool_format
    streamed = [] if run.reply is None else [run.reply]
    return (*streamed, *[read_reply(run.op, form, text) for text in texts[len(streamed) :]])


def _reasoning(
    run: GenerateRun, divided: list[Split], replies: tuple[ToolReply, ...]
) -> tuple[str, ...]:
    """What was thought before each text; () where the model does not think."""
    if run.thinking.format is not None:
        return tuple([part.reasoning for part in divided])
    found = tuple([reply.reasoning for reply in replies])
    return found if any(found) else ()


def _finish_select(program: RunningProgram, lane: Lane, run: SelectRun) -> None:
    op = run.step.op
    results = run.ordered()
    branches = list(run.branch_results.values())
    metas = [result.meta for result in results] + [result.meta for result in branches]
    meta = metas[0]
    error = next((e for r in results if (e := failure_of(r.error, r.meta)) is not None), None)
    if run.error is not None:
        error = from_wire(run.error)
    if lane.error is not None or error is not None:
        program.report(_stats(program, run, op.node, meta, 0, lane))
        if lane.error is not None:
            program.emit_failure(lane, op.node, op.name, "", meta)
        elif error is not None:
            program.fail(lane, op.node, op.name, error, "", meta)
        return
    seed = op.seed
    if op.temperature > 0.0 and seed is None:
        seed = random.SystemRandom().getrandbits(63)
    rows = results[0].token_logprobs
    other = results[1].token_logprobs if len(results) > 1 else None
    baseline = None if op.baseline is None else other
    found = choose(op.method, rows, other, op.temperature, seed, baseline=baseline)
    choices, taken = _choices(run, rows, found)
    text, ids = run.written[taken] or ("", ())
    _extend(program, lane, op, text, list(ids))
    meta = msgspec.structs.replace(
        meta,
        seed=seed if op.temperature > 0.0 else meta.seed,
        forwards=sum(one.forwards for one in metas),
    )
    program.report(_stats(program, run, op.node, meta, len(ids), lane))
    program.emit(
        ValueReady(
            lane=lane.id,
            node=op.node,
            name=op.name,
            texts=(text,),
            meta=meta,
            choices=choices,
            taken=taken,
            stats=program.take_stats(),
        )
    )


def _choices(
    run: SelectRun, rows: list[list[float]], found: Selection
) -> tuple[tuple[ChoiceScore, ...], int]:
    """Every choice with its scores, and which is taken; those without ids were not scored."""
    scored = iter(zip(rows, found.probabilities, strict=True))
    choices: list[ChoiceScore] = []
    places: list[int] = []
    for index, one in enumerate(run.written):
        if one is None or not one.ids:
            choices.append(ChoiceScore("" if one is None else one.text, -math.inf, (), 0.0))
            continue
        row, probability = next(scored)
        choices.append(ChoiceScore(one.text, sum(row), tuple(row), probability))
        places.append(index)
    return tuple(choices), places[found.winner]


def _extend(
    program: RunningProgram,
    lane: Lane,
    op: Generate | Select,
    text: str,
    token_ids: list[int],
    shown: str | None = None,
) -> None:
    """Append tokens. `shown`: their text, where `text`, the variable's, leaves something out."""
    lane.ids.extend(token_ids)
    lane.texts.append(text if shown is None else shown)
    lane.add_content(text)
    lane.variables[op.name] = text
    lane.tail = "generated"
    program.hold(lane, op.adapter)


def _stats(
    program: RunningProgram, run: Run, node: int, meta: RequestMeta, tokens: int, lane: Lane
) -> NodeStats:
    return NodeStats(
        node=node,
        start_s=run.start,
        end_s=program.now(),
        tokens=tokens,
        lane_tokens=len(lane.ids),
        cached_tokens=meta.cached_tokens,
        forced_tokens=meta.forced_tokens,
        drafted_tokens=meta.drafted_tokens,
        accepted_tokens=meta.accepted_tokens,
        forwards=meta.forwards,
        ttft_s=meta.ttft_s,
    )
