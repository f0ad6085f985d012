"""Puts a runner together from its parts; the one place where they are chosen.

Invariant: a runner that was built can run any plan within its settings; what cannot work is said
here, by a typed error, before the first request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from branchline.kernels.cpu.binding import Runner
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionBackend, AttentionNeeds
from branchline.runtime.attention.registry import make_attention
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.protocols import Worker
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.executor.cpu_graph import ModelGraph
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.model_runner import Graphs, ModelRunner
from branchline.runtime.executor.step import StepExecutor
from branchline.runtime.executor.torch_threads import torch_threads
from branchline.runtime.executor.worker import CpuWorker, SyncWorker
from branchline.runtime.layers.parameter import Slot, WeightDtype
from branchline.runtime.loading.checkpoint import Checkpoint, DummyCheckpoint, TensorSource
from branchline.runtime.loading.load import load_into
from branchline.runtime.loading.on_device import OnDevice
from branchline.runtime.memory.draft_pool import DraftPool
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel
from branchline.runtime.models.registry import make_model
from branchline.runtime.sampling.sampler import Sampler

_CPU = torch.device("cpu")

KVDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Sizes and choices of a runner.

    Attributes:
        num_pages: pages of the key-value pool, the padding page not counted.
        page_size: tokens per page.
        max_step_tokens: tokens of the largest step that is replayed; larger ones run eagerly.
        max_step_rows: rows of the largest step that is replayed.
        kv_dtype: of the pool, see `kv_dtype_of`.
        attention: name of the backend, or "auto".
        graph: replay a recorded forward where ops and attention can.
        draft_scratch: slots that guesses of a draft model lie in, on top of the pool's.
        adapter_slots: that the model's layers were given.
    """

    num_pages: int
    page_size: int = 1
    max_step_tokens: int = 512
    max_step_rows: int = 256
    kv_dtype: torch.dtype = torch.bfloat16
    attention: str = "auto"
    graph: bool = True
    draft_scratch: int = 0
    adapter_slots: int = 0


def kv_dtype_of(spec: ModelSpec, dtype: WeightDtype, kv_dtype: KVDtype = "auto") -> torch.dtype:
    """Elements of the key-value pool: as told, else float32 for float32 weights, else bfloat16."""
    if kv_dtype == "auto":
        wide = dtype == "float32" or (dtype == "auto" and spec.file_dtype == "f32")
        return torch.float32 if wide else torch.bfloat16
    return torch.float32 if kv_dtype == "float32" else torch.bfloat16


def load_weights(model: Model, checkpoint: Checkpoint, device: torch.device = _CPU) -> None:
    """Fill every slot of the model, one tensor at a time, on the device.

    Raises:
        ModelLoadError: before anything is read: every missing, unexpected or misshapen tensor.
    """
    if isinstance(checkpoint, DummyCheckpoint):
        checkpoint.make_on(device)
    fill_slots(model.slots(), checkpoint, device)


def fill_slots(slots_of: Iterable[Slot], checkpoint: TensorSource, device: torch.device) -> None:
    """Fill these slots with all that a checkpoint holds, one tensor at a time, on the device.

    Raises:
        ModelLoadError: see `load_weights`.
    """
    slots = {slot.name: slot for slot in slots_of}
    expected = {name: slot.shape for name, slot in slots.items()}
    for name, tensor in load_into(expected, checkpoint):
        slots[name].put(tensor if device.type == "cpu" else OnDevice(tensor, device))


def load_model(
    checkpoint: Checkpoint,
    ops: Ops,
    *,
    max_context: int | None = None,
    dtype: WeightDtype = "auto",
    device: torch.device = _CPU,
) -> Model:
    """A model with its weights, fitted to `ops`.

    Args:
        checkpoint: the file.
        ops: what it will run with.
        max_context: tokens per sequence at most; None = the model's own.
        dtype: how matrices are kept, see `WeightDtype`; not "auto" on another device than a CPU.
        device: where the weights are.

    Raises:
        ModelLoadError: unsupported architecture or context, or the file does not fit.
    """
    spec = checkpoint.spec
    model = make_model(spec, spec.max_context if max_context is None else max_context, dtype)
    with torch_threads(1):
        load_weights(model, checkpoint, device)
        model.prepare(ops)
    return model


