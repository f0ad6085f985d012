"""Attention of prompts by FlashInfer (Ye et al., 2025), over the pool seen as pages of one slot.

Invariant: a step is planned once, from lengths that the host has, and its plan serves all layers.
Rows of one token, steps with trees and recorded steps go to the ops' own kernels, which need no
planning and were no slower where they were measured (docs/benchmarks.md). Planning writes a pinned
buffer that the device copies later, so buffers are used in turn, and one is written again only
when its copy is over.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, replace
from typing import Any

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, OpsPlan, Support
from branchline.runtime.attention.triton import TritonAttention

_WORKSPACE_BYTES = 256 << 20
_TURNS = 3
_HEADS = (64, 128, 256)


@dataclass(slots=True)
class FlashInferPlan:
    """One step.

    Attributes:
        own: of the ops' own kernels.
        wrapper: FlashInfer's planned wrapper; None = the ops' own kernels run the whole step.
        first: tokens before this one are of rows with one token each.
        singles: metadata of those rows, the others without tokens; None = there are none.
    """

    own: OpsPlan
    wrapper: Any = None
    first: int = 0
    singles: AttentionMeta | None = None

    @property
    def meta(self) -> AttentionMeta:
        """The step."""
        return self.own.meta


@dataclass(slots=True)
class _Turn:
    """A wrapper over buffers of its own, and when they may be used again."""

    wrapper: Any
    copied: torch.cuda.Event


class FlashInferAttention:
    """Prompts and steps that mix them with rows of one token.

    Args:
        needs: what the model and the pool are; wrappers are made at the first plan.
    """

    name = "flashinfer"

    def __init__(self, needs: AttentionNeeds) -> None:
        self._needs = needs
        self._own = TritonAttention(needs)
        self.finds_trunks = self._own.finds_trunks
        self._turns: list[_Turn] = []
        self._next = 0

    def supports(self, needs: AttentionNeeds) -> Support:
        """bfloat16 pools on CUDA and heads of 64, 128 or 256, if FlashInfer is installed."""
        if needs.device.type != "cuda":
            return Support(False, f"its kernels run on CUDA, the pool is on {needs.device}")
        if importlib.util.find_spec("flashinfer") is None:
            return Support(False, "it is not installed: pip install 'branchline[cuda]'")
        if not _can_build():
            return Support(
                False,
                "it compiles its kernels at first use and there is no nvcc (set CUDA_HOME, or "
                "install flashinfer-jit-cache)",
            )
        if needs.kv_dtype != torch.bfloat16:
            return Support(False, f"it reads bfloat16 pools, not {needs.kv_dtype}")
        if needs.deterministic:
            return Support(False, "it sums in an order that depends on the whole step")
        if needs.head_dim not in _HEADS:
            return Support(False, f"its heads have {_HEADS} elements, not {needs.head_dim}")
        return Support(True)

    def plan(self, meta: AttentionMeta) -> FlashInferPlan:
        """Plans the step on the host; queues the copy of the plan to the device."""
        seq_lens, extend_lens = meta.host_seq_lens, meta.host_extend_lens
        if seq_lens is None or extend_lens is None or meta.tree_lens is not None:
            return FlashInferPlan(self._own.plan(meta))
        long = extend_lens > 1
        if not bool(long.any()):
            return FlashInferPlan(self._own.plan(meta))
        # Rows of one token come first in a step; were they not, they are planned as the others.
        split = int(long.int().argmax())
        first = int(extend_lens[:split].sum())
        turn = self._take_turn()
        self._plan_long(turn.wrapper, meta, seq_lens, extend_lens, split)
        turn.copied.record()
        singles = None
        if first:
            short = torch.where(meta.extend_lens > 1, 0, meta.extend_lens)
            short[split:] = 0
            host = extend_lens.clone()
            host[split:] = 0
            singles = replace(meta, extend_lens=short, host_extend_lens=host)
        return FlashInferPlan(OpsPlan(meta), turn.wrapper, first, singles)

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
        if plan.singles is None:
            out = torch.empty_like(q)
        else:
            out = ops.paged_attention(q, k_pool, v_pool, plan.singles, scale).view_as(q)
        usual = self._needs.head_dim**-0.5
        if abs(scale - usual) > 1e-6 * usual:
            q = q * (scale / usual)
        pools = (k_pool[:, None], v_pool[:, None])
        plan.wrapper.run(q[plan.first :], pools, out=out[plan.first :])
        return out.view(q.shape[0], -1)

    def begin(self, plan: AttentionPlan) -> None:
        """What the ops' own kernels want, if they run the step."""
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        if plan.wrapper is None:
            self._own.begin(plan.own)

    def init_graph(self, meta: AttentionMeta, *, trunks: bool = True) -> FlashInferPlan:
        """A recorded step runs on the ops' own kernels."""
        return FlashInferPlan(self._own.init_graph(meta, trunks=trunks))

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """As those kernels want it."""
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        self._own.plan_replay(plan.own, meta)

    def _take_turn(self) -> _Turn:
        # Imported at the first prompt: it takes a second, and a CPU never gets here.
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        if len(self._turns) < _TURNS:
            if self._turns:
                scratch = self._turns[0].wrapper._float_workspace_buffer
            else:
                device = self._needs.device
                scratch = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            # Steps run one after the other, so that they share the kernels' scratch.
            self._turns.append(_Turn(BatchPrefillWithPagedKVCacheWrapper(scratch), copied))
            return self._turns[-1]
        turn = self._turns[self._next]
        self._next = (self._next + 1) % _TURNS
        turn.copied.synchronize()
        return turn

    def _plan_long(
        self,
        wrapper: Any,
        meta: AttentionMeta,
        seq_lens: torch.Tensor,
        extend_lens: torch.Tensor,
        split: int,
    ) -> None:
        """Plan the rows from `split` on."""
        # Imported where it is used: a machine without a GPU may have no Triton.
        from branchline.kernels.triton.paging import slots_of_rows

        needs, lens = self._needs, seq_lens[split:]
        indptr = _indptr(lens)
        indices = slots_of_rows(meta.slot_table, meta.rows[split:], indptr.to(needs.device), lens)
        wrapper.plan(
            _indptr(extend_lens[split:]),
            indptr,
            indices,
            torch.ones(len(lens), dtype=torch.int32),
            needs.heads,
            needs.kv_heads,
            needs.head_dim,
            1,
            causal=True,
            q_data_type=torch.bfloat16,
            kv_data_type=needs.kv_dtype,
        )


def _can_build() -> bool:
    """Whether FlashInfer's kernels are there ready-made, or can be compiled."""
    ready = importlib.util.find_spec("flashinfer_jit_cache") is not None
    return ready or "CUDA_HOME" in os.environ or shutil.which("nvcc") is not None


def _indptr(lens: torch.Tensor) -> torch.Tensor:
    """int32 [b + 1], 0 and the running sums of lens."""
    out = torch.zeros(len(lens) + 1, dtype=torch.int32)
    torch.cumsum(lens, 0, out=out[1:])
    return out
