"""The engine on its loop thread: requests in, outputs out, leases held. Implements `EnginePort`.

Invariant: every submitted request gets exactly one final output. Everything here but `call_soon`
runs on the loop thread. Knows nothing of programs, sockets, or how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from branchline.runtime.core.adapters import AdapterInfo, AdapterSource, adapter_namespace
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.packed_ids import PackedIds
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import ChatTurns, TextTokenizer
from branchline.runtime.errors import (
    AdapterNotFound,
    BackendError,
    BranchlineError,
    UnsupportedFeature,
)
from branchline.runtime.lora.manager import AdapterManager
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.responses.reasoning import ReasoningFormat
from branchline.runtime.scheduler.loop import Loop
from branchline.runtime.scheduler.scheduler import Scheduler
from branchline.runtime.tokenizer.output_processor import OutputProcessor


class EngineCore:
    """Scheduler, output processor and loop, joined.

    Args:
        reasoning: see `EnginePort`.
        adapters: of the scheduler; None where none can be loaded.
        describe: facts for `info` that only the assembly knows.
    """

    heals = True

    def __init__(
        self,
        scheduler: Scheduler,
        outputs: OutputProcessor,
        tokenizer: TextTokenizer,
        turns: ChatTurns,
        *,
        model_name: str,
        max_context: int,
        reasoning: ReasoningFormat | None = None,
        adapters: AdapterManager | None = None,
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self.tokenizer = tokenizer
        self.turns = turns
        self.model_name = model_name
        self.max_context = max_context
        self.reasoning = reasoning
        self._scheduler = scheduler
        self._outputs = outputs
        self._adapters = adapters
        self._describe = describe
        self.loop = Loop(scheduler)
        outputs.connect(scheduler.end_one, scheduler.forget, self.loop.call_soon)

    @property
    def cache(self) -> CacheManager:
        """Key-value memory; loop thread only."""
        return self._scheduler.cache

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `EnginePort.call_soon`."""
        self.loop.call_soon(fn)

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        """See `EnginePort.submit`."""
        if self._scheduler.has(request.id):  # before the reader of that one is replaced
            raise BackendError("a request with this id is running", value=request.id)
        self._outputs.open(request, on_output)
        try:
            self._scheduler.submit(request)
        except BaseException:
            self._outputs.discard(request)
            raise

    def abort(self, request_id: str) -> None:
        """See `EnginePort.abort`."""
        self._scheduler.abort(request_id)

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """See `EnginePort.hold`."""
        hold_lease(self._scheduler, lane_id, ids, namespace, adapter)

    def release(self, lane_id: str) -> None:
        """See `EnginePort.release`."""
        self.cache.release_lease(lane_id)

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        """See `EnginePort.flush`."""
        on_done(self.cache.flush())

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """See `EnginePort.prefixes`."""
        on_done(self.cache.most_used())

    # -- AdapterPort -----------------------------------------------------------------------------

    def adapters(self) -> list[AdapterInfo]:
        """See `AdapterPort.adapters`."""
        return [] if self._adapters is None else self._adapters.infos()

    def adapter(self, name: str) -> AdapterInfo | None:
        """See `AdapterPort.adapter`."""
        return None if self._adapters is None else self._adapters.named(name)

    def load_adapter(
        self,
        name: str,
        source: AdapterSource,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        pin: bool = False,
    ) -> None:
        """See `AdapterPort.load_adapter`."""
        if self._adapters is None:
            on_done(no_slots())
        else:
            self._adapters.load(name, source, on_done, pin=pin)

    def unload_adapter(
        self,
        name: str,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        drain: bool = False,
    ) -> None:
        """See `AdapterPort.unload_adapter`."""
        if self._adapters is None:
            on_done(no_slots())
        else:
            self._adapters.unload(name, on_done, drain=drain)

    def list_adapters(self, on_done: Callable[[list[AdapterInfo] | BranchlineError], None]) -> None:
        """See `AdapterPort.list_adapters`."""
        on_done(self.adapters())

    def info(self) -> dict[str, Any]:
        """Counters and settings, plain data; callable from any thread (a moment's view)."""
        return {**self._describe(), **counters(self._scheduler)}


def no_slots() -> UnsupportedFeature:
    """Why an engine without adapter slots loads none."""
    return UnsupportedFeature(
        "this engine has no adapter slots",
        hint="Start it with adapter_slots=8, or name adapters at the start.",
    )


def hold_lease(
    scheduler: Scheduler, lane_id: str, ids: Sequence[int], namespace: str, adapter: str
) -> None:
    """See `EnginePort.hold`. A lease is about speed alone: without the adapter there is nothing to
    keep."""
    number = 0
    if adapter:
        try:
            number = scheduler.adapters.find(adapter).number
        except AdapterNotFound:
            scheduler.cache.release_lease(lane_id)
            return
    own = adapter_namespace(namespace, adapter, number)
    known = ids.packed() if isinstance(ids, PackedIds) else ids
    scheduler.cache.lease(lane_id, np.array(known, dtype=np.int32), own)


def counters(scheduler: Scheduler) -> dict[str, Any]:
    """What a scheduler and its memory have counted: plain data, a moment's view."""
    stats, cache = scheduler.stats, scheduler.cache
    cache_stats = cache.stats()
    return {
        "scheduler": {name: getattr(stats, name) for name in stats.__slots__}
        | {
            "running": scheduler.num_running,
            "waiting": scheduler.num_unfinished - scheduler.num_running,
            "unfinished": scheduler.num_unfinished,
        },
        "cache": {name: getattr(cache_stats, name) for name in cache_stats.__slots__}
        | {
            "hit_rate": cache_stats.hit_rate,
            "capacity_tokens": cache.capacity_tokens,
            "free_tokens": cache.free_tokens,
            "cached_tokens": cache.cached_tokens,
            "leases": cache.num_leases,
        },
        "adapters": scheduler.adapters.counters(),
    }
