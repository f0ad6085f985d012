"""Puts an engine together from its parts, in order, and takes it apart again.

Invariant: what an operator left to "auto" is decided here or in the rooms called from here, once,
and every decision is kept with its reason (`Assembly.decisions`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from branchline.kernels.cpu.binding import usable_cores
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.protocols import Worker
from branchline.runtime.engine_core import EngineCore
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.executor.build import (
    RunnerSettings,
    build_runner,
    build_worker,
    kv_dtype_of,
    load_model,
)
from branchline.runtime.executor.warmup import warm_up
from branchline.runtime.grammar.base import GrammarBackend
from branchline.runtime.grammar.service import GrammarService
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.catalog import resolve_model
from branchline.runtime.loading.checkpoint import Checkpoint
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.memory.sizing import SizingDecision, decide_pages, free_memory
from branchline.runtime.models.base import Model
from branchline.runtime.responses import detect_format
from branchline.runtime.responses.reasoning import (
    ReasoningFormat,
    detect_reasoning,
    format_named,
)
from branchline.runtime.scheduler.intake import Intake
from branchline.runtime.scheduler.scheduler import Scheduler
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer
from branchline.runtime.tokenizer.output_processor import OutputProcessor
from branchline.runtime.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

CPU_STEP_TOKENS = 512
MASK_THREADS = 8
"""Rows whose masks are filled at once at most; a mask takes tens of microseconds."""


@dataclass(slots=True)
class Decision:
    """What became of a setting that was left open."""

    setting: str
    value: str
    why: str


@dataclass(slots=True)
class Assembly:
    """A running engine's parts."""

    config: EngineConfig
    core: EngineCore
    tokenizer: Tokenizer
    outputs: OutputProcessor
    worker: Worker
    grammars: GrammarService
    ops: Ops
    decisions: list[Decision] = field(default_factory=list)

    def close(self) -> None:
        """Stop in the order that leaves no reader waiting."""
        self.core.loop.close()
        self.worker.close()
        self.outputs.close()
        self.grammars.close()
        if isinstance(self.ops, NativeOps):
            self.ops.runner.close()


