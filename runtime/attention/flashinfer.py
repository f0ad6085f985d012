"""Attention by FlashInfer (Ye et al., 2025) over the pool seen as pages of one slot.

Invariant: a step is planned once, from lengths that the host has, and its plan serves all layers.
Planning writes a pinned buffer that the device copies later, so buffers are used in turn and one
is written again only when its copy is over. Steps with trees go to the ops' own kernel, which
reads the mask bits where they lie; FlashInfer would want a byte for each key and query.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, Support

_WORKSPACE_BYTES = 256 << 20
_TURNS = 3
_HEADS = (64, 128, 256)
_DECODE_GROUPS = (1, 2, 3, 4, 8)
"""Query heads per KV head that FlashInfer's own decode kernel is compiled for."""


@dataclass(slots=True)
class FlashInferPlan:
    """One step, or the steps of one graph.

    Attributes:
        meta: of the step.
        wrapper: FlashInfer's planned wrapper; None = the ops' own kernel runs the step.
        indices: [most tokens] int32, slots of all rows one after the other; of a graph only.
    """

    meta: AttentionMeta
    wrapper: Any = None
    indices: torch.Tensor | None = None


@dataclass(slots=True)
class _Turn:
    """A prefill and a decode wrapper over one set of buffers, and when they may be used again."""

    extend: Any
    decode: Any
    copied: torch.cuda.Event


