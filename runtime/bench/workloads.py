"""The fixed workloads: token ids drawn from seeds, so that every engine can be given the same.

Knows nothing about engines. Round `i` of a workload draws other ids than round `j`, so a repeat
never finds the previous one's prompts in the prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from branchline.runtime.bench.schema_set import JSON32
from branchline.runtime.errors import InvalidRequest

VOCABULARY = 49_000


def prompts(
    count: int, low: int, high: int, seed: int, vocabulary: int = VOCABULARY
) -> list[list[int]]:
    """`count` prompts of `low` to `high` random ids; no special ids (both ends are left out)."""
    rng = random.Random(seed)
    return [
        [rng.randrange(100, vocabulary - 100) for _ in range(rng.randint(low, high))]
        for _ in range(count)
    ]


def shared_prompts(count: int, shared: int, own: int, seeds: tuple[int, int]) -> list[list[int]]:
    """One prefix of `shared` ids, and `own` ids of each prompt behind it."""
    prefix = prompts(1, shared, shared, seeds[0])[0]
    return [prefix + tail for tail in prompts(count, own, own, seeds[1])]


Batch = tuple[list[list[int]], list[int]]
"""Prompts, and how many tokens to generate for each."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One measured shape.

    Attributes:
        make: round number -> prompts and output lengths.
        schema: JSON Schema that every output follows; its length is then a limit.
        cpu: part of the default run on a CPU.
    """

    name: str
    about: str
    make: Callable[[int], Batch]
    cpu: bool = False
    schema: dict[str, Any] | None = None


def _same(ids: list[list[int]], out: int) -> Batch:
    return ids, [out] * len(ids)


def _mixed(round_: int) -> Batch:
    rng = random.Random(7)
    return prompts(256, 100, 1024, 60 + round_), [rng.randint(100, 1024) for _ in range(256)]


_ALL = (
    Workload("decode", "1 × 32 → 128", lambda i: _same(prompts(1, 32, 32, 100 + i), 128), cpu=True),
    Workload(
        "ttft1024", "1 × 1024 → 1", lambda i: _same(prompts(1, 1024, 1024, 110 + i), 1), cpu=True
    ),
    Workload(
        "batch16", "16 × 128 → 128", lambda i: _same(prompts(16, 128, 128, 120 + i), 128), cpu=True
    ),
    Workload(
        "shared32",
        "32 × (1024 shared + 32) → 32",
        lambda i: _same(shared_prompts(32, 1024, 32, (130 + i, 140 + i)), 32),
        cpu=True,
    ),
    Workload("decode1", "1 × 128 → 256", lambda i: _same(prompts(1, 128, 128, i), 256)),
    Workload("ttft4096", "1 × 4096 → 1", lambda i: _same(prompts(1, 4096, 4096, 10 + i), 1)),
    Workload("decode64", "64 × 512 → 128", lambda i: _same(prompts(64, 512, 512, 20 + i), 128)),
    Workload("prefill32k", "16 × 2048 → 1", lambda i: _same(prompts(16, 2048, 2048, 30 + i), 1)),
    Workload(
        "shared256",
        "256 × (2048 shared + 64) → 64",
        lambda i: _same(shared_prompts(256, 2048, 64, (40 + i, 50 + i)), 64),
    ),
    Workload("mixed256", "256 × [100, 1024] → [100, 1024]", _mixed),
    Workload("free32", "32 × 128 → 120", lambda i: _same(prompts(32, 128, 128, 70 + i), 120)),
    Workload(
        "json32",
        "32 × 128 → JSON, ≤ 120",
        lambda i: _same(prompts(32, 128, 128, 70 + i), 120),
        schema=JSON32,
    ),
)
WORKLOADS = {workload.name: workload for workload in _ALL}


def chosen(names: list[str] | None) -> list[Workload]:
    """Workloads by name; the CPU's when none is named, all others for "gpu".

    Raises:
        InvalidRequest: a name that is not a workload.
    """
    if not names:
        return [workload for workload in _ALL if workload.cpu]
    if names == ["gpu"]:
        return [workload for workload in _ALL if not workload.cpu]
    for name in names:
        if name not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise InvalidRequest("not a workload", value=name, hint=f"Known: {known}.")
    return [WORKLOADS[name] for name in names]
