"""A row's result is the same bits whatever runs beside it, in however many pieces or threads."""

import pytest
import torch

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.testing import random_quantized, random_step
from branchline.kernels.weights import DenseWeight, Q4_1Weight, Q8_0Weight, Weight


def _weights(native: NativeOps) -> list[Weight]:
    tensor = torch.randn(200, 320)
    return [
        random_quantized(Q4_1Weight, 200, 320, 0),
        random_quantized(Q8_0Weight, 200, 320, 0),
        native.prepare(DenseWeight(tensor)),
        native.prepare(DenseWeight(tensor.bfloat16())),
    ]


@pytest.mark.parametrize("which", range(4))
def test_linear_row_ignores_other_rows(native: NativeOps, which: int) -> None:
    torch.manual_seed(0)
    weight, x = _weights(native)[which], torch.randn(333, 320)
    whole = native.linear(x, weight)
    few = [(count, 2 * count) for count in range(1, 18)]
    for first, last in [*few, (0, 1), (40, 51), (100, 113), (0, 64), (17, 333)]:
        assert torch.equal(native.linear(x[first:last], weight), whole[first:last])


@pytest.mark.parametrize("kind", [Q4_1Weight, Q8_0Weight])
@pytest.mark.parametrize("k", [32, 64, 96, 576, 608])
def test_quantized_row_is_the_same_however_many_rows_a_tile_has(
    native: NativeOps, kind: type[Q4_1Weight | Q8_0Weight], k: int
) -> None:
    """Numbers of rows and of blocks, even and odd, choose between several kernels."""
    torch.manual_seed(k)
    weight, x = random_quantized(kind, 40, k, 1), torch.randn(41, k)
    alone = torch.cat([native.linear(row[None], weight) for row in x])
    for count in range(2, 42):
        assert torch.equal(native.linear(x[:count], weight), alone[:count])


def test_row_ops_ignore_other_rows(native: NativeOps) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(50, 576), torch.randn(576)
    for op in (lambda y: native.rms_norm(y, w, 1e-5), native.silu_mul, native.logsumexp_rows):
        assert torch.equal(op(x)[20:21], op(x[20:21]))


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
def test_attention_ignores_chunks_and_mates(native: NativeOps, pool: torch.dtype) -> None:
    """A prompt in one piece equals the same prompt in chunks, token by token, and beside others."""
    torch.manual_seed(0)
    hq, hkv, d, length = 6, 2, 64, 700
    one = NativeOps(Runner(load_library(), 1))
    many = NativeOps(Runner(load_library(), 5))
    step = random_step([(length, length)])
    q = torch.randn(length, hq, d)
    k, v = (torch.randn(step.num_slots, hkv, d).to(pool) for _ in range(2))
    whole = native.paged_attention(q, k, v, step.meta, 0.125)
    table, row = step.meta.slot_table, step.meta.rows
    for ops in (one, native, many):
        for first, last in [(0, 700), (0, 1), (699, 700), (512, 513), (300, 471), (640, 700)]:
            other = random_step([(last, last - first)])
            meta = other.meta.__class__(
                rows=row,
                slot_table=table,
                seq_lens=torch.tensor([last], dtype=torch.int32),
                extend_lens=torch.tensor([last - first], dtype=torch.int32),
                extend_start=torch.tensor([0, last - first], dtype=torch.int32),
            )
            got = ops.paged_attention(q[first:last], k, v, meta, 0.125)
            assert torch.equal(got, whole[first:last])
    pieces = [(700, 1), (600, 200), (130, 3), (256, 256)]
    ends = torch.tensor([e for _, e in pieces]).cumsum(0).tolist()
    mixed = random_step(pieces).meta.__class__(
        rows=row.repeat(4),
        slot_table=table,
        seq_lens=torch.tensor([n for n, _ in pieces], dtype=torch.int32),
        extend_lens=torch.tensor([e for _, e in pieces], dtype=torch.int32),
        extend_start=torch.tensor([0, *ends], dtype=torch.int32),
    )
    index = torch.cat([torch.arange(n - e, n) for n, e in pieces])
    assert torch.equal(many.paged_attention(q[index], k, v, mixed, 0.125), whole[index])
    for ops in (one, many):
        ops.runner.close()