class FlashInferAttention:
    """Prefill, mixed steps and decode.

    Args:
        needs: what the model and the pool are; wrappers are made at the first plan.
    """

    name = "flashinfer"

    def __init__(self, needs: AttentionNeeds) -> None:
        self._needs = needs
        self._turns: list[_Turn] = []
        self._next = 0
        self._workspace: torch.Tensor | None = None

    def supports(self, needs: AttentionNeeds) -> Support:
        """bfloat16 pools on CUDA and heads of 64, 128 or 256, if FlashInfer is installed."""
        if needs.device.type != "cuda":
            return Support(False, f"its kernels run on CUDA, the pool is on {needs.device}")
        if importlib.util.find_spec("flashinfer") is None:
            return Support(False, "it is not installed: pip install 'branchline[cuda]'")
        if needs.kv_dtype != torch.bfloat16:
            return Support(False, f"it reads bfloat16 pools, not {needs.kv_dtype}")
        if needs.head_dim not in _HEADS:
            return Support(False, f"its heads have {_HEADS} elements, not {needs.head_dim}")
        return Support(True)

    def plan(self, meta: AttentionMeta) -> FlashInferPlan:
        """Plans the step on the host; queues the copy of the plan to the device."""
        lens = _host_lengths(meta)
        if lens is None or meta.tree_lens is not None:
            return FlashInferPlan(meta)
        seq_lens, extend_lens = lens
        if _longest(extend_lens) <= 1 and self._group not in _DECODE_GROUPS:
            return FlashInferPlan(meta)
        turn = self._take_turn()
        indptr = _indptr(seq_lens)
        indices = _slots_of_rows(meta, indptr.to(self._needs.device), seq_lens)
        if bool((extend_lens == 1).all()):
            self._plan_decode(turn.decode, indptr, indices)
            wrapper = turn.decode
        else:
            self._plan_extend(turn.extend, _indptr(extend_lens), indptr, indices)
            wrapper = turn.extend
        turn.copied.record()
        return FlashInferPlan(meta, wrapper)

    def forward(
        self,
        ops: Ops,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        if plan.wrapper is None:
            return ops.paged_attention(q, k_pool, v_pool, plan.meta, scale)
        usual = self._needs.head_dim**-0.5
        if abs(scale - usual) > 1e-6 * usual:
            q = q * (scale / usual)
        out: torch.Tensor = plan.wrapper.run(q, (k_pool[:, None], v_pool[:, None]))
        return out.reshape(q.shape[0], -1)

    def init_graph(self, meta: AttentionMeta) -> FlashInferPlan:
        """Decode of as many rows as `meta` has, over buffers of its own; else the ops' kernel."""
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        lens = _host_lengths(meta)
        decode = lens is not None and _longest(lens[1]) <= 1
        if not decode or meta.tree_lens is not None or self._group not in _DECODE_GROUPS:
            return FlashInferPlan(meta)
        rows, device = meta.rows.shape[0], self._needs.device
        indices = torch.zeros(rows * meta.slot_table.shape[1], dtype=torch.int32, device=device)
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self._buffer(),
            use_cuda_graph=True,
            paged_kv_indptr_buffer=torch.zeros(rows + 1, dtype=torch.int32, device=device),
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=torch.ones(rows, dtype=torch.int32, device=device),
        )
        plan = FlashInferPlan(meta, wrapper, indices)
        self.plan_replay(plan, meta)
        return plan

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Plan a recorded decode for these lengths; a row without tokens reads one slot."""
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        if plan.wrapper is None or plan.indices is None:
            return
        lens = _host_lengths(meta)
        assert lens is not None, "a recorded decode is planned from lengths on the host"
        seq_lens = lens[0].clip(min=1)
        indptr = _indptr(seq_lens)
        _slots_of_rows(meta, indptr.to(self._needs.device), seq_lens, out=plan.indices)
        self._plan_decode(plan.wrapper, indptr, plan.indices[: int(indptr[-1])])

    @property
    def _group(self) -> int:
        return self._needs.heads // self._needs.kv_heads

    def _buffer(self) -> torch.Tensor:
        """Scratch of the kernels, shared: they run one after the other."""
        if self._workspace is None:
            self._workspace = torch.zeros(
                _WORKSPACE_BYTES, dtype=torch.uint8, device=self._needs.device
            )
        return self._workspace

    def _take_turn(self) -> _Turn:
        from flashinfer import (
            BatchDecodeWithPagedKVCacheWrapper,
            BatchPrefillWithPagedKVCacheWrapper,
        )

        if len(self._turns) < _TURNS:
            self._turns.append(
                _Turn(
                    BatchPrefillWithPagedKVCacheWrapper(self._buffer()),
                    BatchDecodeWithPagedKVCacheWrapper(self._buffer()),
                    torch.cuda.Event(),  # type: ignore[no-untyped-call]  # torch's own
                )
            )
            return self._turns[-1]
        turn = self._turns[self._next]
        self._next = (self._next + 1) % _TURNS
        turn.copied.synchronize()
        return turn

    def _plan_decode(self, wrapper: Any, indptr: torch.Tensor, indices: torch.Tensor) -> None:
        needs = self._needs
        wrapper.plan(
            indptr,
            indices,
            torch.ones(len(indptr) - 1, dtype=torch.int32),
            needs.heads,
            needs.kv_heads,
            needs.head_dim,
            1,
            q_data_type=torch.bfloat16,
            kv_data_type=needs.kv_dtype,
        )

    def _plan_extend(
        self,
        wrapper: Any,
        qo_indptr: torch.Tensor,
        indptr: torch.Tensor,
        indices: torch.Tensor,
    ) -> None:
        needs = self._needs
        wrapper.plan(
            qo_indptr,
            indptr,
            indices,
            torch.ones(len(indptr) - 1, dtype=torch.int32),
            needs.heads,
            needs.kv_heads,
            needs.head_dim,
            1,
            causal=True,
            q_data_type=torch.bfloat16,
            kv_data_type=needs.kv_dtype,
        )


def _host_lengths(meta: AttentionMeta) -> tuple[torch.Tensor, torch.Tensor] | None:
    """seq_lens and extend_lens in host memory, or None where only the device has them."""
    seq_lens, extend_lens = meta.host_seq_lens, meta.host_extend_lens
    if seq_lens is None or extend_lens is None:
        return None
    return seq_lens, extend_lens


def _longest(lens: torch.Tensor) -> int:
    return int(lens.max()) if len(lens) else 0


def _indptr(lens: torch.Tensor) -> torch.Tensor:
    """int32 [b + 1], 0 and the running sums of lens."""
    out = torch.zeros(len(lens) + 1, dtype=torch.int32)
    torch.cumsum(lens, 0, out=out[1:])
    return out


def _slots_of_rows(
    meta: AttentionMeta,
    indptr: torch.Tensor,
    lens: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    # Imported where it is used: a machine without a GPU may have no Triton.
    from branchline.kernels.triton.paging import slots_of_rows

    return slots_of_rows(meta, indptr, lens, out)
