"""What the kernels promise beyond the backends' conformance suite (tests/attention).

Equal bits are a matter of the GPU's matrix units; the interpreter multiplies with numpy.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from branchline.kernels.ops import AttentionMeta
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.testing import meta_on, random_step
from branchline.kernels.triton import TritonOps
from branchline.kernels.triton.attention import find_trunks, trunk_tiles
from branchline.kernels.weights import DenseWeight
from branchline.runtime.core.tree import DraftTree


def test_split_rows_equal_whole_ones(kernel_device: torch.device) -> None:
    """Decode in many parts, joined by the last to arrive; counters are left at zero."""
    step = random_step([(500, 1), (3, 1), (64, 1)], seed=4)
    torch.manual_seed(0)
    q = torch.randn(3, 4, 32)
    k, v = torch.randn(2, step.num_slots, 1, 32).unbind(0)
    ops = TritonOps(kernel_device, torch.float32)
    ops._gpu.processors = 48
    want = ReferenceOps().paged_attention(q, k, v, step.meta, 0.2)
    for _ in range(2):
        meta = meta_on(step.meta, kernel_device)
        got = ops.paged_attention(*(x.to(kernel_device) for x in (q, k, v)), meta, 0.2)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)
        assert not ops._gpu.counters.any()


TREES = [
    ([(300, 9), (70, 1)], [8, 0]),
    ([(200, 30), (3, 3), (130, 12)], [29, 3, 7]),
    ([(40, 1), (90, 4), (7, 5), (65, 2)], [0, 3, 4, 1]),
    ([(260, 75)], [70]),
]


WITH_TREES = [*product([(4, 2, 32)], range(len(TREES))), ((3, 1, 16), 1), ((9, 1, 80), 2)]
MORE_WITH_TREES = [
    one for one in product([(3, 1, 16), (9, 1, 80)], range(4)) if one not in WITH_TREES
]


@pytest.mark.parametrize(
    ("heads", "case"),
    [*WITH_TREES, *(pytest.param(*one, marks=pytest.mark.slow) for one in sorted(MORE_WITH_TREES))],
    ids=str,
)
def test_trees_over_cut_rows_equal_whole_ones(
    kernel_device: torch.device, heads: tuple[int, int, int], case: int
) -> None:
    """Tiles of several tokens, whose keys are read in parts; padding rows and tokens beside them,
    which change nothing. Counters are left at zero."""
    lens, trees = TREES[case]
    hq, hkv, d = heads
    step = random_step(lens, seed=case, trees=trees)
    torch.manual_seed(0)
    q = torch.randn(step.tokens, hq, d)
    k, v = torch.randn(2, step.num_slots, hkv, d).unbind(0)
    want = ReferenceOps().paged_attention(q, k, v, step.meta, 0.2)
    ops = TritonOps(kernel_device, torch.float32)
    ops._gpu.processors = 60
    meta = meta_on(step.meta, kernel_device)
    starts = torch.full((1,), step.tokens, dtype=torch.int32, device=kernel_device)
    padded = {
        name: pad(x, 1)
        for name, x in vars(meta).items()
        if name in ("rows", "seq_lens", "extend_lens", "tree_lens", "tree_offsets")
    }
    padded["extend_start"] = torch.cat([meta.extend_start, starts])
    for one in (meta, AttentionMeta(**(vars(meta) | padded))):
        got = ops.paged_attention(*(x.to(kernel_device) for x in (q, k, v)), one, 0.2)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=2e-6)
        assert not ops._gpu.counters.any()


FORKS = [(4, 40, 100), (4, 40, 256), (3, 20, 300)]
FORKS_ON_GPU = [(1, 70, 700), (2, 80, 2048), (8, 70, 256)]


@pytest.mark.parametrize("lens", [[(300, 1), (70, 5), (33, 33), (1, 1)], [(190, 3)], [(9, 9)] * 9])
def test_few_tokens_a_row_equal_whole_rows(
    kernel_device: torch.device, lens: list[tuple[int, int]]
) -> None:
    """Mixed steps of few tokens read their keys as steps with trees do, and like a long step."""
    step = random_step(lens, seed=3)
    torch.manual_seed(0)
    q = torch.randn(step.tokens, 4, 32)
    k, v = torch.randn(2, step.num_slots, 2, 32).unbind(0)
    want = ReferenceOps().paged_attention(q, k, v, step.meta, 0.2)
    ops = TritonOps(kernel_device, torch.float32)
    for processors in (4, 60):
        ops._gpu.processors = processors
        meta = meta_on(step.meta, kernel_device)
        got = ops.paged_attention(*(x.to(kernel_device) for x in (q, k, v)), meta, 0.2)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)
        assert not ops._gpu.counters.any()


@pytest.mark.parametrize(
    ("group", "count", "trunk"),
    [
        *FORKS,
        pytest.param(4, 40, 0, marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.gpu) for case in FORKS_ON_GPU),
    ],
)
def test_forks_of_a_trunk_equal_rows_alone(
    kernel_device: torch.device, group: int, count: int, trunk: int
) -> None:
    """Tiles that share a trunk or only a part of it, tiles that share none, and the last tile."""
    torch.manual_seed(0)
    lens = torch.randint(trunk + 1, trunk + 90, (count,)).tolist()
    lens[3], lens[4] = 5, 300  # rows that do not have the whole trunk, or none of it
    step = random_step([(n, 1) for n in lens], seed=7)
    table, rows = step.meta.slot_table.clone(), step.meta.rows.tolist()
    for i in range(count):
        # The first rows share one trunk, later ones another, one in between has its own.
        if i != count // 2:
            first, shared = rows[0 if i < count // 2 else -1], min(trunk, lens[i])
            table[rows[i], :shared] = step.meta.slot_table[first, :shared]
    meta = AttentionMeta(**(vars(step.meta) | {"slot_table": table}))
    hkv = 1
    q = torch.randn(count, hkv * group, 32)
    k, v = torch.randn(2, step.num_slots, hkv, 32).unbind(0)
    want = ReferenceOps().paged_attention(q, k, v, meta, 0.2)
    ops = TritonOps(kernel_device, torch.float32)
    placed = meta_on(meta, kernel_device)
    trunks = torch.full((trunk_tiles(count, group),), -1, dtype=torch.int32, device=kernel_device)
    find_trunks(placed, group, trunks)
    assert (trunks % 64 == 0).all() and (trunks <= trunk).all()
    assert bool(trunks.any()) == (trunk >= 256)
    placed = AttentionMeta(**(vars(placed) | {"trunk_lens": trunks}))
    for _ in range(2):
        got = ops.paged_attention(*(x.to(kernel_device) for x in (q, k, v)), placed, 0.2)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)
        assert not ops._gpu.counters.any()


def test_trunks_are_looked_for_among_rows_with_tokens(kernel_device: torch.device) -> None:
    """A padding row in the tile hides nothing; a row alone in its tile has no trunk."""
    table = torch.arange(600, dtype=torch.int32).expand(4, -1).contiguous()
    table[3] += 1000
    meta = AttentionMeta(
        rows=torch.tensor([0, 3, 1, 2], dtype=torch.int32),
        slot_table=table,
        seq_lens=torch.tensor([400, 1, 600, 500], dtype=torch.int32),
        extend_lens=torch.tensor([1, 1, 1, 1], dtype=torch.int32),
        extend_start=torch.arange(5, dtype=torch.int32),
    )
    out = torch.empty(1, dtype=torch.int32, device=kernel_device)
    find_trunks(meta_on(meta, kernel_device), 2, out)
    assert out.tolist() == [384]
    alone = AttentionMeta(
        **(vars(meta) | {"extend_lens": torch.tensor([1, 0, 0, 0], dtype=torch.int32)})
    )
    find_trunks(meta_on(alone, kernel_device), 2, out)
    assert out.tolist() == [0]


@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_without_tokens_change_nothing(
    kernel_device: torch.device, deterministic: bool
) -> None:
    """Padding rows of a recorded step: no length, no tokens, and nothing written for them."""
    step = random_step([(70, 1), (9, 1)], seed=5)
    ops = TritonOps(kernel_device, torch.float32, deterministic=deterministic)
    q = torch.randn(2, 4, 16, device=kernel_device)
    k, v = torch.randn(2, step.num_slots, 2, 16, device=kernel_device).unbind(0)
    want = ops.paged_attention(q, k, v, meta_on(step.meta, kernel_device), 0.2)
    padded = AttentionMeta(
        rows=pad(step.meta.rows, 2),
        slot_table=step.meta.slot_table,
        seq_lens=pad(step.meta.seq_lens, 2),
        extend_lens=pad(step.meta.extend_lens, 2),
        extend_start=torch.cat([step.meta.extend_start, torch.full((2,), 2, dtype=torch.int32)]),
    )
    more = torch.cat([q, torch.full((2, 4, 16), torch.nan, device=kernel_device)])
    got = ops.paged_attention(more, k, v, meta_on(padded, kernel_device), 0.2)
    assert torch.equal(got[:2], want) if deterministic else torch.allclose(got[:2], want, 1e-5)


@pytest.mark.gpu
def test_deterministic_rows_ignore_chunks_and_mates(kernel_device: torch.device) -> None:
    """A token's bits are those of the same token decoded alone, in a chunk, and beside others."""
    torch.manual_seed(0)
    step = random_step([(90, 90), (40, 3)], seed=6)
    ops = TritonOps(kernel_device, torch.float32, deterministic=True)
    q = torch.randn(93, 6, 32, device=kernel_device)
    k, v = torch.randn(2, step.num_slots, 2, 32, device=kernel_device).unbind(0)
    whole = ops.paged_attention(q, k, v, meta_on(step.meta, kernel_device), 0.2)
    for first, last in ((89, 90), (0, 1), (30, 77)):
        meta = AttentionMeta(
            rows=step.meta.rows[:1],
            slot_table=step.meta.slot_table,
            seq_lens=torch.tensor([last], dtype=torch.int32),
            extend_lens=torch.tensor([last - first], dtype=torch.int32),
            extend_start=torch.tensor([0, last - first], dtype=torch.int32),
        )
        got = ops.paged_attention(q[first:last], k, v, meta_on(meta, kernel_device), 0.2)
        assert torch.equal(got, whole[first:last])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_rows_ignore_guesses_in_chains(
    kernel_device: torch.device, dtype: torch.dtype
) -> None:
    """Tokens that are checked as a chain of candidates have the bits that they have in a prompt,
    and a row beside them those that it has alone."""
    torch.manual_seed(0)
    step = random_step([(90, 90), (200, 1)], seed=6)
    ops = TritonOps(kernel_device, dtype, deterministic=True)
    q = torch.randn(91, 6, 32, device=kernel_device, dtype=dtype)
    k, v = torch.randn(2, step.num_slots, 2, 32, device=kernel_device).to(dtype).unbind(0)
    whole = ops.paged_attention(q, k, v, meta_on(step.meta, kernel_device), 0.2)
    order = np.arange(9, dtype=np.int32)
    chain = DraftTree(order, order - 1, order)
    meta = AttentionMeta(
        rows=step.meta.rows,
        slot_table=step.meta.slot_table,
        seq_lens=step.meta.seq_lens,
        extend_lens=torch.tensor([10, 1], dtype=torch.int32),
        extend_start=torch.tensor([0, 10, 11], dtype=torch.int32),
        tree_lens=torch.tensor([9, 0], dtype=torch.int32),
        tree_offsets=torch.tensor([0, 0], dtype=torch.int32),
        tree_words=torch.from_numpy(chain.mask_words().view(np.int64).copy()),
    )
    got = ops.paged_attention(q[80:], k, v, meta_on(meta, kernel_device), 0.2)
    assert torch.equal(got, whole[80:])


@pytest.mark.gpu
def test_deterministic_products_ignore_the_number_of_rows(kernel_device: torch.device) -> None:
    ops = TritonOps(kernel_device, torch.float32, deterministic=True)
    x = torch.randn(70, 96, device=kernel_device)
    weight = ops.prepare(_dense(80, 96))
    whole = ops.linear(x, weight)
    torch.testing.assert_close(whole, x @ weight.dense.T, rtol=1e-5, atol=1e-5)
    for rows in (slice(0, 1), slice(3, 20), slice(60, 70)):
        assert torch.equal(ops.linear(x[rows], weight), whole[rows])


def _dense(n: int, k: int) -> DenseWeight:
    return DenseWeight(torch.randn(n, k))


def pad(x: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([x, torch.zeros(count, dtype=x.dtype, device=x.device)])
