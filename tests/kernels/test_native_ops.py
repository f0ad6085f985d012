"""Every native op means what the reference says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.testing import random_quantized, random_step, rounded_linear
from branchline.kernels.weights import DenseWeight, Q4_1Weight, Q8_0Weight

_REF = ReferenceOps()
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Of attention, by the elements of its pool."""
_SIZES = [(1, 16), (3, 48), (17, 576), (2, 37)]


@pytest.mark.parametrize(("t", "h"), _SIZES)
def test_row_ops_equal_reference(native: NativeOps, t: int, h: int) -> None:
    torch.manual_seed(t)
    x, y, w = torch.randn(t, h), torch.randn(t, h), torch.randn(h)
    torch.testing.assert_close(native.rms_norm(x, w, 1e-5), _REF.rms_norm(x, w, 1e-5))
    mine, theirs = y.clone(), y.clone()
    torch.testing.assert_close(
        native.add_rms_norm(x, mine, w, 1e-5), _REF.add_rms_norm(x, theirs, w, 1e-5)
    )
    assert torch.equal(mine, theirs)
    both = torch.randn(t, 2 * h) * 8
    torch.testing.assert_close(native.silu_mul(both), _REF.silu_mul(both))
    assert torch.equal(native.add(x, y), x + y)
    index = torch.randint(0, t, (5,), dtype=torch.int32)
    assert torch.equal(native.gather_rows(x, index), x[index.long()])
    plane, places = torch.randn(t + 4, h), torch.randperm(t + 4)[:t].to(torch.int32)
    wanted = plane.clone()
    _REF.scatter_rows(x, places, wanted)
    native.scatter_rows(x, places, plane)
    assert torch.equal(plane, wanted) and torch.equal(plane[places.long()], x)
    torch.testing.assert_close(native.logsumexp_rows(both), torch.logsumexp(both, -1))
    assert native.argmax_rows(both).tolist() == both.argmax(-1).tolist()
    for k in (1, 4, 7):
        best = torch.sort(both, dim=-1, descending=True, stable=True)
        values, indices = native.top_rows(both, k)
        assert torch.equal(values, best.values[:, :k])
        assert torch.equal(indices.long(), best.indices[:, :k])


@pytest.mark.parametrize("kind", [Q4_1Weight, Q8_0Weight])
@pytest.mark.parametrize("t", [1, 2, 11, 13, 40, 500])
@pytest.mark.parametrize(("n", "k"), [(16, 32), (100, 96), (33, 608)])
def test_quantized_linear_is_exact_up_to_float_rounding(
    native: NativeOps, kind: type[Q4_1Weight | Q8_0Weight], t: int, n: int, k: int
) -> None:
    torch.manual_seed(t)
    weight, x, bias = random_quantized(kind, n, k, t), torch.randn(t, k), torch.randn(n)
    x[-1, :32] = 0
    want = rounded_linear(x, weight)
    got = native.linear(x, weight)
    assert (got - want).abs().max() <= 2e-6 * want.abs().max() * k**0.5
    assert torch.equal(native.linear(x, weight, bias), got + bias)
    error = (got - x @ weight.dequantize().T).norm() / got.norm().clamp(min=1e-9)
    assert error < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 5, 7, 100])
@pytest.mark.parametrize(("n", "k"), [(64, 32), (70, 33), (200, 576)])
def test_dense_linear_equals_reference(
    native: NativeOps, dtype: torch.dtype, t: int, n: int, k: int
) -> None:
    torch.manual_seed(t)
    tensor, x, bias = torch.randn(n, k).to(dtype), torch.randn(t, k), torch.randn(n)
    got = native.linear(x, native.prepare(DenseWeight(tensor)), bias)
    want = x.to(dtype).double() @ tensor.double().T + bias
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(KernelInputError, match="prepare"):
        native.linear(x, DenseWeight(tensor))


def test_embedding_is_exact(native: NativeOps) -> None:
    ids = torch.tensor([0, 69, 3, 3, 16], dtype=torch.int32)
    for weight in (
        random_quantized(Q4_1Weight, 70, 64, 0),
        random_quantized(Q8_0Weight, 70, 96, 0),
        native.prepare(DenseWeight(torch.randn(70, 33))),
        native.prepare(DenseWeight(torch.randn(70, 33).bfloat16())),
    ):
        assert torch.equal(native.embedding(ids, weight), weight.dequantize()[ids.long()])


