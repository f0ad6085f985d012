"""A model, its cache and its worker: on the host, or on a CUDA device.

Invariant: what an operator left to "auto" about them is decided here or in the rooms called from
here, once, and every decision is kept with its reason. Knows no scheduler and no text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.drafting import StepDrafter
from branchline.runtime.core.protocols import Worker
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.executor.build import (
    RunnerSettings,
    build_runner,
    build_worker,
    kv_dtype_of,
    load_model,
)
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_runner import DeviceRunner
from branchline.runtime.executor.drafting import DraftExecutor
from branchline.runtime.executor.host_draft import HostDraft
from branchline.runtime.executor.model_runner import ModelRunner
from branchline.runtime.executor.warmup import warm_up
from branchline.runtime.launch.decisions import Decision
from branchline.runtime.launch.drafting import DraftChoice, load_draft
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.checkpoint import Checkpoint
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.memory.sizing import SizingDecision, decide_pages, free_memory
from branchline.runtime.models.base import Model
from branchline.runtime.speculative.build import ngram_tokens

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask

CPU_STEP_TOKENS = 512
CUDA_STEP_TOKENS = 8192


@dataclass(slots=True)
class Loaded:
    """A model, what it runs with and where.

    Attributes:
        adapter_dtype: of adapters' matrices: float32 beside float32 weights, else bfloat16.
        adapter_slots: that its layers were given.
        draft: a draft model, if one was chosen.
    """

    model: Model
    ops: Ops
    device: torch.device
    adapter_dtype: torch.dtype
    max_step_tokens: int
    max_running: int
    adapter_slots: int = 0
    draft: DraftChoice | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """What a scheduler runs on.

    Attributes:
        pools: keys and values of the model, and of its draft.
        guesses: runs the draft model, if there is one, or says that the worker does.
        masks: where masks are best filled, see `GrammarService`; None = anywhere.
    """

    cache: CacheManager
    worker: Worker
    sizing: SizingDecision
    pools: list[KVPool]
    guesses: DraftExecutor | StepDrafter | None = None
    masks: Callable[[int], Bitmask] | None = None


def choose_device(setting: str, decisions: list[Decision]) -> torch.device:
    """The device that a setting names, or the best there is.

    Raises:
        InvalidRequest: "cuda" where torch finds no device.
    """
    there = torch.cuda.is_available()
    if setting == "cuda" and not there:
        raise InvalidRequest(
            "there is no CUDA device here",
            value=setting,
            hint='Use device="cpu", or install a torch with CUDA on a machine that has one.',
        )
    if setting == "cpu" or not there:
        why = "as told" if setting == "cpu" else "torch finds no CUDA device"
        decisions.append(Decision("device", "cpu", why))
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    decisions.append(Decision("device", str(device), torch.cuda.get_device_name(device)))
    return device


def load(
    config: EngineConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    decisions: list[Decision],
) -> Loaded:
    limit = checkpoint.spec.max_context
    context = config.model.context_length
    if context is not None and context > limit:
        raise InvalidRequest(
            "context_length is longer than the model's own",
            value=context,
            hint=f"The model was made for {limit} tokens.",
        )
    dtype = _weight_dtype(config, device)
    wide = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    ops = make_ops(
        threads=config.model.threads,
        dtype=wide,
        device=device,
        deterministic=config.device.deterministic,
    )
    decisions.append(Decision("kernels", type(ops).__name__, f"on {device.type}"))
    model = load_model(checkpoint, ops, max_context=context, dtype=dtype, device=device)
    decisions.append(
        Decision("dtype", dtype, f"weights take {model.memory_report().total / 1e6:.0f} MB")
    )
    draft = load_draft(
        config, checkpoint, model, ops, dtype=dtype, device=device, decisions=decisions
    )
    usual = CPU_STEP_TOKENS if device.type == "cpu" else CUDA_STEP_TOKENS
    max_step_tokens = config.scheduler.max_step_tokens or usual
    max_running = min(config.scheduler.max_running_requests, max(1, max_step_tokens // 2))
    # beside weights that were rounded, and activations that are, adapters may be as keys are
    adapter_dtype = kv_dtype_of(checkpoint.spec, dtype)
    return Loaded(model, ops, device, adapter_dtype, max_step_tokens, max_running, draft=draft)


def on_host(config: EngineConfig, loaded: Loaded, decisions: list[Decision]) -> Backend:
    draft = loaded.draft
    sizing = _size(config, loaded, free_memory(loaded.device), 0.3, decisions)
    cache = _cache(config, loaded, sizing.num_pages)
    runner = build_runner(
        loaded.model,
        loaded.ops,
        RunnerSettings(
            num_pages=sizing.num_pages,
            page_size=sizing.page_size,
            max_step_tokens=loaded.max_step_tokens,
            max_step_rows=loaded.max_running,
            kv_dtype=_kv_dtype(config, loaded),
            adapter_slots=loaded.adapter_slots,
            draft_scratch=0 if draft is None else draft.scratch,
        ),
        cache.slot_table.array,
        None if draft is None else draft.model,
    )
    warm_up(runner)
    guesses = None
    if draft is not None and runner.draft is not None:
        guesses = HostDraft(
            runner.draft,
            loaded.ops,
            max_context=loaded.model.max_context,
            width=draft.width,
            max_depth=draft.levels,
        )
        guesses.warm_up()
    worker = build_worker(runner, overlap=config.scheduler.overlap)
    return Backend(cache, worker, sizing, _pools(runner), guesses)


def on_device(config: EngineConfig, loaded: Loaded, decisions: list[Decision]) -> Backend:
    page_size, context = config.memory.page_size, loaded.model.max_context
    draft = loaded.draft
    builder = DeviceBuilder(
        loaded.model,
        loaded.ops,
        DeviceSettings(
            page_size=page_size,
            max_step_tokens=loaded.max_step_tokens,
            max_rows=loaded.max_running,
            slot_width=-(-context // page_size) * page_size,
            kv_dtype=_kv_dtype(config, loaded),
            attention=config.device.attention_backend,
            guesses=config.speculative.speculative is not None,
            adapter_slots=loaded.adapter_slots,
            draft_width=0 if draft is None else draft.width,
            draft_levels=0 if draft is None else draft.levels,
            draft_nodes=0 if draft is None else draft.nodes,
            lookup_nodes=ngram_tokens(config.speculative, loaded.device.type),
        ),
        loaded.device,
        None if draft is None else draft.model,
    )
    sizing = _size(config, loaded, builder.free_bytes(), 0.9, decisions)
    cache = _cache(config, loaded, sizing.num_pages)
    cache.slot_table.record_changes()
    worker = builder.worker(sizing.num_pages, overlap=config.scheduler.overlap)
    guesses = None if draft is None else StepDrafter(draft.levels)
    decisions.extend(Decision(*note) for note in builder.notes)
    choice = worker.runner.choice
    masks = None if choice is None else choice.masks.take
    return Backend(cache, worker, sizing, _pools(worker.runner), guesses, masks)


def _pools(runner: ModelRunner | DeviceRunner) -> list[KVPool]:
    return [runner.kv_pool, *([] if runner.draft is None else [runner.draft.pool])]


def _cache(config: EngineConfig, loaded: Loaded, num_pages: int) -> CacheManager:
    return CacheManager(
        num_pages,
        config.memory.page_size,
        loaded.max_running,
        loaded.model.max_context,
        eviction=config.memory.eviction,
        prefix_cache=config.memory.prefix_cache,
    )


def _size(
    config: EngineConfig,
    loaded: Loaded,
    free_bytes: int,
    usual_fraction: float,
    decisions: list[Decision],
) -> SizingDecision:
    spec, kv_dtype, draft = loaded.model.spec, _kv_dtype(config, loaded), loaded.draft
    per_token = KVPool.bytes_per_token(spec.num_layers, spec.kv_heads, spec.head_dim, kv_dtype)
    if draft is not None:
        kept = draft.bytes_per_token(kv_dtype, loaded.ops.dtype)
        per_token += kept
        free_bytes = max(0, free_bytes - kept * draft.scratch)
    sizing = decide_pages(
        bytes_per_token=per_token,
        page_size=config.memory.page_size,
        max_context=loaded.model.max_context,
        free_bytes=free_bytes,
        memory_fraction=config.memory.memory_fraction or usual_fraction,
        kv_tokens=config.memory.kv_tokens,
    )
    decisions.append(Decision("kv_tokens", str(sizing.num_tokens), sizing.why))
    return sizing


def _weight_dtype(config: EngineConfig, device: torch.device) -> WeightDtype:
    """How matrices are kept: on a CPU the file's own bits, unless dtype or quantization says
    otherwise; on CUDA dense."""
    chosen = config.model.dtype
    if chosen == "float32":
        return "float32"
    dense = device.type != "cpu" or config.model.quantization in ("none", None)
    return "bfloat16" if chosen == "bfloat16" or dense else "auto"


def _kv_dtype(config: EngineConfig, loaded: Loaded) -> torch.dtype:
    chosen: Any = config.model.kv_dtype
    return kv_dtype_of(loaded.model.spec, _weight_dtype(config, loaded.device), chosen)
