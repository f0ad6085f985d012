"""The same token ids on several ways to an engine: one request after the other, and many at once.

Knows nothing of what lies between the caller and the engine: a way is a function that makes calls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from branchline.runtime.bench.latency import Timing
from branchline.runtime.bench.loops import Call, closed_loop
from branchline.runtime.bench.report import Column
from branchline.runtime.bench.workloads import prompts
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import BackendError

COLUMNS = (
    Column("where"),
    Column("first text ms p50", right=True),
    Column("1 + 1 tokens ms p50", right=True),
    Column("tokens/s, streams at once", right=True),
    Column("all rounds"),
)
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 128
WARM_UP = 10

Make = Callable[[list[int], int], Call]
"""Prompt ids and how many tokens to generate -> a call."""


async def measure(
    make: Make, vocabulary: int, streams: int, requests: int, repeats: int
) -> dict[str, Any]:
    """Ask for 1 + 1 tokens `requests` times, one by one, then keep `streams` going at once.

    Args:
        vocabulary: ids of prompts are below it.

    Returns:
        ttft_s, e2e_s: medians, one by one; tok_per_s, all_tok_per_s: at once, median and rounds.

    Raises:
        BackendError: a request failed; there is nothing to compare then.
    """
    singles = prompts(requests + WARM_UP, 8, 8, 1, vocabulary)
    timings, _ = await closed_loop([make(ids, 2) for ids in singles], 1)
    counted = _good(timings)[WARM_UP:]
    rates: list[float] = []
    for round_ in range(repeats + 1):
        batch = prompts(streams, PROMPT_TOKENS, PROMPT_TOKENS, 1000 + round_, vocabulary)
        calls = [make(ids, OUTPUT_TOKENS) for ids in batch]
        timings, wall_s = await closed_loop(calls, streams)
        if round_:  # the first warms up
            rates.append(sum(one.tokens for one in _good(timings)) / wall_s)
    return {
        "ttft_s": statistics.median(one.first_s - one.begin_s for one in counted),
        "e2e_s": statistics.median(one.end_s - one.begin_s for one in counted),
        "tok_per_s": statistics.median(rates),
        "all_tok_per_s": rates,
    }


def _good(timings: Sequence[Timing]) -> Sequence[Timing]:
    for one in timings:
        if one.failed:
            raise BackendError(f"a request failed: {one.failed}", hint="Use fewer --at-once.")
    return timings


def on_port(client: EngineClient, ids: list[int], tokens: int) -> Call:
    """A call of so many tokens on an engine's port."""

    async def call(timing: Timing) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        request = GenerateRequest(
            id=client.new_id(), prompt_ids=ids, sampling=sampling, stream=True
        )
        found = 0
        async for output in client.run(request):
            if isinstance(output, GenerateResult):
                found = output.meta.output_tokens
            elif isinstance(output, GenerateDelta) and output.text:
                timing.mark(time.perf_counter())
        return found

    return call


def row(name: str, run: dict[str, Any]) -> list[str]:
    """The cells of `COLUMNS`."""
    return [
        name,
        f"{1e3 * run['ttft_s']:.2f}",
        f"{1e3 * run['e2e_s']:.2f}",
        f"{run['tok_per_s']:.0f}",
        " ".join(f"{rate:.0f}" for rate in run["all_tok_per_s"]),
    ]