def test_bitmask_forbids_exactly_the_cleared_bits(native: NativeOps) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 77)
    bitmask = torch.randint(-(2**31), 2**31, (4, 3)).to(torch.int32)
    need = torch.tensor([True, False, True, True])
    mine, theirs = logits.clone(), logits.clone()
    native.apply_bitmask(mine, bitmask, need)
    _REF.apply_bitmask(theirs, bitmask, need)
    assert torch.equal(mine, theirs)
    assert torch.isinf(mine).any() and torch.equal(mine[1], logits[1])
    mine[0] = float("-inf")
    assert native.logsumexp_rows(mine)[0] == float("-inf")
    mine[2, 5] = mine[2, 60] = 99.0
    assert native.argmax_rows(mine)[2] == 5


def test_negative_ids_come_from_the_token_table(native: NativeOps) -> None:
    step = random_step([(5, 2), (9, 1), (4, 4)])
    table = torch.randint(0, 1000, (5, 16), dtype=torch.int32)
    ids = torch.tensor([7, -1, -1, -1, 3, -1, 2], dtype=torch.int32)
    got = native.resolve_ids(ids, step.positions, step.meta, table)
    assert torch.equal(got, _REF.resolve_ids(ids, step.positions, step.meta, table))
    assert (got >= 0).all()


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("hq", "hkv", "d"), [(9, 3, 64), (4, 1, 16), (2, 2, 22), (0, 2, 16)])
def test_rope_write_equals_reference(
    native: NativeOps, pool: torch.dtype, norm: bool, hq: int, hkv: int, d: int
) -> None:
    torch.manual_seed(0)
    t = 7
    qkv = torch.randn(t, (hq + 2 * hkv) * d)
    cos_sin = torch.randn(50, d)
    positions = torch.randint(0, 50, (t,))
    slots = torch.randperm(20)[:t].to(torch.int32)
    norms = {"q_norm": torch.randn(d), "k_norm": torch.randn(d)} if norm else {}
    pools = [torch.zeros(20, hkv, d, dtype=pool) for _ in range(4)]
    got = native.write_heads(qkv, HeadPlaces(cos_sin, positions, *pools[:2], slots, **norms))
    want = _REF.write_heads(qkv, HeadPlaces(cos_sin, positions, *pools[2:], slots, **norms))
    torch.testing.assert_close(got, want)
    rtol = 1e-5 if pool == torch.float32 else 1e-2
    torch.testing.assert_close(pools[0], pools[2], rtol=rtol, atol=1e-5)
    assert torch.equal(pools[1], pools[3])


def _attention_of(
    lens: list[tuple[int, int]],
    shape: tuple[int, int, int],
    pool: torch.dtype,
    trees: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the native ops and the reference give for a random step."""
    hq, hkv, d = shape
    step = random_step(lens, seed=len(lens), trees=trees)
    gen = torch.Generator().manual_seed(1)
    q = torch.randn(step.tokens, hq, d, generator=gen)
    k, v = (torch.randn(step.num_slots, hkv, d, generator=gen).to(pool) for _ in range(2))
    native = NativeOps(Runner(load_library(), 2))
    try:
        got = native.paged_attention(q, k, v, step.meta, d**-0.5)
    finally:
        native.runner.close()
    return got, _REF.paged_attention(q, k, v, step.meta, d**-0.5)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    rows=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 90)), min_size=1, max_size=5),
    shape=st.sampled_from([(9, 3, 64), (4, 4, 16), (6, 1, 80), (8, 2, 6), (3, 1, 128)]),
    pool=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_attention_equals_reference(
    rows: list[tuple[int, int]], shape: tuple[int, int, int], pool: torch.dtype
) -> None:
    got, want = _attention_of([(max(a, e), e) for a, e in rows], shape, pool)
    torch.testing.assert_close(got, want, rtol=_TOLERANCE[pool], atol=_TOLERANCE[pool])


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 5), st.integers(0, 70)).filter(
            lambda r: r[1] + r[2] > 0
        ),
        min_size=1,
        max_size=4,
    ),
    pool=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_tree_attention_equals_reference(
    rows: list[tuple[int, int, int]], pool: torch.dtype
) -> None:
    lens = [(sum(r), r[1] + r[2]) for r in rows]
    got, want = _attention_of(lens, (4, 2, 32), pool, [r[2] for r in rows])
    torch.testing.assert_close(got, want, rtol=_TOLERANCE[pool], atol=_TOLERANCE[pool])


def test_wrong_operands_are_named(native: NativeOps) -> None:
    with pytest.raises(KernelInputError, match=r"x must be a contiguous torch\.float32"):
        native.rms_norm(torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(4), 1e-5)
    with pytest.raises(KernelInputError, match="contiguous"):
        native.rms_norm(torch.zeros(4, 2).T, torch.zeros(4), 1e-5)
    pool = torch.zeros(4, 2, 5)
    with pytest.raises(KernelInputError, match="head size"):
        native.paged_attention(torch.zeros(1, 4, 5), pool, pool, random_step([(3, 1)]).meta, 1.0)
