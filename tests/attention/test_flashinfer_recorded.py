"""Steps whose attention FlashInfer plans: recorded once, planned anew for each step.

On a CPU a stand-in takes FlashInfer's place, which reads what FlashInfer would read: the host's
lengths when a step is planned, the device's buffers when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from branchline.kernels.ops import AttentionMeta
from branchline.kernels.testing import meta_on, random_step
from branchline.kernels.triton import TritonOps
from branchline.runtime.attention import flashinfer_wrappers
from branchline.runtime.attention.base import AttentionNeeds
from branchline.runtime.attention.flashinfer import FlashInferAttention
from tests.attention.test_backends import brute_force

HEADS, KV_HEADS, DIM = 4, 2, 64
SCALE = DIM**-0.5
TOKENS, ROWS = 160, 7
"""Of the recorded step, padding included."""

STEPS: dict[str, list[tuple[int, int]]] = {
    "prompts": [(40, 40), (90, 60)],
    "rows of one token first": [(30, 1), (41, 1), (80, 50), (9, 9)],
    "a row of one token behind a prompt": [(70, 33), (12, 1), (5, 5)],
    "full": [(17, 1), (100, 100), (59, 59)],
    "a row without tokens": [(8, 0), (50, 20)],
    "rows of one token alone": [(60, 1), (2, 1)],
}


class StandIn:
    """`BatchPrefillWithPagedKVCacheWrapper` over pages of one slot, written out row by row."""

    layout: ClassVar = [1, 2, 3]

    def __init__(self, scratch: torch.Tensor, use_cuda_graph: bool = False, **buffers: Any) -> None:
        self.buffers = buffers if use_cuda_graph else {}
        self._plan_info = [0]

    def plan(
        self,
        starts: torch.Tensor,
        kv_starts: torch.Tensor,
        slots: torch.Tensor,
        last: torch.Tensor,
        *sizes: int,
        **options: object,
    ) -> None:
        assert sizes == (HEADS, KV_HEADS, DIM, 1) and options["causal"]
        assert len(starts) == len(kv_starts) == len(last) + 1
        self.starts, self.kv_starts, self.slots = starts, kv_starts, slots
        self._plan_info = list(StandIn.layout)
        if self.buffers:
            assert len(starts) == len(self.buffers["qo_indptr_buf"])
            self.buffers["qo_indptr_buf"].copy_(starts)
            self.buffers["paged_kv_indptr_buf"].copy_(kv_starts)
            assert len(slots) <= len(self.buffers["paged_kv_indices_buf"])
            self.starts = self.buffers["qo_indptr_buf"]
            self.kv_starts = self.buffers["paged_kv_indptr_buf"]
            self.slots = self.buffers["paged_kv_indices_buf"]

    def run(self, q: torch.Tensor, pools: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        assert int(self.starts[-1]) == len(q), "all queries are somebody's"
        k, v = (pool[:, 0].repeat_interleave(HEADS // KV_HEADS, 1).float() for pool in pools)
        for row in range(len(self.starts) - 1):
            first, end = int(self.starts[row]), int(self.starts[row + 1])
            slots = self.slots[int(self.kv_starts[row]) : int(self.kv_starts[row + 1])].long()
            for token in range(first, end):
                seen = slots[: len(slots) - (end - 1 - token)]
                scores = torch.einsum("hd,nhd->hn", q[token].float(), k[seen]) * SCALE
                out[token] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v[seen]).to(out.dtype)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=StandIn)
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(flashinfer_wrappers, "_event", lambda: event)
    monkeypatch.setattr(flashinfer_wrappers, "_WORKSPACE_BYTES", 16)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> FlashInferAttention:
    if kernel_device.type == "cpu":
        stand_in(monkeypatch)
    return FlashInferAttention(AttentionNeeds(HEADS, KV_HEADS, DIM, torch.bfloat16, kernel_device))


def pools(slots: int, device: torch.device) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, slots, KV_HEADS, DIM).bfloat16().to(device)


def error(got: torch.Tensor, q: torch.Tensor, kv: torch.Tensor, meta: AttentionMeta) -> float:
    want = brute_force(q.float().cpu(), *kv.float().cpu(), meta, SCALE)
    return float((got.double().cpu() - want).norm() / want.norm())


def padded(meta: AttentionMeta, tokens: int, rows: int) -> AttentionMeta:
    """A step filled up to a recorded size by rows of at most 64 tokens, all of them in slot 0."""
    table = torch.cat([meta.slot_table, torch.zeros_like(meta.slot_table[:1])])
    spare, lens = tokens - int(meta.extend_lens.sum()), []
    for _ in range(rows - len(meta.rows)):
        lens.append(min(64, spare))
        spare -= lens[-1]
    assert not spare, "padding fits into its rows"
    more = torch.tensor(lens, dtype=torch.int32)
    extend = torch.cat([meta.extend_lens, more])
    return AttentionMeta(
        rows=torch.cat([meta.rows, torch.full_like(more, len(table) - 1)]),
        slot_table=table,
        seq_lens=torch.cat([meta.seq_lens, more]),
        extend_lens=extend,
        extend_start=torch.cat([torch.zeros(1), extend.cumsum(0)]).int(),
    )


@pytest.mark.parametrize("lens", STEPS.values(), ids=STEPS)
def test_a_planned_step_equals_brute_force(
    backend: FlashInferAttention, kernel_device: torch.device, lens: list[tuple[int, int]]
) -> None:
    """The step's slots come into the table behind its plan, as the runner writes them."""
    step, device = random_step(lens, seed=1), kernel_device
    meta, kv = meta_on(step.meta, device), pools(step.num_slots, device)
    meta.slot_table.zero_()
    plan = backend.plan(meta)
    meta.slot_table.copy_(step.meta.slot_table)
    backend.begin(plan)
    q = torch.randn(step.tokens, HEADS, DIM).bfloat16().to(device)
    got = backend.forward(TritonOps(device), q, *kv, plan, SCALE)
    assert error(got, q, kv, step.meta) < 8e-3