def token_table(max_rows: int, max_context: int) -> torch.Tensor:
    """int32 [max_rows, max_context + 1] zeros: a full row still has room for the id after it."""
    return torch.zeros((max_rows, max_context + 1), dtype=torch.int32)


def build_runner(
    model: Model,
    ops: Ops,
    settings: RunnerSettings,
    slot_table: np.ndarray[tuple[int, int], np.dtype[np.int32]],
    draft_model: DraftModel | None = None,
) -> ModelRunner:
    """A runner on the CPU, with a pool and a token table of its own.

    Args:
        model: of `load_model`.
        ops: the same as there.
        settings: sizes.
        slot_table: int32 [max_rows, >= model.max_context], the cache manager's own array; shared.
        draft_model: keeps something of every token that is computed.

    Raises:
        InvalidRequest: no attention backend can run it.
        ModelLoadError: the slot table is too narrow.
    """
    spec, device = model.spec, torch.device("cpu")
    if slot_table.shape[1] < model.max_context:
        raise ModelLoadError(
            "The slot table is narrower than the model's context.",
            value=f"{slot_table.shape[1]} < {model.max_context}",
        )
    needs = AttentionNeeds(spec.heads, spec.kv_heads, spec.head_dim, settings.kv_dtype, device)
    attention = make_attention(settings.attention, needs)
    pool = KVPool(
        spec.num_layers,
        settings.num_pages,
        settings.page_size,
        spec.kv_heads,
        spec.head_dim,
        dtype=settings.kv_dtype,
        device=device,
    )
    draft = None
    if draft_model is not None:
        draft = draft_beside(pool, draft_model, settings.draft_scratch, torch.float32)
    slots = torch.from_numpy(slot_table)
    tokens = token_table(slot_table.shape[0], model.max_context)
    record = None
    recordable = attention.supports(replace(needs, graph=True)).ok
    if settings.graph and recordable and isinstance(ops, NativeOps):
        record = partial(
            _record,
            model,
            attention,
            pool,
            slots,
            tokens,
            draft=draft,
            native=ops.runner,
            settings=settings,
        )
    return ModelRunner(
        model,
        ops,
        attention,
        pool,
        slots,
        tokens,
        draft=draft,
        graphs=None if record is None else record(adapted=False),
        adapter_slots=settings.adapter_slots,
        record=partial(record, adapted=True) if record and settings.adapter_slots else None,
    )


def _record(
    model: Model,
    attention: AttentionBackend,
    pool: KVPool,
    slots: torch.Tensor,
    tokens: torch.Tensor,
    *,
    draft: Draft | None,
    native: Runner,
    settings: RunnerSettings,
    adapted: bool,
) -> Graphs:
    """The forward alone, and with the head."""
    body, whole = (
        ModelGraph(
            model,
            attention,
            pool,
            slots,
            tokens,
            draft=draft,
            runner=native,
            max_tokens=settings.max_step_tokens,
            max_rows=settings.max_step_rows,
            head=head,
            adapted=adapted,
        )
        for head in (False, True)
    )
    return body, whole


def draft_beside(
    pool: KVPool, model: DraftModel, scratch: int, feature_dtype: torch.dtype
) -> Draft:
    """A draft model with a pool of the same slots as the target's, and `scratch` more."""
    sizes = model.sizes
    entries = DraftPool(
        sizes.num_layers,
        sizes.kv_heads,
        sizes.head_dim,
        sizes.feature_width,
        num_pages=pool.num_pages,
        page_size=pool.page_size,
        scratch=scratch,
        dtype=pool.buffer.dtype,
        feature_dtype=feature_dtype,
        device=pool.buffer.device,
    )
    return Draft(model, entries)


def build_worker(runner: ModelRunner, *, overlap: bool = True) -> Worker:
    """A worker with a sampler of its own; `overlap` gives it a thread of its own."""
    executor = StepExecutor(runner, Sampler(runner.vocab_size))
    if not overlap:
        return SyncWorker(executor)
    return CpuWorker(executor, 1 if isinstance(runner.ops, NativeOps) else None)
