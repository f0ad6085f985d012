"""Runs what a route has prepared: one or more prompts, n outputs each, as the engine gives them.

Invariant: leaving `generate` early, for whatever reason, ends everything it started. Knows no
format of any API.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from aiohttp import web

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import (
    GenerateDelta,
    GenerateResult,
    RequestMeta,
)
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.sequence import sequence_names
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.limits import Limits, check
from branchline.runtime.server.wire import CALLER


class Job(NamedTuple):
    """One prompt and how to continue it.

    Attributes:
        adapter: name of the one that does; "" = the model itself.
    """

    prompt_ids: list[int]
    sampling: SamplingParams
    adapter: str = ""


class Options(NamedTuple):
    """What holds for all jobs of a request.

    Attributes:
        name: the id its client knows.
        salt: of the prefix cache, from the client; "" = none.
        deadline_s: seconds until everything must have ended; None = the server's own bound.
    """

    name: str
    stream: bool = False
    salt: str = ""
    priority: int = 0
    deadline_s: float | None = None


class Step(NamedTuple):
    """Something new of one sequence.

    Attributes:
        job: index of its job.
        sequence: index of the output among the job's n.
    """

    job: int
    sequence: int
    output: GenerateDelta | GenerateResult


Steps = AsyncGenerator[Step]


@asynccontextmanager
async def generate(
    request: web.Request, context: ServerContext, jobs: Sequence[Job], options: Options
) -> AsyncIterator[Steps]:
    """Run `jobs`; the block reads the steps. Leaving it ends what still runs.

    Raises:
        InvalidRequest: more than the server's limits allow.
        BranchlineError: while reading, the first failure.
    """
    limits, caller = context.limits, request[CALLER]
    check("max_prompts", "the number of prompts", len(jobs), limits.max_prompts)
    wanted = sum(job.sampling.n for job in jobs)
    check("max_sequences", "the number of outputs (prompts times n)", wanted, limits.max_sequences)
    deadline = deadline_of(limits, options.deadline_s)
    requests = [
        GenerateRequest(
            id=context.client.new_id(),
            prompt_ids=job.prompt_ids,
            sampling=job.sampling,
            stream=options.stream,
            namespace=caller.namespace(options.salt),
            priority=options.priority,
            deadline=deadline,
            name=options.name,
            adapter=job.adapter,
        )
        for job in jobs
    ]
    with context.running.named(options.name, caller, [item.id for item in requests]):
        async with aclosing(_steps(context, requests)) as steps:
            yield steps


async def results(
    request: web.Request, context: ServerContext, jobs: Sequence[Job], options: Options
) -> list[list[GenerateResult]]:
    """The outputs of each job."""
    found: list[dict[int, GenerateResult]] = [{} for _ in jobs]
    async with generate(request, context, jobs, options) as steps:
        async for step in steps:
            if isinstance(step.output, GenerateResult):
                found[step.job][step.sequence] = step.output
    return [[group[i] for i in sorted(group)] for group in found]


async def _steps(context: ServerContext, requests: Sequence[GenerateRequest]) -> Steps:
    places = {
        name: (job, sequence)
        for job, item in enumerate(requests)
        for sequence, name in enumerate(sequence_names(item.id, item.sampling.n))
    }
    async with aclosing(context.client.run(*requests)) as outputs:
        async for output in outputs:
            assert isinstance(output, GenerateDelta | GenerateResult)
            job, sequence = places[output.request_id]
            yield Step(job, sequence, output)


def deadline_of(limits: Limits, asked_s: float | None) -> float:
    """`time.monotonic()` value at which a request that comes now must have ended."""
    seconds = limits.total_timeout_s
    return time.monotonic() + (seconds if asked_s is None else min(seconds, asked_s))


def response_id(prefix: str, *given: str | None) -> str:
    """The client's own id, or a new one."""
    return next((name for name in given if name), f"{prefix}{uuid.uuid4().hex}")


class Counts(NamedTuple):
    """Tokens of a request: every prompt counts once, every output once.

    Attributes:
        reasoning: of the output; None = not known.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int | None = None

    @classmethod
    def of(cls, groups: Sequence[Sequence[RequestMeta]]) -> Counts:
        """Counts of the outputs of each prompt."""
        firsts = [group[0] for group in groups if group]
        return cls(
            sum(meta.prompt_tokens for meta in firsts),
            sum(meta.cached_tokens for meta in firsts),
            sum(meta.output_tokens for group in groups for meta in group),
        )
