"""The scheduler side of an engine: model, memory, worker, scheduler, in order.

Invariant: what an operator left to "auto" is decided here or in the rooms called from here, once,
and every decision is kept with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from branchline.kernels.cpu.binding import usable_cores
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.ops import Ops
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.drafting import MAX_GUESSES
from branchline.runtime.core.protocols import Worker
from branchline.runtime.grammar.base import GrammarBackend
from branchline.runtime.grammar.service import GrammarService
from branchline.runtime.launch.adapters import load_adapters, make_slots
from branchline.runtime.launch.decisions import Decision
from branchline.runtime.launch.drafting import guesses_in_chains
from branchline.runtime.launch.text_parts import AnyTokenizer, TextParts
from branchline.runtime.launch.workers import (
    Backend,
    Loaded,
    choose_device,
    load,
    on_device,
    on_host,
)
from branchline.runtime.loading.checkpoint import Checkpoint
from branchline.runtime.lora.manager import AdapterManager
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.memory.sizing import SizingDecision
from branchline.runtime.models.base import Model
from branchline.runtime.scheduler.commit import Outbox
from branchline.runtime.scheduler.constrained_overlap import ConstrainedOverlap
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.intake import Intake
from branchline.runtime.scheduler.pace import Pace
from branchline.runtime.scheduler.scheduler import Scheduler
from branchline.runtime.speculative.build import Drafting, make_drafting, model_drafting

MAX_TREE = 2048
"""Choices are scored in trees of at most this many tokens."""
GROW_AHEAD = 16
"""Slots that a decoding row on a device is given at once."""
MASK_THREADS = 16
"""Rows whose masks are filled at once at most; a mask takes tens of microseconds."""


@dataclass(slots=True)
class Facts:
    """What `info` says beside counters."""

    config: EngineConfig
    text: TextParts
    model: Model
    sizing: SizingDecision
    decisions: list[Decision]
    start_s: float

    def describe(self) -> dict[str, Any]:
        spec = self.model.spec
        return {
            "model": self.text.model_name,
            "path": str(self.text.path),
            "architecture": spec.raw_architecture,
            "parameters_bytes": self.model.memory_report().total,
            "max_context": self.model.max_context,
            "vocab_size": spec.vocab_size,
            "kv_tokens": self.sizing.num_tokens,
            "kv_bytes": self.sizing.num_bytes,
            "start_s": self.start_s,
            "settings": self.config.flat(),
            "decisions": [
                {"setting": d.setting, "value": d.value, "why": d.why} for d in self.decisions
            ],
        }


@dataclass(slots=True)
class SchedulerParts:
    """Model, memory, scheduler and worker, joined; their loop thread is not theirs.

    Attributes:
        bounds: what requests may ask for.
        pools: keys and values.
        decisions: what became of settings left open.
        adapters: None where none can be loaded.
    """

    scheduler: Scheduler
    worker: Worker
    grammars: GrammarService
    ops: Ops
    bounds: Bounds
    facts: Facts
    pools: list[KVPool]
    decisions: list[Decision] = field(default_factory=list)
    adapters: AdapterManager | None = None

    def close(self) -> None:
        """End all of it and free the cache, once nothing steps the scheduler any more."""
        self.worker.close()
        if self.adapters is not None:
            self.adapters.shut()
        self.grammars.close()
        if isinstance(self.ops, NativeOps):
            self.ops.runner.close()
        for pool in self.pools:  # most of the memory, whoever still holds the closed engine
            pool.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build_scheduler(
    config: EngineConfig,
    text: TextParts,
    checkpoint: Checkpoint,
    outbox: Outbox,
    call_soon: Callable[[Callable[[], None]], None],
) -> SchedulerParts:
    """Load a model's weights and put a scheduler over it. Closes the checkpoint.

    Args:
        outbox: where results go.
        call_soon: posts to the loop thread that will step the scheduler.

    Raises:
        InvalidRequest, ModelLoadError, OutOfMemory, AdapterError: see `Engine`.
    """
    started = time.monotonic()
    decisions: list[Decision] = []
    tokenizer = text.tokenizer
    device = choose_device(config.model.device, decisions)
    loaded = load(config, checkpoint, device, decisions)
    checkpoint.close()
    host = device.type == "cpu"
    slots = make_slots(config.lora, loaded, decisions)
    adapters = None if slots is None else load_adapters(config.lora, slots, call_soon)
    loaded.adapter_slots = 0 if slots is None else slots.count
    backend = (on_host if host else on_device)(config, loaded, decisions)
    cache, worker, sizing = backend.cache, backend.worker, backend.sizing
    model = loaded.model
    vocab_size = model.spec.vocab_size
    grammars = GrammarService(
        lambda: _grammar_backend(tokenizer, vocab_size, config),
        tokenizer,
        vocab_size=vocab_size,
        limit_s=config.grammar.grammar_timeout_s,
        memory=backend.masks,
    )
    context = min(model.max_context, sizing.num_tokens - sizing.page_size)
    largest_tree = min(loaded.max_step_tokens - loaded.max_running, MAX_TREE)
    bounds = Bounds(vocab_size, context, largest_tree, model.spec.hidden)
    scheduler = Scheduler(
        config.scheduler,
        cache,
        worker,
        outbox,
        Intake(bounds, adapters=adapters),
        max_step_tokens=loaded.max_step_tokens,
        max_running=loaded.max_running,
        eos_ids=tokenizer.eos_ids,
        grammars=grammars,
        call_soon=call_soon,
        grow_ahead=1 if host else GROW_AHEAD,
        constrained_overlap=None if host else ConstrainedOverlap(),
        drafts=_drafts(config, loaded, backend, tokenizer.eos_ids, decisions, host=host),
        adapters=adapters,
    )
    facts = Facts(config, text, model, sizing, decisions, time.monotonic() - started)
    return SchedulerParts(
        scheduler,
        worker,
        grammars,
        loaded.ops,
        bounds,
        facts,
        backend.pools,
        decisions,
        adapters,
    )


def _drafts(
    config: EngineConfig,
    loaded: Loaded,
    backend: Backend,
    eos_ids: frozenset[int],
    decisions: list[Decision],
    *,
    host: bool,
) -> Drafts | None:
    vocab_size = loaded.model.spec.vocab_size
    draft = loaded.draft
    if draft is not None and backend.guesses is not None:
        chosen: Drafting | None = model_drafting(
            config.speculative,
            backend.guesses,
            vocab_size,
            max_nodes=draft.nodes,
            max_depth=draft.depth,
            least=draft.least,
            quotes=host,
        )
    else:
        chosen = make_drafting(config.speculative, loaded.device.type)
    if chosen is None:
        return None
    decisions.append(Decision("speculative", str(config.speculative.speculative), chosen.why))
    looked_up = draft is None and not host
    pace = Pace(chosen.max_nodes, MAX_GUESSES, filled=not host, told=looked_up)
    return Drafts(
        chosen.drafter,
        vocab_size=vocab_size,
        eos_ids=eos_ids,
        max_nodes=chosen.max_nodes,
        max_depth=chosen.max_depth,
        pace=pace if chosen.adapts else None,
        linked=draft is not None,
        chains=guesses_in_chains(config, loaded.device),
        looked_up=looked_up,
    )


def _grammar_backend(
    tokenizer: AnyTokenizer, vocab_size: int, config: EngineConfig
) -> GrammarBackend:
    # Imported here: an engine that constrains nothing does not load it.
    from branchline.runtime.grammar.backends import GrammarBackends
    from branchline.runtime.grammar.limits import Limits

    return GrammarBackends(
        tokenizer,
        vocab_size=vocab_size,
        setting=config.grammar.grammar_backend,
        threads=min(MASK_THREADS, usable_cores()),
        limits=Limits(compile_s=config.grammar.grammar_timeout_s),
    )
