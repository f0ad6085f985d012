"""A recorded forward replays, for any live batch, what the same ops give eagerly."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.errors import CaptureError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.kernels.testing import Step, random_quantized, random_step
from branchline.kernels.weights import Q4_1Weight, Q8_0Weight, Weight

_H, _HQ, _HKV, _D, _F, _V, _LAYERS, _SLOTS = 64, 4, 2, 16, 96, 80, 3, 600


class _Tiny:
    """A Llama-like forward over random weights and its own pools."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.embed: Weight = random_quantized(Q8_0Weight, _V, _H, 0)
        self.layers = [
            [
                random_quantized(Q4_1Weight, n, k, layer * 10 + i)
                for i, (n, k) in enumerate(
                    [((_HQ + 2 * _HKV) * _D, _H), (_H, _HQ * _D), (2 * _F, _H), (_H, _F)]
                )
            ]
            for layer in range(_LAYERS)
        ]
        self.norm = torch.rand(_H) + 0.5
        self.cos_sin = torch.randn(512, _D)
        self.pools = torch.zeros(_LAYERS, 2, _SLOTS, _HKV, _D)

    def forward(
        self,
        ops: Ops,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        meta: AttentionMeta,
        index: torch.Tensor,
    ) -> torch.Tensor:
        residual = ops.embedding(ids, self.embed)
        x = ops.rms_norm(residual, self.norm, 1e-5)
        for (qkv, out, gate_up, down), (k, v) in zip(self.layers, self.pools, strict=True):
            into = HeadPlaces(self.cos_sin, positions, k, v, slots)
            q = ops.write_heads(ops.linear(x, qkv), into)
            y = ops.linear(ops.paged_attention(q, k, v, meta, 0.25), out)
            x = ops.add_rms_norm(y, residual, self.norm, 1e-5)
            y = ops.linear(ops.silu_mul(ops.linear(x, gate_up)), down)
            x = ops.add_rms_norm(y, residual, self.norm, 1e-5)
        return ops.linear(ops.gather_rows(x, index), self.embed)


def _fill(inputs: GraphInputs, step: Step, ids: torch.Tensor, index: torch.Tensor) -> None:
    t, b = step.tokens, step.meta.rows.shape[0]
    inputs.input_ids[:t] = ids
    inputs.positions[:t] = step.positions
    inputs.out_slots[:t] = step.out_slots
    inputs.logit_index[: index.shape[0]] = index
    inputs.meta.rows[:b] = step.meta.rows
    inputs.meta.seq_lens[:b] = step.meta.seq_lens
    inputs.meta.extend_lens[:b] = step.meta.extend_lens
    inputs.meta.extend_start[: b + 1] = step.meta.extend_start


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=6),
    threads=st.integers(1, 3),
)
def test_replay_equals_eager(rows: list[tuple[int, int]], threads: int) -> None:
    model = _Tiny()
    runner = Runner(load_library(), threads)
    step = random_step([(before + n, n) for before, n in rows])
    table = torch.zeros(8, 128, dtype=torch.int32)
    height, width = step.meta.slot_table.shape
    table[:height, :width] = step.meta.slot_table
    tokens = torch.randint(0, _V, (8, 128), dtype=torch.int32)
    graph = CpuGraph(runner, GraphLimits(256, 8, 8), table, tokens)
    graph.capture(
        lambda ops, x: model.forward(
            ops, x.input_ids, x.positions, x.out_slots, x.meta, x.logit_index
        )
    )
    ids = torch.randint(0, _V, (step.tokens,), dtype=torch.int32)
    last = (step.meta.extend_start[1:] - 1).to(torch.int32)
    ids[last[0]] = -1
    _fill(graph.inputs, step, ids, last)
    before = model.pools.clone()
    graph.replay(step.tokens, len(rows), len(rows))
    got, written = graph.outputs[0][: len(rows)].clone(), model.pools.clone()
    model.pools.copy_(before)
    eager = NativeOps(runner)
    resolved = eager.resolve_ids(ids, step.positions, step.meta, tokens)
    want = model.forward(eager, resolved, step.positions, step.out_slots, step.meta, last)
    assert torch.equal(got, want)
    assert torch.equal(written, model.pools)
    graph.replay(step.tokens, len(rows), 0)
    runner.close()


def test_arena_reuses_only_dead_buffers(runner: Runner) -> None:
    """Random programs of adds: buffers are shared, results are not."""
    tables = torch.zeros(2, 1, 8, dtype=torch.int32).unbind(0)
    weight = random_quantized(Q8_0Weight, 50, 32, 1)
    for seed in range(20):
        graph = CpuGraph(runner, GraphLimits(4, 1, 1), *tables)

        def program(ops: Ops, ids: torch.Tensor, seed: int = seed) -> tuple[torch.Tensor, ...]:
            gen = torch.Generator().manual_seed(seed)
            live = [ops.embedding(ids, weight)]
            for _ in range(30):
                a, b = torch.randint(0, len(live), (2,), generator=gen).tolist()
                live.append(ops.add(live[a], live[b]))
                if len(live) > 4:
                    live.pop(int(torch.randint(0, len(live), (1,), generator=gen)))
            return tuple(live)

        graph.capture(lambda ops, x, run=program: run(ops, x.input_ids))
        graph.inputs.input_ids.copy_(torch.tensor([3, 1, 4, 1]))
        graph.inputs.meta.extend_start[1] = 4
        graph.replay(4, 1, 0)
        want = program(NativeOps(runner), graph.inputs.input_ids)
        assert all(torch.equal(x, y) for x, y in zip(graph.outputs, want, strict=True))
        assert graph.arena_bytes <= 8 * 512


def test_torch_on_an_activation_is_refused(runner: Runner) -> None:
    tables = torch.zeros(2, 1, 8, dtype=torch.int32).unbind(0)
    graph = CpuGraph(runner, GraphLimits(4, 1, 1), *tables)
    weight = random_quantized(Q8_0Weight, 50, 32, 1)
    with pytest.raises(CaptureError, match="add"):
        graph.capture(lambda ops, x: ops.embedding(x.input_ids, weight) + 1.0)
    with pytest.raises(CaptureError, match="__getitem__"):
        graph.capture(lambda ops, x: ops.embedding(x.input_ids, weight)[:1])
    with pytest.raises(CaptureError, match="inputs"):
        graph.capture(lambda ops, x: ops.embedding(torch.zeros(4, dtype=torch.int32), weight))
    with pytest.raises(CaptureError, match="before capture"):
        graph.replay(1, 1, 1)
    graph.capture(lambda ops, x: ops.embedding(x.input_ids, weight))
    with pytest.raises(CaptureError, match="does not fit"):
        graph.replay(5, 1, 1)


def test_idle_threads_use_no_processor() -> None:
    runner = Runner(load_library(), 4)
    ops = NativeOps(runner)
    x = torch.randn(64, 576)
    ops.rms_norm(x, torch.ones(576), 1e-5)
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.02
    ops.rms_norm(x, torch.ones(576), 1e-5)
    runner.close()
