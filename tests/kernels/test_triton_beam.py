"""The kernels of a beam search agree with what its steps mean, level after level."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from branchline.kernels.beam import HEADER, Beam, Check, SlotRows
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.triton import TritonOps

CONTEXT, LEVELS, SCRATCH_ROWS, NODES = 40, 5, 4, 128
POISON = -77


def made(
    rows: int, width: int, depth: int, vocabulary: int, *, mapped: bool, first: int
) -> tuple[Beam, list[torch.Tensor]]:
    """A search over rows of random lengths, some masked and some with known ids; its logits."""
    ints = {"dtype": torch.int32}
    tables = rows + 2
    known = SlotRows(
        slots=torch.randint(1, 999, (tables, CONTEXT + NODES), **ints),
        tokens=torch.randint(0, 90, (tables, CONTEXT + NODES), **ints),
        lengths=torch.tensor([CONTEXT - LEVELS, 3, 0] * tables, **ints)[:tables],
    )
    inputs = torch.full((rows, HEADER + LEVELS), -1, **ints)
    for row in range(rows):
        # the last one is as long as the step before left it
        length = [3, 0, CONTEXT - LEVELS, -1][row % 4]
        pending = [1, 1, 3, 0][row % 4]
        inputs[row, :HEADER] = torch.tensor(
            [(row + 1) % tables, length, row % 3 == 0, depth - row % 2, rows - 1 - row]
        )
        inputs[row, HEADER : HEADER + pending] = torch.randint(0, 90, (pending,), **ints)
    n, names = rows * width, 2 * vocabulary
    picked = torch.randperm(names)[:vocabulary].sort().values.int() if mapped else None
    beam = Beam(
        width=width,
        depth=depth,
        first=first,
        context=CONTEXT,
        scratch=1000,
        scratch_rows=SCRATCH_ROWS,
        inputs=inputs,
        known=known,
        lengths=torch.full((rows,), POISON, **ints),
        masks=torch.randint(-(2**31), 2**31, (rows, names // 32 + 1)).int(),
        vocabulary=picked,
        table=torch.full((n, CONTEXT + LEVELS), POISON, **ints),
        positions=torch.full((LEVELS, n), POISON, dtype=torch.int64),
        ends=torch.full((LEVELS, n), POISON, **ints),
        ids=torch.full((LEVELS, n), POISON, **ints),
        scores=torch.full((LEVELS, n), torch.nan),
        nodes=torch.full((LEVELS, n), POISON, **ints),
        previous=torch.full((LEVELS, n), POISON, **ints),
        found=torch.full((3, rows, width + (depth - 1) * width**2), POISON, **ints),
    )
    sizes = [rows * beam.size(level) for level in range(depth)]
    logits = [4.0 * torch.randn(size, vocabulary) for size in sizes]
    logits[0][0, 5:] = -torch.inf
    logits[-1][-1] = torch.nan
    logits[-1][0, 3] = torch.inf
    return beam, logits


def on(beam: Beam, device: torch.device) -> Beam:
    return Beam(**moved(beam, device))


def moved(buffers: Beam | SlotRows | Check, device: torch.device) -> dict[str, Any]:
    """Fields of a structure with copies of its tensors on a device."""
    found: dict[str, Any] = {}
    for name, x in vars(buffers).items():
        found[name] = x.to(device, copy=True) if torch.is_tensor(x) else x
        if isinstance(x, SlotRows):
            found[name] = SlotRows(**moved(x, device))
    return found


def alive(beam: Beam, level: int) -> list[tuple[torch.Tensor, ...]]:
    """Guesses of a level that are not dead, with the slots of their paths."""
    size, w, out = beam.size(level), beam.width, []
    for place in range(beam.rows * size):
        row, j = divmod(place, size)
        one = [x[level, place].cpu() for x in (beam.ids, beam.nodes, beam.previous, beam.positions)]
        score, end = beam.scores[level, place].cpu(), int(beam.ends[level, place])
        if torch.isfinite(score):
            out.append((score, *one, beam.table[row * w + j, :end].cpu().clone()))
    return out


def found(beam: Beam) -> list[tuple[int, int, int, float]]:
    """(row, id, parent, score) of what has a chance."""
    ids, parents, bits = beam.found.cpu()
    scores = bits.view(torch.float32)
    assert not scores.isnan().any()
    rows, columns = torch.isfinite(scores).nonzero(as_tuple=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(r, int(ids[r, c]), int(parents[r, c]), float(scores[r, c])) for r, c in pairs]


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # what is broken is asked for
@pytest.mark.parametrize(
    ("width", "mapped", "first"),
    [
        pytest.param(width, mapped, first, marks=() if covering else pytest.mark.slow)
        for width, mapped, first in product([1, 3, 8], [False, True], [0, 1])
        for covering in [(mapped == bool(first)) == (width == 3)]
    ],
)
def test_levels_equal_the_reference(
    kernel_device: torch.device, width: int, mapped: bool, first: int
) -> None:
    torch.manual_seed(width)
    depth = 4 if width == 3 else 3
    theirs, logits = made(4, width, depth, 2100, mapped=mapped, first=first)
    ours, reference = on(theirs, kernel_device), ReferenceOps()
    ops = TritonOps(kernel_device, torch.float32)
    ops.beam_begin(ours)
    reference.beam_begin(theirs)
    for level in range(depth):
        got, want = alive(ours, level), alive(theirs, level)
        assert len(got) == len(want) > 0
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
            assert all(torch.equal(x, y) for x, y in zip(one[1:], other[1:], strict=True))
        ops.beam_step(ours, level, logits[level].to(kernel_device))
        reference.beam_step(theirs, level, logits[level])
    got_all, want_all = found(ours), found(theirs)
    assert [one[:3] for one in got_all] == [one[:3] for one in want_all]
    assert [x[3] for x in got_all] == pytest.approx([x[3] for x in want_all], abs=1e-3)
    ids, parents, _ = ours.found.cpu()
    names = 2 * 2100 if mapped else 2100
    assert (ids >= 0).all() and (ids < names).all() and (parents >= -1).all()


def test_equal_scores_are_taken_in_order(kernel_device: torch.device) -> None:
    beam, _ = made(1, 4, 2, 3000, mapped=False, first=0)
    beam = on(beam, kernel_device)
    beam.inputs[0, 2] = 0
    ops = TritonOps(kernel_device, torch.float32)
    ops.beam_begin(beam)
    logits = torch.zeros(1, 3000, device=kernel_device)
    logits[0, 2999] = logits[0, 7] = 1.0
    ops.beam_step(beam, 0, logits)
    assert beam.found[0, 0, :4].tolist() == [7, 2999, 0, 1]
    assert beam.ids[1].tolist() == [7, 2999, 0, 1]


def check_of(rows: int, counts: list[int]) -> Check:
    """A step with a row more than a search, in another order: two known tokens, then candidates."""
    ints, tokens, samples = {"dtype": torch.int32}, sum(counts) + 2 * (rows + 1), sum(counts) + rows
    lens = torch.tensor([*counts, 0], **ints)
    starts = torch.tensor([0, *(lens + 2).cumsum(0).tolist()], **ints)
    words = [count * -(-count // 64) for count in [*counts, 0]]
    return Check(
        firsts=torch.tensor([*(sum(counts[:i]) + i for i in range(rows)), -1], **ints),
        rows=torch.tensor([*(1 + (rows - 1 - i) % (rows + 2) for i in range(rows)), 0], **ints),
        seq_lens=torch.full((rows + 1,), POISON, **ints),
        extend_start=starts,
        tree_lens=lens,
        tree_offsets=torch.tensor([sum(words[:i]) for i in range(rows + 1)], **ints),
        tree_words=torch.full((sum(words) + 1,), POISON, dtype=torch.int64),
        input_ids=torch.full((tokens,), POISON, **ints),
        out_slots=torch.full((tokens,), POISON, **ints),
        previous=torch.full((tokens,), POISON, **ints),
        positions=torch.full((tokens,), POISON, dtype=torch.int64),
        sample_places=torch.full((samples + 1,), POISON, dtype=torch.int64),
        sample_positions=torch.full((samples + 1,), POISON, dtype=torch.int64),
        nodes=torch.full((3, samples + 1), POISON, **ints),
    )


@pytest.mark.parametrize(("width", "counts"), [(3, [7, 3, 12, 1]), (8, [40, 100, 64, 65])])
def test_a_tree_and_what_is_kept_of_it_equal_the_reference(
    kernel_device: torch.device, width: int, counts: list[int]
) -> None:
    torch.manual_seed(width)
    depth, rows = 3, len(counts)
    beam, logits = made(rows, width, depth, 2100, mapped=True, first=1)
    beam.known.slots.copy_(torch.randperm(beam.known.slots.numel()).view(rows + 2, -1))
    reference, ops = ReferenceOps(), TritonOps(kernel_device, torch.float32)
    reference.beam_begin(beam)
    for level in range(depth):
        reference.beam_step(beam, level, logits[level])
    theirs = check_of(rows, counts)
    ours, there = Check(**moved(theirs, kernel_device)), on(beam, kernel_device)
    reference.beam_tree(beam, theirs, NODES)
    ops.beam_tree(there, ours, NODES)
    assert_equal(ours, theirs)
    trees_are_sound(beam, theirs)
    for right in (0.0, 0.9):
        sampled = torch.randint(0, 4000, theirs.nodes.shape[1:], dtype=torch.int32)
        sampled[int(theirs.firsts[1])] = -1
        follow(theirs, sampled, right)
        theirs.nodes[2] = sampled
        ours.nodes[2] = sampled.to(kernel_device)
        got = ops.keep_guesses(ours, there.known, depth, NODES)
        want = reference.keep_guesses(theirs, beam.known, depth, NODES)
        assert all(torch.equal(x.cpu(), y) for x, y in zip(got, want, strict=True))
        assert_equal(there.known, beam.known)
        assert bool((want[0] != want[1]).any()) == (right > 0)


def assert_equal(ours: Check | SlotRows, theirs: Check | SlotRows) -> None:
    for name, x in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name).cpu(), x, msg=lambda m, n=name: f"{n}: {m}")


def trees_are_sound(beam: Beam, check: Check) -> None:
    """The best of what was found, parents first, each with its path as what it sees."""
    for at, first in enumerate(check.firsts.tolist()):
        n = int(check.tree_lens[at])
        if first < 0:
            continue
        row = beam.rows - 1 - at
        parents = check.nodes[1, first + 1 : first + 1 + n].tolist()
        alive = [i for i, parent in enumerate(parents) if parent > -2]
        limit = beam.count(int(beam.inputs[row, 3]))
        finite = int(beam.found[2, row, :limit].view(torch.float32).isfinite().sum())
        assert alive == list(range(min(n, finite)))
        assert all(-2 <= parent < i for i, parent in enumerate(parents))


def follow(check: Check, sampled: torch.Tensor, right: float) -> None:
    """Make the sampled ids of most places those of a candidate behind them."""
    for at, first in enumerate(check.firsts.tolist()):
        for i in reversed(range(int(check.tree_lens[at]))):
            token, parent = check.nodes[:2, first + 1 + i].tolist()
            if first >= 0 and parent > -2 and float(torch.rand(())) < right:
                sampled[first + 1 + parent] = token
