"""Adapters in the native CPU ops: their meaning, their bits, and their recorded form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.testing import random_lora, random_quantized, with_adapters
from branchline.kernels.weights import Q8_0Weight

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def batch(*slots: int) -> LoraBatch:
    return LoraBatch(torch.tensor(slots, dtype=torch.int32))


@DTYPES
@pytest.mark.parametrize(
    ("ranks", "k", "parts"),
    [
        ([1, 5, 16, 0], 64, (48,)),
        ([8, 16, 3], 37, (40, 24, 24)),
        ([256, 1, 100], 100, (70, 33)),
        ([32], 576, (576, 192, 192)),
    ],
    ids=str,
)
def test_each_token_gets_its_own_adapter(
    native: NativeOps, dtype: torch.dtype, ranks: list[int], k: int, parts: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight = random_lora(ranks, k, parts, dtype)
    slots = torch.randint(-1, len(ranks), (23,), dtype=torch.int32)
    x, y = torch.randn(23, k), torch.randn(23, sum(parts))
    want, got = with_adapters(y, x, weight, slots), y.clone()
    native.lora_add(got, x, weight, LoraBatch(slots))
    assert (got - want).norm() <= 1e-5 * (want - y).norm()
    base = slots < 0
    assert base.any() and torch.equal(got[base], y[base])


@DTYPES
def test_embeddings_get_their_columns(native: NativeOps, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = random_lora([4, 0, 20], 50, (33,), dtype, embedding=True)
    ids = torch.tensor([0, 49, 7, 7, 7, 3], dtype=torch.int32)
    y, lora = torch.randn(6, 33), batch(2, 2, 0, 1, -1, 0)
    want, got = with_adapters(y, ids, weight, lora.slots), y.clone()
    native.lora_embedding(got, ids, weight, lora)
    assert (got - want).norm() <= 1e-6 * want.norm()
    assert torch.equal(got[3:5], y[3:5])


def test_nothing_to_do_is_nothing_done(native: NativeOps) -> None:
    weight = random_lora([4], 16, (16,), torch.float32)
    none = torch.zeros(0, 16)
    native.lora_add(none, none, weight, batch())
    y = torch.full((3, 16), -0.0)
    native.lora_add(y, torch.randn(3, 16), weight, batch(-1, -1, -1))
    assert torch.signbit(y).all()


@DTYPES
@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    runs=st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 6)), min_size=1, max_size=12),
    pick=st.integers(0, 71),
    threads=st.integers(1, 3),
)
def test_a_row_ignores_its_mates(
    dtype: torch.dtype, runs: list[tuple[int, int]], pick: int, threads: int
) -> None:
    slots = [slot for slot, count in runs for _ in range(count)]
    torch.manual_seed(len(slots))
    weight = random_lora([3, 16, 8, 9], 52, (90, 16), dtype)
    x, y = torch.randn(len(slots), 52), torch.randn(len(slots), 106)
    ops = NativeOps(Runner(load_library(), threads))
    whole = y.clone()
    ops.lora_add(whole, x, weight, batch(*slots))
    row = slice(pick % len(slots), pick % len(slots) + 1)
    alone = y[row].clone()
    ops.lora_add(alone, x[row], weight, batch(slots[row.start]))
    assert torch.equal(alone, whole[row])
    ops.runner.close()


@DTYPES
def test_replay_equals_eager_over_changing_slots(runner: Runner, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vocabulary, h, n = 60, 64, 80
    table, linear = (random_quantized(Q8_0Weight, rows, h, 1) for rows in (vocabulary, n))
    weights = (
        random_lora([2, 16, 7], vocabulary, (h,), dtype, embedding=True),
        random_lora([5, 16, 0], h, (48, 32), dtype),
    )
    tables = torch.zeros(2, 4, 8, dtype=torch.int32).unbind(0)
    graph = CpuGraph(runner, GraphLimits(12, 4, 4), *tables)

    def forward(ops: Ops, ids: torch.Tensor, lora: LoraBatch) -> torch.Tensor:
        x = ops.embedding(ids, table)
        ops.lora_embedding(x, ids, weights[0], lora)
        y = ops.linear(x, linear)
        ops.lora_add(y, x, weights[1], lora)
        return y

    def recorded(ops: Ops, x: GraphInputs) -> torch.Tensor:
        return forward(ops, x.input_ids, ops.lora_batch(x.lora.slots, 3))

    graph.capture(recorded)
    for tokens in (1, 12, 5):
        ids = torch.randint(0, vocabulary, (tokens,), dtype=torch.int32)
        slots = torch.randint(-1, 3, (tokens,), dtype=torch.int32)
        graph.inputs.input_ids[:tokens] = ids
        graph.inputs.lora.slots[:tokens] = slots
        graph.outputs[0].fill_(torch.nan)
        graph.replay(tokens, 1, 0)
        want = forward(NativeOps(runner), ids, LoraBatch(slots))
        assert torch.equal(graph.outputs[0][:tokens], want)


def test_a_slot_may_be_anywhere_in_a_row_of_a_pool(native: NativeOps) -> None:
    """Slots that hold the matrices of several layers: the first stride is larger than a layer."""
    torch.manual_seed(0)
    plain = random_lora([4, 8], 32, (16, 32), torch.float32)

    def strided(x: torch.Tensor) -> torch.Tensor:
        pool = torch.full((len(x), x[0].numel() + 24), 7, dtype=x.dtype)
        view = pool[:, 8 : 8 + x[0].numel()].view(x.shape)
        return view.copy_(x)

    fields = (strided(x) for x in (plain.a, plain.b, plain.ranks, plain.scales))
    x, y = torch.randn(3, 32), torch.randn(3, 48)
    want, got = y.clone(), y.clone()
    native.lora_add(want, x, plain, batch(1, -1, 0))
    native.lora_add(got, x, LoraWeight(*fields, plain.parts), batch(1, -1, 0))
    assert torch.equal(got, want)


def test_wrong_adapters_are_named(native: NativeOps) -> None:
    x, y = torch.zeros(2, 32), torch.zeros(2, 48)
    wrong = random_lora([4], 32, (16, 16), torch.float32)
    with pytest.raises(KernelInputError, match="adapters of 48 outputs"):
        native.lora_add(y, x, wrong, batch(0, 0))
    with pytest.raises(KernelInputError, match="at most 512"):
        native.lora_add(y, x, random_lora([528], 32, (48,), torch.float32), batch(0, 0))
    right = random_lora([4], 32, (48,), torch.float32)
    with pytest.raises(KernelInputError, match="x must be"):
        native.lora_add(y, x[:, :16].contiguous(), right, batch(0, 0))
    with pytest.raises(KernelInputError, match=r"lora\.slots"):
        native.lora_add(y, x, right, batch(0))
