"""Every Triton op equals its reference, on fresh random inputs and into poisoned outputs.

Runs on the GPU where there is one, else under Triton's interpreter (see conftest).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.stream import BlockEnd
from branchline.kernels.testing import meta_on, random_step
from branchline.kernels.triton import TritonOps, linear
from branchline.kernels.triton.tiles import cut_width
from branchline.kernels.weights import DenseWeight

ROOT = Path(__file__).parents[2]

Dtype = torch.dtype
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.fixture(params=BOUNDS, ids=str)
def dtype(request: pytest.FixtureRequest) -> Dtype:
    kind: Dtype = request.param
    return kind


@pytest.fixture
def ops(dtype: Dtype, kernel_device: torch.device) -> TritonOps:
    return TritonOps(kernel_device, dtype)


@pytest.fixture
def reference() -> ReferenceOps:
    return ReferenceOps(torch.float64)


def close(got: torch.Tensor, want: torch.Tensor, bound: float) -> bool:
    """Relative error in norm under the bound, NaN never."""
    got, want = got.double().cpu(), want.double().cpu()
    return bool((got - want).norm() <= bound * want.norm() + 1e-12) and got.shape == want.shape


def randn(ops: TritonOps, *shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(device=ops.device, dtype=ops.dtype)


@pytest.mark.parametrize("width", [64, 576])
def test_norms(ops: TritonOps, reference: ReferenceOps, dtype: Dtype, width: int) -> None:
    x, residual = randn(ops, 5, width), randn(ops, 5, width)
    weight = torch.randn(width, device=ops.device)
    want = reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert close(ops.rms_norm(x, weight, 1e-5), want, BOUNDS[dtype])
    total = residual + x
    want = reference.rms_norm(total.double(), weight.double(), 1e-5)
    assert close(ops.add_rms_norm(x, residual, weight, 1e-5), want, BOUNDS[dtype])
    # Not equal: the interpreter cuts to bfloat16 where the GPU rounds.
    assert close(residual, total, BOUNDS[dtype])


def test_activations_and_lookups(ops: TritonOps, reference: ReferenceOps, dtype: Dtype) -> None:
    x, y = randn(ops, 7, 192), randn(ops, 7, 192)
    assert close(ops.silu_mul(x), reference.silu_mul(x.double()), BOUNDS[dtype])
    assert close(ops.add(x, y), x.double() + y.double(), BOUNDS[dtype])
    index = torch.tensor([6, 0, 0, 3], dtype=torch.int32, device=ops.device)
    assert torch.equal(ops.gather_rows(x, index), x[index.long()])
    plane = randn(ops, 9, 192)
    want = plane.clone()
    want[index[1:].long()] = x[2:5]
    ops.scatter_rows(x[2:5].contiguous(), index[1:], plane)
    assert torch.equal(plane[[3, 5]], want[[3, 5]])
    assert ((plane[0] == x[2]) | (plane[0] == x[3])).all()  # two rows for one place
    table = DenseWeight(randn(ops, 11, 48))
    assert torch.equal(ops.embedding(index, table), table.tensor[index.long()])


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 70])
@pytest.mark.parametrize("shape", [(48, 64), (40, 96)], ids=str)
def test_linears(
    ops: TritonOps, reference: ReferenceOps, dtype: Dtype, rows: int, shape: tuple[int, int]
) -> None:
    n, k = shape
    weight, bias = DenseWeight(randn(ops, n, k)), torch.randn(n, device=ops.device)
    exact = DenseWeight(weight.tensor.float())
    x, norm = randn(ops, rows, k), torch.randn(k, device=ops.device)
    wide = x.float()
    for b in (None, bias):
        want = reference.linear(wide, exact, b)
        assert close(ops.linear(x, weight, b), want, BOUNDS[dtype])
        want = reference.norm_linear(wide, norm, 1e-5, exact, b)
        assert close(ops.norm_linear(x, norm, 1e-5, weight, b), want, BOUNDS[dtype])
    logits = ops.head(x, weight)
    assert logits.dtype == torch.float32
    assert close(logits, reference.linear(wide, exact), 1e-5)
    logits = ops._linears.linear(x, weight.tensor, bias, torch.float32)
    assert close(logits, reference.linear(wide, exact, bias), 1e-5)


@pytest.mark.parametrize(
    "shape", [(34, 72), (16, 40), pytest.param((48, 96), marks=pytest.mark.slow)], ids=str
)
def test_two_to_sixteen_rows(
    ops: TritonOps, reference: ReferenceOps, dtype: Dtype, shape: tuple[int, int]
) -> None:
    """Each number of rows, odd widths: as the reference, and no row's bits depend on others."""
    n, k = shape
    weight, bias = DenseWeight(randn(ops, n, k)), torch.randn(n, device=ops.device)
    exact, norm = DenseWeight(weight.tensor.float()), torch.randn(k, device=ops.device)
    x, stream = randn(ops, 16, k), randn(ops, 16, n)

    def products(t: int) -> list[torch.Tensor]:
        return [
            ops.linear(x[:t], weight, bias),
            ops.norm_linear(x[:t], norm, 1e-5, weight),
            ops.gated_linear(x[:t], weight, bias),
            ops.linear_add(x[:t], weight, stream[:t].clone()),
        ]

    wide = x.float()
    want = [
        reference.linear(wide, exact, bias),
        reference.norm_linear(wide, norm, 1e-5, exact),
        reference.gated_linear(wide, exact, bias),
        stream.double() + reference.linear(wide, exact),
    ]
    whole = products(16)
    for got, exactly in zip(whole, want, strict=True):
        assert close(got, exactly, 2 * BOUNDS[dtype])
    for t in range(2, 16):
        for got, all_rows in zip(products(t), whole, strict=True):
            assert torch.equal(got, all_rows[:t])