class Recorded:
    """A step of TOKENS tokens and ROWS rows: its buffers, and the call that repeats it."""

    def __init__(self, backend: FlashInferAttention, device: torch.device, slots: int) -> None:
        self.backend, self.device, self.kv = backend, device, pools(slots, device)
        self.q = torch.randn(TOKENS, HEADS, DIM).bfloat16().to(device)
        idle = random_step([(1, 0)])
        self.meta = meta_on(padded(idle.meta, TOKENS, ROWS), device)
        wide = torch.zeros(ROWS + 1, 256, dtype=torch.int32, device=device)
        self.meta = AttentionMeta(**(vars(self.meta) | {"slot_table": wide}))
        self.plan = backend.init_graph(self.meta, planned=True)
        backend.plan_replay(self.plan, self.meta)
        self._ops = TritonOps(device)
        self._replay = self._queue
        self.out = self._queue()
        if device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self.out = self._queue()
            self._replay = graph.replay

    def run(self, step: AttentionMeta) -> torch.Tensor:
        """The outputs of a padded step, whose slots are in the table when its turn comes."""
        there = meta_on(step, self.device)
        for name in ("rows", "seq_lens", "extend_lens", "extend_start"):
            getattr(self.meta, name).copy_(getattr(there, name))
        self.backend.plan_replay(self.plan, there)
        self.meta.slot_table.zero_()
        self.meta.slot_table[: len(there.slot_table), : there.slot_table.shape[1]].copy_(
            there.slot_table
        )
        out = self._replay()
        return self.out if out is None else out

    def _queue(self) -> torch.Tensor:
        self.backend.begin(self.plan)
        return self.backend.forward(self._ops, self.q, *self.kv, self.plan, SCALE)


def test_one_recording_serves_every_step(
    backend: FlashInferAttention, kernel_device: torch.device
) -> None:
    """Each step after all others, so that nothing is left of them."""
    steps = [random_step(lens, seed=seed) for seed, lens in enumerate(STEPS.values())]
    recorded = Recorded(backend, kernel_device, max(step.num_slots for step in steps))
    for step in (*steps, *reversed(steps)):
        got = recorded.run(padded(step.meta, TOKENS, ROWS))[: step.tokens].clone()
        assert error(got, recorded.q[: step.tokens], recorded.kv, step.meta) < 8e-3


def test_a_plan_laid_out_otherwise_than_the_recorded_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recording has the old places in its launches: it would read something else."""
    stand_in(monkeypatch)
    device = torch.device("cpu")
    backend = FlashInferAttention(AttentionNeeds(HEADS, KV_HEADS, DIM, torch.bfloat16, device))
    meta = meta_on(padded(random_step(STEPS["prompts"]).meta, TOKENS, ROWS), device)
    plan = backend.init_graph(meta, planned=True)
    for _ in range(2):
        backend.plan_replay(plan, meta)
    monkeypatch.setattr(StandIn, "layout", [1, 2, 4])
    with pytest.raises(RuntimeError, match="attention_backend='triton'"):
        backend.plan_replay(plan, meta)
