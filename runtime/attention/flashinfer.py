"""Attention of prompts by FlashInfer (Ye et al., 2025), over the pool seen as pages of one slot.

Invariant: a step is planned once, from lengths that the host has, and its plan serves all layers;
which slots the rows have is read on the device (`begin`), once the step's own are in the table.
Rows of one token and steps with trees go to the ops' own kernels, which need no planning and were
no slower where they were measured (docs/benchmarks.md), and so do recorded steps that are not
planned. Planning writes a pinned buffer that the device copies later: buffers are used in turn, and
one is written again only when its copy is over.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, replace

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, OpsPlan, Support
from branchline.runtime.attention.flashinfer_wrappers import MOST_KEYS, Planned, Wrappers
from branchline.runtime.attention.triton import TritonAttention

_HEADS = (64, 128, 256)


@dataclass(slots=True)
class FlashInferPlan:
    """One step, or every step that one recording replays.

    Attributes:
        own: of the ops' own kernels.
        planned: FlashInfer's part; None = the ops' own kernels run the whole step.
        first: tokens before this one are of rows with one token each; 0 in a recording, whose
            steps differ in it.
        singles: metadata of those rows, the others without tokens; None = there are none.
    """

    own: OpsPlan
    planned: Planned | None = None
    first: int = 0
    singles: AttentionMeta | None = None

    @property
    def meta(self) -> AttentionMeta:
        """The step."""
        return self.own.meta


class FlashInferAttention:
    """Prompts and steps that mix them with rows of one token.

    Args:
        needs: what the model and the pool are; wrappers are made at the first plan.
    """

    name = "flashinfer"
    most_planned_keys = MOST_KEYS

    def __init__(self, needs: AttentionNeeds) -> None:
        self._needs = needs
        self._own = TritonAttention(needs)
        self.finds_trunks = self._own.finds_trunks
        self._wrappers = Wrappers(needs)

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
        split = _first_long(extend_lens)
        if split == len(extend_lens):
            return FlashInferPlan(self._own.plan(meta))
        first = int(extend_lens[:split].sum())
        planned = self._wrappers.plan(meta, seq_lens, extend_lens, split)
        singles = None
        if first:
            short = torch.where(meta.extend_lens > 1, 0, meta.extend_lens)
            short[split:] = 0
            host = extend_lens.clone()
            host[split:] = 0
            singles = replace(meta, extend_lens=short, host_extend_lens=host)
        return FlashInferPlan(OpsPlan(meta), planned, first, singles)

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
        if plan.planned is None:
            return ops.paged_attention(q, k_pool, v_pool, plan.meta, scale)
        if plan.singles is None:
            out = torch.empty_like(q)
        else:
            out = ops.paged_attention(q, k_pool, v_pool, plan.singles, scale).view_as(q)
        into = out
        if plan.first:
            q, into = q[plan.first :], out[plan.first :]
        usual = self._needs.head_dim**-0.5
        if abs(scale - usual) > 1e-6 * usual:
            q = q * (scale / usual)
        plan.planned.wrapper.run(q, (k_pool[:, None], v_pool[:, None]), out=into)
        return out.view(out.shape[0], -1)

    def begin(self, plan: AttentionPlan) -> None:
        """Slots of the rows, or what the ops' own kernels want if they run the step."""
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        if plan.planned is None:
            self._own.begin(plan.own)
        else:
            plan.planned.read_slots(plan.meta.slot_table)

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> FlashInferPlan:
        """A recorded step runs on the ops' own kernels, unless it is planned."""
        if not planned:
            return FlashInferPlan(self._own.init_graph(meta, trunks=trunks))
        made = self._wrappers.recorded(meta)
        # what the ops choose a kernel by: no row has more than one token
        none = torch.zeros(len(meta.rows), dtype=torch.int32)
        assert made.short is not None, "a recording has room for them"
        singles = replace(meta, extend_lens=made.short, host_extend_lens=none)
        return FlashInferPlan(OpsPlan(meta), made, singles=singles)

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Plans the step on the host, where the recording is a planned one.

        Raises:
            RuntimeError: FlashInfer laid its plan out otherwise than when this was recorded.
        """
        assert isinstance(plan, FlashInferPlan), "a plan belongs to the backend that made it"
        if plan.planned is None:
            self._own.plan_replay(plan.own, meta)
            return
        seq_lens, extend_lens = meta.host_seq_lens, meta.host_extend_lens
        assert seq_lens is not None and extend_lens is not None, "the runner has the lengths"
        self._wrappers.plan_again(plan.planned, seq_lens, extend_lens, _first_long(extend_lens))


def _first_long(extend_lens: torch.Tensor) -> int:
    """The first row of more than one token; how many rows there are, if none has.

    Rows of one token come first in a step; were they not, they are planned as the others.
    """
    long = extend_lens > 1
    return int(long.int().argmax()) if bool(long.any()) else len(extend_lens)


def _can_build() -> bool:
    """Whether FlashInfer's kernels are there ready-made, or can be compiled."""
    ready = importlib.util.find_spec("flashinfer_jit_cache") is not None
    return ready or "CUDA_HOME" in os.environ or shutil.which("nvcc") is not None
