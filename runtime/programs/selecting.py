"""A select node: choices that are constraints are written out first, then all are scored.

A choice that is a constraint stands for the text that greedy decoding under it finds after the
lane's tokens; that text is scored as any other choice, so what is compared is always one text with
another, in the model's own distribution. Its probability is that of the text, the least that the
whole constraint can have, and no sum over its language. A choice that `max_tokens` cut has no text
and cannot be taken. Law: with texts alone, nothing is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.runtime.core.messages import EngineRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.errors import (
    ConstraintError,
    InvalidRequest,
    TruncatedError,
    UnsupportedConstraint,
    UnsupportedFeature,
)
from branchline.runtime.programs.intake import SelectChoices
from branchline.runtime.programs.runs import SelectRun, Written, failure_of
from branchline.runtime.programs.select import needs_unconditional

if TYPE_CHECKING:
    from branchline.runtime.programs.lane import Lane
    from branchline.runtime.programs.program import RunningProgram


def begin_select(
    program: RunningProgram, lane: Lane, step: SelectChoices, prompt: list[int]
) -> SelectRun:
    """Submit the first requests of a select; the lane waits for the run.

    Args:
        prompt: the lane's ids.

    Raises:
        InvalidRequest: no choices, one without tokens, or no baseline where one is needed.
        UnsupportedFeature: the model has no start token to score choices without a prompt.
    """
    op = step.op
    if not op.choices:
        raise InvalidRequest(
            "select has no choices", value=list(op.choices), hint="Give at least one choice."
        )
    written: list[Written | None] = []
    wanted: list[tuple[int, Constraint]] = []
    for index, ids in enumerate(step.choice_ids):
        constraint = op.constraints[index] if op.constraints else None
        if constraint is not None:
            wanted.append((index, constraint))
            written.append(None)
            continue
        if not ids:
            raise InvalidRequest(
                f"choice {index} of select has no tokens",
                value=op.choices[index],
                hint="Leave empty choices out.",
            )
        written.append(Written(op.choices[index], tuple(ids)))
    run = SelectRun(program, lane, step, program.now(), prompt, written, score=_score)
    baseline_ids(program, step)  # an error of the choice of method comes before any work
    run.deadline = program.deadline_after(op.deadline_s)
    base = f"{lane.key}/{op.node}"
    requests = [
        GenerateRequest(
            id=f"{base}/{index}",
            prompt_ids=prompt.copy(),
            sampling=SamplingParams(
                temperature=0.0, max_tokens=op.max_tokens, min_tokens=1, constraint=constraint
            ),
            namespace=program.opened.namespace,
            priority=op.priority or program.opened.priority,
            deadline=run.deadline,
            program_id=program.opened.program_id,
            name=op.name,
            adapter=op.adapter,
        )
        for index, constraint in wanted
    ]
    run.branches = {request.id: index for request, (index, _) in zip(requests, wanted, strict=True)}
    lane.waiting = run
    if requests:
        _submit(run, requests)
    else:
        _score(run)
    return run


def baseline_ids(program: RunningProgram, step: SelectChoices) -> list[int] | None:
    """Ids of the prompt whose scores are taken off; None where there is none. Raises as
    `begin_select`."""
    op = step.op
    if op.baseline is not None:
        if op.method == "greedy_token_selection":
            raise InvalidRequest(
                "greedy_token_selection has no number that a baseline could be taken off",
                value=op.baseline,
                hint="Use another method.",
            )
        ids = [*program.encoder.leading_ids, *program.encoder.encode(op.baseline)]
        if ids:
            return ids
    elif not needs_unconditional(op.method):
        return None
    start_ids = program.encoder.start_ids
    if not start_ids:
        raise UnsupportedFeature(
            "the model has no start token to score choices without a prompt",
            value=op.method,
            hint="Use another method, or give a baseline.",
        )
    return list(start_ids)


def _score(run: SelectRun) -> None:
    """All texts are there: score them."""
    program, lane, step, op = run.program, run.lane, run.step, run.step.op
    for request_id, index in run.branches.items():
        run.written[index] = _text_of(run.branch_results[request_id])
    scored = [one for one in run.written if one is not None and one.ids]
    if not scored:
        raise TruncatedError(
            "max_tokens cut every choice before it was complete",
            value=f"{op.max_tokens} tokens",
            hint="Raise max_tokens of the select.",
        )
    base = f"{lane.key}/{op.node}"
    prompts = [(base, run.prompt)]
    baseline = baseline_ids(program, step)
    if baseline is not None:
        prompts.append((f"{base}/unconditional", baseline))
    run.score_ids = tuple([request_id for request_id, _ in prompts])
    requests = [
        ScoreRequest(
            id=request_id,
            prompt_ids=prompt,
            choices=[list(one.ids) for one in scored],
            namespace=program.opened.namespace,
            priority=op.priority or program.opened.priority,
            deadline=run.deadline,
            program_id=program.opened.program_id,
            lane_id=lane.key if request_id == base else "",
            name=op.name,
            adapter=op.adapter,
        )
        for request_id, prompt in prompts
    ]
    _submit(run, requests)


def _text_of(result: GenerateResult) -> Written:
    """What was written for a choice; no ids where it cannot be taken.

    Raises what went wrong with it.
    """
    error = failure_of(result.error, result.meta)
    if isinstance(error, ConstraintError) and not isinstance(error, UnsupportedConstraint):
        return Written(result.text, ())  # a scripted reply that belongs to another choice
    if error is not None:
        raise error
    cut = result.meta.finish_reason == "length"
    return Written(result.text, () if cut else tuple(result.token_ids))


def _submit(run: SelectRun, requests: list[GenerateRequest] | list[ScoreRequest]) -> None:
    every: list[EngineRequest] = [*requests]
    for count, request in enumerate(every):
        try:
            run.program.port.submit(request, run.on_output)
        except Exception:
            run.lane.waiting = None
            for earlier in every[:count]:
                run.program.port.abort(earlier.id)
            raise
