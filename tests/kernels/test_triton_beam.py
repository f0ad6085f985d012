"""The kernels of a beam search agree with what its steps mean, level after level."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels.beam import HEADER, Beam
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.triton import TritonOps

CONTEXT, LEVELS, SCRATCH_ROWS = 40, 5, 4
POISON = -77


def made(
    rows: int, width: int, depth: int, vocabulary: int, *, mapped: bool, first: int
) -> tuple[Beam, list[torch.Tensor]]:
    """A search over rows of random lengths, some masked and some with known ids; its logits."""
    ints = {"dtype": torch.int32}
    inputs = torch.full((rows, HEADER + LEVELS + CONTEXT), -1, **ints)
    for row in range(rows):
        length = [3, 0, CONTEXT - LEVELS, CONTEXT][row % 4]
        known = [1, 1, 3, LEVELS][row % 4]
        inputs[row, 0], inputs[row, 1], inputs[row, 2] = length, 900 + row, row % 3 == 0
        inputs[row, HEADER : HEADER + known] = torch.randint(0, 90, (known,), **ints)
        inputs[row, HEADER + LEVELS :] = torch.randint(0, 99, (CONTEXT,), **ints)
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
    fields = vars(beam)
    return Beam(**{k: x.to(device) if torch.is_tensor(x) else x for k, x in fields.items()})


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
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("mapped", [False, True])
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