def test_tree_with_causal_mask_equals_no_tree(native: NativeOps) -> None:
    torch.manual_seed(0)
    length, extend, nodes = 300, 20, 17
    step = random_step([(length, extend)])
    words = [(1 << (x + 1)) - 1 for x in range(nodes)]
    tree = step.meta.__class__(
        **{
            **vars(step.meta),
            "tree_lens": torch.tensor([nodes], dtype=torch.int32),
            "tree_offsets": torch.tensor([0], dtype=torch.int32),
            "tree_words": torch.tensor(words),
        }
    )
    q = torch.randn(extend, 4, 32)
    k, v = torch.randn(2, step.num_slots, 2, 32).unbind(0)
    plain = native.paged_attention(q, k, v, step.meta, 0.2)
    assert torch.equal(native.paged_attention(q, k, v, tree, 0.2), plain)


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", [3, 127, 300])
@pytest.mark.parametrize("nodes", [12, 80, 82, 150])
def test_a_tree_token_equals_its_path_run_alone(
    native: NativeOps, pool: torch.dtype, prefix: int, nodes: int
) -> None:
    """Same bits as if the tokens that it sees stood right behind the prefix, one after another,
    whether or not prefix and tree fit one block of keys (46 and 82 just do)."""
    torch.manual_seed(prefix)
    plain = 2
    length = prefix + plain + nodes
    step = random_step([(length, plain + nodes)], seed=prefix, trees=[nodes])
    meta = step.meta
    assert meta.tree_words is not None and meta.tree_offsets is not None
    q = torch.randn(plain + nodes, 6, 64)
    k, v = (torch.randn(step.num_slots, 2, 64).to(pool) for _ in range(2))
    whole = native.paged_attention(q, k, v, meta, 0.125)
    one = NativeOps(Runner(load_library(), 1))
    assert torch.equal(one.paged_attention(q, k, v, meta, 0.125), whole)
    one.runner.close()
    base, row = prefix + plain, int(meta.rows[0])
    start, width = int(meta.tree_offsets[0]), (nodes + 63) // 64
    for node in {0, 1, 63, 64, nodes - 1} & set(range(nodes)):
        words = meta.tree_words[start + node * width : start + (node + 1) * width].tolist()
        seen = [y for y in range(nodes) if words[y // 64] >> (y % 64) & 1]
        table = meta.slot_table.clone()
        table[row, base : base + len(seen)] = meta.slot_table[row, [base + y for y in seen]]
        alone = meta.__class__(
            rows=meta.rows,
            slot_table=table,
            seq_lens=torch.tensor([base + len(seen)], dtype=torch.int32),
            extend_lens=torch.tensor([1], dtype=torch.int32),
            extend_start=torch.tensor([0, 1], dtype=torch.int32),
        )
        got = native.paged_attention(q[plain + node :][:1], k, v, alone, 0.125)
        assert torch.equal(got, whole[plain + node :][:1]), node


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
def test_rows_that_read_a_trunk_together_equal_each_alone(
    native: NativeOps, pool: torch.dtype
) -> None:
    """Decode rows whose first keys lie in the same slots share their loads, not their results."""
    torch.manual_seed(1)
    lens = [400, 391, 700, 129, 256, 384, 640, 640, 500, 130, 64, 900, 901]
    trunks = [384, 384, 384, 128, 128, 256, 0, 640, 384, 0, 0, 896, 896]
    step = random_step([(n, 1) for n in lens])
    meta = step.meta
    table = meta.slot_table.clone()
    source = meta.slot_table[int(meta.rows[lens.index(900)])]
    for row, trunk in zip(meta.rows.tolist(), trunks, strict=True):
        table[row, :trunk] = source[:trunk]
    q = torch.randn(len(lens), 6, 64)
    k, v = (torch.randn(step.num_slots, 2, 64).to(pool) for _ in range(2))

    def attend(rows: slice) -> torch.Tensor:
        count = len(lens[rows])
        part = meta.__class__(
            rows=meta.rows[rows],
            slot_table=table,
            seq_lens=meta.seq_lens[rows],
            extend_lens=meta.extend_lens[rows],
            extend_start=torch.arange(count + 1, dtype=torch.int32),
        )
        return native.paged_attention(q[rows], k, v, part, 0.125)

    together = attend(slice(None))
    for i in range(len(lens)):
        assert torch.equal(together[i : i + 1], attend(slice(i, i + 1))), i
