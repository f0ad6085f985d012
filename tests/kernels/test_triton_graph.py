"""A forward of these ops can be recorded: replays over changed inputs equal eager runs."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.sampling import Draws
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton import TritonOps
from branchline.kernels.weights import DenseWeight

H, HQ, HKV, D, F, V, LAYERS, SLOTS, CONTEXT = 256, 4, 2, 64, 512, 1000, 3, 400, 96


class Tiny:
    """A Llama-like forward over random weights (of bfloat16) and pools, in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)

        def weight(n: int, k: int) -> DenseWeight:
            return DenseWeight((torch.randn(n, k) * k**-0.5).cuda().bfloat16().to(dtype))

        self.embed = weight(V, H)
        self.layers = [
            [weight((HQ + 2 * HKV) * D, H), weight(H, HQ * D), weight(2 * F, H), weight(H, F)]
            for _ in range(LAYERS)
        ]
        self.norm = torch.rand(H).cuda() + 0.5
        self.head_norm = torch.rand(D).cuda() + 0.5
        self.cos_sin = torch.randn(CONTEXT, D).cuda()
        self.pools = torch.randn(LAYERS, 2, SLOTS, HKV, D).cuda().to(dtype)

    def forward(
        self,
        ops: Ops,
        ids: torch.Tensor,
        positions: torch.Tensor,
        out_slots: torch.Tensor,
        meta: AttentionMeta,
    ) -> torch.Tensor:
        residual = ops.embedding(ids, self.embed)
        into = [
            HeadPlaces(self.cos_sin, positions, *pools, out_slots, q_norm=self.head_norm)
            for pools in self.pools
        ]
        q = ops.norm_heads(residual, self.norm, 1e-5, self.layers[0][0], into[0])
        for i, (_, out, gate_up, down) in enumerate(self.layers):
            y = ops.paged_attention(q, *self.pools[i], meta, D**-0.5)
            end = BlockEnd(y, out, residual, self.norm, 1e-5)
            y = ops.residual_step(end, gate_up, gated=True)
            end = BlockEnd(y, down, residual, self.norm, 1e-5)
            if i + 1 < LAYERS:
                after = self.layers[i + 1][0]
                q = ops.step_heads(end, after, into[i + 1])
        return ops.head(ops.residual_step(end, None), self.embed)


def random_decode(rows: int, live: int, seed: int) -> tuple[torch.Tensor, ...]:
    """ids, positions, out_slots, rows, slot_table, seq_lens, extend_lens, extend_start."""
    gen = torch.Generator().manual_seed(seed)
    lens = torch.randint(1, CONTEXT, (rows,), generator=gen)
    table = torch.randint(1, SLOTS, (rows, CONTEXT), generator=gen)
    # Slots that are written are read by nobody else.
    own = torch.arange(SLOTS - rows, SLOTS)
    table = table.clamp(max=SLOTS - rows - 1)
    table[torch.arange(rows), lens - 1] = own
    there = torch.arange(rows) < live
    parts = [
        torch.randint(0, V, (rows,), generator=gen),
        (lens - 1) * there,
        own * there,
        torch.arange(rows),
        table,
        lens * there,
        there.long(),
        torch.cat([torch.arange(live + 1), torch.full((rows - live,), live)]),
    ]
    kinds = [torch.int32, torch.int64] + [torch.int32] * 6
    return tuple(x.to(device="cuda", dtype=kind) for x, kind in zip(parts, kinds, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 24])
def test_replays_equal_the_reference(rows: int) -> None:
    model, ops = Tiny(torch.bfloat16), TritonOps("cuda")
    exact = Tiny(torch.float32)
    static = random_decode(rows, rows, 0)
    host = torch.ones(rows, dtype=torch.int32)

    def run() -> torch.Tensor:
        ids, positions, out_slots, *meta = static
        step = AttentionMeta(*meta, host_extend_lens=host)
        return model.forward(ops, ids, positions, out_slots, step)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    for seed, live in ((1, rows), (2, max(1, rows - 1)), (3, rows)):
        for buffer, value in zip(static, random_decode(rows, live, seed), strict=True):
            buffer.copy_(value)
        exact.pools.copy_(model.pools)
        graph.replay()
        ids, positions, out_slots, *meta = (x[:live] for x in static)
        meta[-1] = static[-1][: live + 1]
        want = exact.forward(ReferenceOps(), ids, positions, out_slots, AttentionMeta(*meta))
        got = logits[:live]
        assert torch.isfinite(got).all()
        assert (got - want).norm() < 2.5e-2 * want.norm()  # 1 to 2 % are the activations
        # Slot 0 takes what padding rows write, whatever that is.
        got, want = model.pools[:, :, 1:].float(), exact.pools[:, :, 1:]
        assert (got - want).norm() < 1e-2 * want.norm()


@pytest.mark.gpu
def test_sampling_is_recorded_too() -> None:
    n, vocabulary = 8, 151936
    ops = TritonOps("cuda")
    logits = torch.randn(n, vocabulary, device="cuda")
    draws = Draws(
        torch.tensor([0.0, 1.0, 0.7, 1.2] * 2, device="cuda"),
        torch.tensor([0, 0, 50, 0] * 2, dtype=torch.int32, device="cuda"),
        torch.tensor([1.0, 1.0, 0.9, 0.8] * 2, device="cuda"),
        torch.zeros(n, device="cuda"),
        torch.arange(n, device="cuda") * 77,
        torch.zeros(n, dtype=torch.int64, device="cuda"),
    )
    ops.sample_rows(logits, draws)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, bad = ops.sample_rows(logits, draws)
    for position in range(5):
        logits.copy_(torch.randn(n, vocabulary) * 2)
        draws.positions.fill_(position)
        graph.replay()
        want, _ = ReferenceOps().sample_rows(logits, draws)
        assert not bad.any() and torch.equal(ids, want)