@pytest.mark.parametrize(
    ("k", "ways"), [(576, 4), (1152, 4), (1536, 4), (3072, 8), (40, 4), (8, 8)]
)
def test_a_matrix_is_cut_whole(k: int, ways: int) -> None:
    """Both cuts together hold every column, in pieces that the matrix units take."""
    first, rest = cut_width(k, ways)
    assert ways * (first + rest) >= k and first >= 16 and (rest == 0 or 16 <= rest < first)
    assert all(size & (size - 1) == 0 for size in (first, rest))


@pytest.mark.parametrize("rows", [1, 9])
def test_joined_norms(ops: TritonOps, reference: ReferenceOps, dtype: Dtype, rows: int) -> None:
    width = 72
    table, states = DenseWeight(randn(ops, 31, width)), randn(ops, 40, width)
    norms = torch.randn(2, width, device=ops.device)
    ids, index = (torch.randint(0, n, (rows,), device=ops.device).int() for n in (31, 40))
    got, kept = ops.joined_norms(ids, table, norms[0], index, states, norms[1], 1e-5)
    exact = DenseWeight(table.tensor.float())
    wide = (norms[0].double(), index, states.double(), norms[1].double(), 1e-5)
    want, _ = reference.joined_norms(ids, exact, *wide)
    assert close(got, want, BOUNDS[dtype])
    assert torch.equal(kept, states[index.long()])


@pytest.mark.parametrize("rows", [1, 20, 70])
def test_additions(ops: TritonOps, dtype: Dtype, rows: int) -> None:
    x, weight, y = randn(ops, rows, 96), DenseWeight(randn(ops, 64, 96)), randn(ops, rows, 64)
    want = y.double() + x.double() @ weight.tensor.double().T
    assert close(ops.linear_add(x, weight, y), want, 2 * BOUNDS[dtype])


@pytest.mark.parametrize(
    ("rows", "gated", "biased"),
    [
        pytest.param(rows, gated, biased, marks=() if covering else pytest.mark.slow)
        for number, rows in enumerate([1, 3, 20, 70])
        for gated, biased in product([False, True], repeat=2)
        for covering in [(gated == biased) == (number in (0, 3))]
    ],
)
def test_residual_step(
    ops: TritonOps, reference: ReferenceOps, dtype: Dtype, rows: int, gated: bool, biased: bool
) -> None:
    down, up = DenseWeight(randn(ops, 64, 96)), DenseWeight(randn(ops, 80, 64))
    norm = torch.randn(64, device=ops.device)
    biases = [torch.randn(n, device=ops.device) if biased else None for n in (64, 80)]
    x, residual = randn(ops, rows, 96), randn(ops, rows, 64)
    stream = residual.float().clone()
    exact = [DenseWeight(w.tensor.float()) for w in (down, up)]
    for last in (False, True):
        given = {"gated": gated, "bias": biases[1]}
        end = BlockEnd(x.float(), exact[0], stream, norm, 1e-5, biases[0])
        want = reference.residual_step(end, None if last else exact[1], **given)
        end = BlockEnd(x, down, residual, norm, 1e-5, biases[0])
        got = ops.residual_step(end, None if last else up, **given)
        assert close(got, want, 3 * BOUNDS[dtype])
        assert close(residual, stream, 2 * BOUNDS[dtype])