def assemble(settings: dict[str, Any]) -> Assembly:
    """Load a model and start its loop thread.

    Raises:
        InvalidRequest, CatalogError, ModelLoadError, OutOfMemory: see `Engine`.
    """
    started = time.monotonic()
    config = EngineConfig.from_settings(settings)
    decisions: list[Decision] = []
    path = resolve_model(config.model.model)
    checkpoint = open_checkpoint(path, "dummy" if config.model.load_format == "dummy" else "auto")
    tokenizer = Tokenizer(checkpoint.tokenizer_source)
    model, ops = _load(config, checkpoint, decisions)
    checkpoint.close()
    sizing = _size(config, model, decisions)
    max_step_tokens = config.scheduler.max_step_tokens or CPU_STEP_TOKENS
    max_running = min(config.scheduler.max_running_requests, max(1, max_step_tokens // 2))
    cache = CacheManager(
        sizing.num_pages,
        sizing.page_size,
        max_running,
        model.max_context,
        eviction=config.memory.eviction,
        prefix_cache=config.memory.prefix_cache,
    )
    runner = build_runner(
        model,
        ops,
        RunnerSettings(
            num_pages=sizing.num_pages,
            page_size=sizing.page_size,
            max_step_tokens=max_step_tokens,
            max_step_rows=max_running,
            kv_dtype=kv_dtype_of(model.spec, _weight_dtype(config), _kv_dtype(config)),
        ),
        cache.slot_table.array,
    )
    warm_up(runner)
    worker = build_worker(runner, overlap=config.scheduler.overlap)
    vocab_size = model.spec.vocab_size
    grammars = GrammarService(
        lambda: _grammar_backend(tokenizer, vocab_size, config),
        tokenizer,
        vocab_size=vocab_size,
        limit_s=config.grammar.grammar_timeout_s,
    )
    outputs = OutputProcessor(tokenizer, _name(config, path))
    context = min(model.max_context, sizing.num_tokens - sizing.page_size)
    scheduler = Scheduler(
        config.scheduler,
        cache,
        worker,
        outputs,
        Intake(Bounds(vocab_size, context, max_step_tokens - max_running)),
        max_step_tokens=max_step_tokens,
        max_running=max_running,
        eos_ids=tokenizer.eos_ids,
        grammars=grammars,
        call_soon=lambda fn: core.call_soon(fn),
    )
    facts = _Facts(config, path, model, sizing, decisions, time.monotonic() - started)
    core = EngineCore(
        scheduler,
        outputs,
        tokenizer,
        _turns(config, tokenizer),
        model_name=outputs.model_name,
        max_context=context,
        reasoning=_reasoning(config, tokenizer),
        describe=facts.describe,
    )
    core.loop.start()
    for decision in decisions:
        logger.info("%s = %s: %s", decision.setting, decision.value, decision.why)
    return Assembly(config, core, tokenizer, outputs, worker, grammars, ops, decisions)


def _load(
    config: EngineConfig, checkpoint: Checkpoint, decisions: list[Decision]
) -> tuple[Model, Ops]:
    limit = checkpoint.spec.max_context
    context = config.model.context_length
    if context is not None and context > limit:
        raise InvalidRequest(
            "context_length is longer than the model's own",
            value=context,
            hint=f"The model was made for {limit} tokens.",
        )
    dtype = _weight_dtype(config)
    ops = make_ops(
        threads=config.model.threads,
        dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
    )
    decisions.append(
        Decision("device", "cpu", f"{type(ops).__name__}, the only kind of device built in so far")
    )
    model = load_model(checkpoint, ops, max_context=context, dtype=dtype)
    decisions.append(
        Decision("dtype", dtype, f"weights take {model.memory_report().total / 1e6:.0f} MB")
    )
    return model, ops


def _size(config: EngineConfig, model: Model, decisions: list[Decision]) -> SizingDecision:
    spec = model.spec
    kv_dtype = kv_dtype_of(spec, _weight_dtype(config), _kv_dtype(config))
    sizing = decide_pages(
        bytes_per_token=KVPool.bytes_per_token(
            spec.num_layers, spec.kv_heads, spec.head_dim, kv_dtype
        ),
        page_size=config.memory.page_size,
        max_context=model.max_context,
        free_bytes=free_memory(torch.device("cpu")),
        memory_fraction=config.memory.memory_fraction,
        kv_tokens=config.memory.kv_tokens,
    )
    decisions.append(Decision("kv_tokens", str(sizing.num_tokens), sizing.why))
    return sizing


def _weight_dtype(config: EngineConfig) -> WeightDtype:
    """How matrices are kept: the file's own bits, unless dtype or quantization says otherwise."""
    chosen = config.model.dtype
    if chosen == "float32":
        return "float32"
    if chosen == "bfloat16" or config.model.quantization in ("none", None):
        return "bfloat16"
    return "auto"


def _kv_dtype(config: EngineConfig) -> Any:
    return config.model.kv_dtype


def _grammar_backend(tokenizer: Tokenizer, vocab_size: int, config: EngineConfig) -> GrammarBackend:
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


def _turns(config: EngineConfig, tokenizer: Tokenizer) -> TurnRenderer:
    given = config.model.chat_template
    template = ChatTemplate.of(tokenizer) if given is None else ChatTemplate(given)
    special = {tokenizer.token_text(token): token for token in tokenizer.special_ids}
    text = tokenizer.chat_template if given is None else given
    return TurnRenderer(template, detect_format(text, special))


def _reasoning(config: EngineConfig, tokenizer: Tokenizer) -> ReasoningFormat | None:
    chosen = config.model.reasoning_format
    if chosen == "none":
        return None
    if chosen != "auto":
        return format_named(chosen)
    template = config.model.chat_template
    return detect_reasoning(tokenizer.chat_template if template is None else template)


def _name(config: EngineConfig, path: Path) -> str:
    name = config.model.model
    return path.name if "/" in name or name.endswith(".gguf") else name


@dataclass(slots=True)
class _Facts:
    """What `info` says beside counters."""

    config: EngineConfig
    path: Path
    model: Model
    sizing: SizingDecision
    decisions: list[Decision]
    start_s: float

    def describe(self) -> dict[str, Any]:
        spec = self.model.spec
        return {
            "model": _name(self.config, self.path),
            "path": str(self.path),
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
