"""What a finished run means for its lane: a value and new tokens, or the lane's first error."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.programs.protocol import ChoiceScore, NodeStats, ValueReady
from branchline.runtime.programs.runs import (
    GenerateRun,
    Run,
    SelectRun,
    failure_of,
    total_meta,
)
from branchline.runtime.programs.select import choose

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
    _extend(program, lane, op.name, divided[0].answer, first.token_ids, shown=first.text)
    tokens = len(lane.ids) - before + run.thinking.written
    program.report(_stats(program, run, op.node, meta, tokens, lane))
    program.emit(
        ValueReady(
            lane=lane.id,
            node=op.node,
            name=op.name,
            texts=tuple([part.answer for part in divided]),
            reasoning=tuple([part.reasoning for part in divided]) if run.thinking.format else (),
            meta=meta,
            logprobs=tuple(first.logprobs),
            stats=program.take_stats(),
        )
    )


def _finish_select(program: RunningProgram, lane: Lane, run: SelectRun) -> None:
    op = run.step.op
    results = run.ordered()
    meta = results[0].meta
    error = next((e for r in results if (e := failure_of(r.error, r.meta)) is not None), None)
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
    unconditional = results[1].token_logprobs if len(results) > 1 else None
    taken = choose(op.method, rows, unconditional, op.temperature, seed)
    text = op.choices[taken.winner]
    ids = run.step.choice_ids[taken.winner]
    _extend(program, lane, op.name, text, list(ids))
    meta = msgspec.structs.replace(
        meta,
        seed=seed if op.temperature > 0.0 else meta.seed,
        forwards=sum(result.meta.forwards for result in results),
    )
    program.report(_stats(program, run, op.node, meta, len(ids), lane))
    program.emit(
        ValueReady(
            lane=lane.id,
            node=op.node,
            name=op.name,
            texts=(text,),
            meta=meta,
            choices=tuple(
                ChoiceScore(choice, sum(row), tuple(row), probability)
                for choice, row, probability in zip(
                    op.choices, rows, taken.probabilities, strict=True
                )
            ),
            stats=program.take_stats(),
        )
    )


def _extend(
    program: RunningProgram,
    lane: Lane,
    name: str,
    text: str,
    token_ids: list[int],
    shown: str | None = None,
) -> None:
    """Append tokens. `shown`: their text, where `text`, the variable's, leaves something out."""
    lane.ids.extend(token_ids)
    lane.texts.append(text if shown is None else shown)
    lane.add_content(text)
    lane.variables[name] = text
    lane.tail_generated, lane.tail_literal = True, False
    program.hold(lane)


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