def test_the_library_adds_to_large_streams(
    ops: TritonOps, reference: ReferenceOps, dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream and what follows it are as where a kernel behind the product adds."""
    monkeypatch.setattr(linear, "_LARGE_STREAM", 70 * 64)
    down, up = DenseWeight(randn(ops, 64, 96)), DenseWeight(randn(ops, 80, 64))
    norm, bias = torch.randn(64, device=ops.device), torch.randn(64, device=ops.device)
    exact = [DenseWeight(w.tensor.float()) for w in (down, up)]
    for last, biased, gated in product([False, True], repeat=3):
        x, residual = randn(ops, 70, 96), randn(ops, 70, 64)
        stream = residual.float().clone()
        rest = norm, 1e-5, bias if biased else None
        end = BlockEnd(x.float(), exact[0], stream, *rest)
        want = reference.residual_step(end, None if last else exact[1], gated=gated)
        end = BlockEnd(x, down, residual, *rest)
        got = ops.residual_step(end, None if last else up, gated=gated)
        assert close(got, want, 3 * BOUNDS[dtype])
        assert close(residual, stream, 2 * BOUNDS[dtype])


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_head_step(ops: TritonOps, reference: ReferenceOps, dtype: Dtype, rows: int) -> None:
    down, head = DenseWeight(randn(ops, 64, 96)), DenseWeight(randn(ops, 200, 64))
    norm, x, residual = (
        torch.randn(64, device=ops.device),
        randn(ops, rows, 96),
        randn(ops, rows, 64),
    )
    stream = residual.float().clone()
    exact = [DenseWeight(w.tensor.float()) for w in (down, head)]
    want = reference.head_step(BlockEnd(x.float(), exact[0], stream, norm, 1e-5), exact[1])
    got = ops.head_step(BlockEnd(x, down, residual, norm, 1e-5), head)
    assert got.dtype == torch.float32 and close(got, want, 3 * BOUNDS[dtype])
    assert close(residual, stream, 2 * BOUNDS[dtype])


@pytest.mark.parametrize("heads", [(4, 2, 32), (9, 3, 64), (2, 1, 80), (0, 2, 32)], ids=str)
@pytest.mark.parametrize("norms", ["none", "both", "q"])
def test_rope_and_write(
    ops: TritonOps, reference: ReferenceOps, dtype: Dtype, heads: tuple[int, int, int], norms: str
) -> None:
    hq, hkv, d = heads
    t, slots, device = 5, 20, ops.device
    qkv = randn(ops, t, (hq + 2 * hkv) * d)
    cos_sin = torch.randn(50, d, device=device)
    positions = torch.randint(0, 50, (t,), device=device)
    out_slots = torch.randperm(slots)[:t].to(device=device, dtype=torch.int32)
    q_norm, k_norm = torch.randn(2, d, device=device).unbind(0)
    given = {"q_norm": None if norms == "none" else q_norm}
    given["k_norm"] = k_norm if norms == "both" else None
    pools = torch.full((2, slots, hkv, d), 7.0, dtype=dtype, device=device)
    wide = pools.double()
    got = ops.write_heads(qkv, HeadPlaces(cos_sin, positions, *pools, out_slots, **given))
    into = HeadPlaces(cos_sin, positions, *wide, out_slots, **given)
    want = reference.write_heads(qkv.double(), into)
    assert close(got, want, BOUNDS[dtype]) and close(pools, wide, BOUNDS[dtype])


@pytest.mark.parametrize("heads", [(4, 2, 32), (3, 1, 40), (0, 2, 32)], ids=str)
@pytest.mark.parametrize(
    ("rows", "biased", "several"),
    [
        (1, True, False),
        (1, False, True),
        (2, False, False),
        (9, True, False),
        (9, False, True),
        (20, False, True),
        (20, True, False),
        (64, False, True),
        (70, True, True),
    ],
)
def test_products_turn_and_write_their_heads(
    ops: TritonOps,
    reference: ReferenceOps,
    dtype: Dtype,
    heads: tuple[int, int, int],
    rows: int,
    biased: bool,
    several: bool,
) -> None:
    """As the reference, for every product that comes ahead of attention; other slots are left."""
    hq, hkv, d = heads
    n, h, slots, device = (hq + 2 * hkv) * d, 96, 90, ops.device
    weight, down = DenseWeight(randn(ops, n, h)), DenseWeight(randn(ops, h, 64))
    exact = [DenseWeight(w.tensor.float()) for w in (weight, down)]
    bias = torch.randn(n, device=device) if biased else None
    x, norm, given = randn(ops, rows, h), torch.randn(h, device=device), randn(ops, rows, 64)
    cos_sin, positions = torch.randn(50, d, device=device), torch.randint(0, 50, (rows,))
    out_slots = torch.randperm(slots)[:rows].to(device=device, dtype=torch.int32)

    def made(by: TritonOps | ReferenceOps, which: str) -> tuple[torch.Tensor, ...]:
        exactly = isinstance(by, ReferenceOps)
        kind = torch.float32 if exactly else dtype
        pools = torch.full((2, slots, hkv, d), 7.0, dtype=kind, device=device)
        into = HeadPlaces(cos_sin, positions.to(device), *pools, out_slots, several=several)
        matrix, first = exact if exactly else (weight, down)
        own, stream = x.to(kind), x.to(kind).clone()
        if which == "linear":
            q = by.linear_heads(own, matrix, into, bias)
        elif which == "norm":
            q = by.norm_heads(own, norm, 1e-5, matrix, into, bias)
        else:
            end = BlockEnd(given.to(kind), first, stream, norm, 1e-5)
            q = by.step_heads(end, matrix, into, bias)
        return q, pools, stream

    for which in ("linear", "norm", "step"):
        for got, want in zip(made(ops, which), made(reference, which), strict=True):
            assert got.shape == want.shape and close(got, want, 3 * BOUNDS[dtype])


def test_ids_come_from_the_token_table(ops: TritonOps, reference: ReferenceOps) -> None:
    step = random_step([(9, 3), (4, 0), (6, 1), (40, 37)], seed=2)
    table = torch.randint(0, 99, tuple(step.meta.slot_table.shape), dtype=torch.int32)
    ids = torch.where(torch.rand(step.tokens) < 0.5, -1, 5).to(torch.int32)
    want = reference.resolve_ids(ids, step.positions, step.meta, table)
    move = [x.to(ops.device) for x in (ids, step.positions)]
    got = ops.resolve_ids(*move, meta_on(step.meta, ops.device), table.to(ops.device))
    assert torch.equal(got.cpu(), want)
    # Tokens past the last row (padding of a recorded step) get an id that can be looked up.
    padded = torch.cat([ids, torch.tensor([-1, 3], dtype=torch.int32)]).to(ops.device)
    more = torch.cat([step.positions, torch.zeros(2, dtype=torch.int64)]).to(ops.device)
    got = ops.resolve_ids(padded, more, meta_on(step.meta, ops.device), table.to(ops.device))
    assert torch.equal(got[:-2].cpu(), want) and (got[-2:] >= 0).all()


@pytest.mark.parametrize("vocabulary", [33, 5000])
def test_rows_of_logits(ops: TritonOps, reference: ReferenceOps, vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, device=ops.device).round(decimals=1)
    words = (vocabulary + 31) // 32
    bitmask = torch.randint(-(2**31), 2**31, (4, words), device=ops.device).to(torch.int32)
    need = torch.tensor([True, False, True, True], device=ops.device)
    want = logits.clone()
    reference.apply_bitmask(want, bitmask, need)
    ops.apply_bitmask(logits, bitmask, need)
    assert torch.equal(logits, want)
    logits[2, 3:] = -torch.inf
    logits[3] = -torch.inf
    for k in (1, 5, 20):
        values, indices = ops.top_rows(logits.bfloat16(), k)
        assert torch.equal(values, reference.top_rows(logits.bfloat16(), k)[0])
        assert torch.equal(logits.bfloat16().gather(1, indices.long()).float(), values)
        assert all(len(set(row)) == k for row in indices.tolist())
    assert torch.equal(ops.argmax_rows(logits), reference.argmax_rows(logits))
    got, want = ops.logsumexp_rows(logits), reference.logsumexp_rows(logits)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 9, 300])
def test_slots_are_copied_as_if_at_once(ops: TritonOps, count: int) -> None:
    """Sources and targets overlap: a chain of moves shifts, it does not smear."""
    pool = randn(ops, 2, 3, 310, 2, 16)
    source = torch.randperm(310)[:count].to(torch.int32).to(ops.device)
    target = torch.randperm(310)[:count].to(torch.int32).to(ops.device)
    want = pool.clone()
    want[:, :, target.long()] = pool[:, :, source.long()]
    ops.copy_slots(pool, source, target)
    assert torch.equal(pool, want)


def test_every_kernel_compiles_for_a_card_and_fits_it() -> None:
    """Types, shapes and shared memory as `TritonOps` launches them, which no interpreter checks; on
    any machine. It takes a minute, so it stands where tests begin early."""
    compiler = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.offline_kernels"],
        cwd=ROOT,
        env=compiler,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kernels"] and found["compiled"] == found["kernels"]
    # Start-up draws few rows and many; serving is no time to compile for the numbers between.
    assert found["compiled later"] == []
