"""From what a caller asks to the scheduler's own records, checked. Knows nothing of steps."""

from __future__ import annotations

import random

import msgspec
import numpy as np

from branchline.runtime.core.adapters import adapter_namespace
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.packed_ids import PackedIds
from branchline.runtime.core.pooling import PoolState
from branchline.runtime.core.request import Request, TokenIds
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import ScoreState, build_groups
from branchline.runtime.sampling.sampling_batch import merely_greedy
from branchline.runtime.scheduler.adapters import Adapters, NoAdapters

_SEED_MASK = (1 << 63) - 1
_SEED_STEP = 0x9E3779B97F4A7C15


class Intake:
    """Makes `Request`s.

    Args:
        seed: of the generator that draws seeds for requests without one; None = from the system.
        adapters: that requests may name.
    """

    def __init__(
        self, bounds: Bounds, seed: int | None = None, adapters: Adapters | None = None
    ) -> None:
        self._bounds = bounds
        self._adapters = adapters or NoAdapters()
        self._random = random.Random(seed)

    def make(self, source: EngineRequest) -> list[Request]:
        """One record, or n of them for `n` outputs (ids `id`, `id#1`, …).

        Records with an adapter have a source whose namespace is that of the adapter's version, and
        the version is open for each of them.

        Raises:
            InvalidRequest: names the value that cannot be run, and what to do.
            AdapterNotFound: no adapter of the name is loaded.
        """
        ids = _as_array(source.prompt_ids)
        self._bounds.check(source, None if ids is None else (int(ids.min()), int(ids.max())))
        assert ids is not None, "what is no id was refused"
        name = source.adapter
        version = self._adapters.find(name) if name else None
        number = 0 if version is None else version.number
        namespace = adapter_namespace(source.namespace, name, number)
        if namespace != source.namespace:
            source = msgspec.structs.replace(source, namespace=namespace)
        records = self._records(source, ids)
        if version is not None:
            for record in records:
                record.adapter = version
                self._adapters.open(version)
        return records

    def _records(self, source: EngineRequest, ids: TokenIds) -> list[Request]:
        if isinstance(source, ScoreRequest):
            return [self._score(source, ids)]
        if isinstance(source, EmbedRequest):
            request = self._read_only(source, ids)
            request.readout = PoolState(source.pooling)
            return [request]
        return self._generate(source, ids)

    def _generate(self, source: GenerateRequest, ids: TokenIds) -> list[Request]:
        sampling = source.sampling
        room = self._bounds.max_context - len(source.prompt_ids)
        max_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        seed = sampling.seed
        base = self._random.getrandbits(63) if seed is None else seed & _SEED_MASK
        return [
            self._record(
                source,
                ids.copy() if index else ids,
                source.id if index == 0 else f"{source.id}#{index}",
                sampling,
                max_len=len(source.prompt_ids) + max_tokens,
                seed=(base + index * _SEED_STEP) & _SEED_MASK,
            )
            for index in range(sampling.n)
        ]

    def _score(self, source: ScoreRequest, ids: TokenIds) -> Request:
        request = self._read_only(source, ids)
        groups = build_groups(source.choices, self._bounds.choice_limit(source))
        request.readout = ScoreState(groups, [[] for _ in source.choices])
        return request

    def _read_only(self, source: ScoreRequest | EmbedRequest, ids: TokenIds) -> Request:
        """A record of which nothing is sampled."""
        return self._record(source, ids, source.id, SamplingParams(), max_len=len(ids), seed=0)

    def _record(
        self,
        source: EngineRequest,
        ids: TokenIds,
        request_id: str,
        sampling: SamplingParams,
        *,
        max_len: int,
        seed: int,
    ) -> Request:
        n = len(ids)
        return Request(
            id=request_id,
            ids=ids,
            prompt_len=n,
            length=n,
            sampled_len=n,
            max_len=max_len,
            sampling=sampling,
            source=source,
            seed=seed,
            greedy=merely_greedy(sampling),
        )


def _as_array(ids: list[int]) -> TokenIds | None:
    """int32 [n], the caller's own; None where there are none, or some are no ids."""
    try:
        known = ids.packed() if isinstance(ids, PackedIds) else ids
        return np.array(known, dtype=np.int32) if ids else None
    except (OverflowError, TypeError, ValueError):
        return None
