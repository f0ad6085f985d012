"""The kernels that look up agree with what looking up means, and that with a walk id by id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from branchline.kernels.beam import Check, SlotRows
from branchline.kernels.lookup import CHANGED, LEAST, LONG, MATCH, Matches
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.reference import lookup as reference_room
from branchline.kernels.triton import TritonOps
from branchline.kernels.triton import lookup as triton_room
from tests.kernels.test_triton_beam import assert_equal, moved

POISON = -77
INTS = {"dtype": torch.int32}


def score(ids: list[int], end: int) -> int:
    """How well a place matches, id by id."""

    def same(back: int) -> bool:
        return back <= end and ids[end - back] == ids[len(ids) - back]

    back = 1
    while back <= MATCH and same(back):
        back += 1
    run = back - 1
    while back <= MATCH + LONG and same(back):  # beyond what counts, up to the id that differs
        back += 1
    more = 0
    while back + 1 + more <= MATCH + LONG and same(back + 1 + more):
        more += 1
    return run + (CHANGED if more >= LONG else 0)


def best(ids: list[int], first: int = 1) -> tuple[int, int]:
    """(place, score) of the best place, the latest of equal ones; (0, 0) = none."""
    found = max(((score(ids, end), end) for end in range(first, len(ids))), default=(0, 0))
    return (found[1], found[0]) if found[0] >= LEAST else (0, 0)


def texts(longest: int) -> list[list[int]]:
    """Ids that repeat: of few kinds, of many, quoted with changes, short ones, and one for ever."""

    def some(count: int, kinds: int) -> list[int]:
        return torch.randint(0, kinds, (count,)).tolist()

    quoted = some(40, 999)
    changed = [*quoted[:20], 5000, *quoted[21:]]
    return [
        [7],
        [7, 7],
        [7, 7, 7, 7],
        [3] * 60,
        some(longest, 3),
        some(longest // 2, 40),
        some(longest, 5000),
        [*some(longest // 3, 999), *quoted, *some(30, 999), *quoted[:17]],
        [*quoted, *some(50, 999), *changed[:21]],
        [*quoted, *some(50, 999), *changed[:22]],
        [*quoted, *some(50, 999), *changed[:31]],
        [*quoted[:9], *some(50, 999), *quoted[:7], 5000],
        [*quoted[:8], 1, *some(50, 999), *quoted[:8], 5000],
        [*quoted, 1, *quoted, 2, *quoted],
        [6001, 6002, 6003, *some(30, 999), 6002, 6003],
    ]


def tables(rows: list[list[int]]) -> SlotRows:
    """The texts in rows of their own, in another order than a step's; what is behind them is any
    id that there is."""
    width = max(map(len, rows)) + 140
    tokens = torch.randint(0, 3, (len(rows) + 1, width), **INTS)
    for i, ids in enumerate(rows):
        tokens[row_of(i, len(rows)), : len(ids)] = torch.tensor(ids, **INTS)
    slots = torch.randperm((len(rows) + 1) * (width + 3)).view(len(rows) + 1, -1).int()
    return SlotRows(slots, tokens, torch.full((len(rows) + 1,), POISON, **INTS))


def row_of(i: int, count: int) -> int:
    return (i * 7 + 3) % (count + 1)


def step(rows: list[list[int]], counts: list[int]) -> tuple[Check, torch.Tensor]:
    """A step whose rows have so many candidates, 0 = none, behind one or two known tokens; and the
    places of their last ones, of every other row untold."""
    lens = [count + 1 + i % 2 for i, count in enumerate(counts)]
    places = [count + 1 for count in counts]
    words = [count * -(-count // 64) for count in counts]
    starts = torch.tensor([0, *lens], **INTS).cumsum(0).int()
    firsts = [sum(places[:i]) if count else -1 for i, count in enumerate(counts)]
    samples, tokens = sum(places) + 1, int(starts[-1])
    told = [len(ids) - 1 if i % 2 else -1 for i, ids in enumerate(rows)]
    check = Check(
        firsts=torch.tensor(firsts, **INTS),
        rows=torch.tensor([row_of(i, len(rows)) for i in range(len(rows))], **INTS),
        seq_lens=torch.tensor([len(ids) - 1 for ids in rows], **INTS),
        extend_start=starts,
        tree_lens=torch.tensor(counts, **INTS),
        tree_offsets=torch.tensor([sum(words[:i]) for i in range(len(rows))], **INTS),
        tree_words=torch.full((sum(words) + 1,), POISON, dtype=torch.int64),
        input_ids=torch.full((tokens,), POISON, **INTS),
        out_slots=torch.full((tokens,), POISON, **INTS),
        previous=torch.full((tokens,), POISON, **INTS),
        positions=torch.full((tokens,), POISON, dtype=torch.int64),
        sample_places=torch.full((samples,), POISON, dtype=torch.int64),
        sample_positions=torch.full((samples,), POISON, dtype=torch.int64),
        nodes=torch.full((3, samples), POISON, **INTS),
    )
    return check, torch.tensor(told, **INTS)


def no_matches(known: SlotRows) -> Matches:
    return Matches(*(torch.full_like(known.lengths, POISON) for _ in range(2)))


def on(buffers: Matches | SlotRows, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: x.to(device, copy=True) for name, x in vars(buffers).items()}


@pytest.mark.parametrize("searched", [100, 1 << 14])
def test_the_best_place_is_found(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, searched: int
) -> None:
    for room in (reference_room, triton_room):
        monkeypatch.setattr(room, "SEARCHED", searched)
    torch.manual_seed(searched)
    rows = texts(2300)
    known = tables(rows)
    check, _ = step(rows, [0] * len(rows))
    theirs, ours = no_matches(known), Matches(**on(no_matches(known), kernel_device))
    matched, there = (torch.full((len(rows),), POISON, **INTS) for _ in range(2))
    there = there.to(kernel_device)
    ReferenceOps().find_matches(check, matched, known, theirs, 15)
    TritonOps(kernel_device, torch.float32).find_matches(
        Check(**moved(check, kernel_device)),
        there,
        SlotRows(**on(known, kernel_device)),
        ours,
        15,
    )
    wanted = [best(ids, max(1, len(ids) - searched)) for ids in rows]
    found = [
        (int(theirs.ends[int(row)]), int(m)) for row, m in zip(check.rows, matched, strict=True)
    ]
    assert found == wanted
    assert {0, LEAST, CHANGED, CHANGED + 1, 10 + CHANGED, MATCH} <= {one for _, one in wanted}
    assert theirs.lengths[check.rows].tolist() == [len(ids) for ids in rows]
    assert torch.equal(there.cpu(), matched)
    for name, x in vars(theirs).items():
        assert torch.equal(getattr(ours, name).cpu(), x)


@pytest.mark.parametrize("most", [15, 128])
def test_chains_and_what_is_kept_of_them_equal_the_reference(
    kernel_device: torch.device, most: int
) -> None:
    """What followed the place, round and round; then the row is as long as it was right."""
    torch.manual_seed(most)
    rows = texts(300)
    counts = [(0, most, 1, most // 2, 65)[i % 5] for i in range(len(rows))]
    counts = [min(count, most) for count in counts]
    known, reference = tables(rows), ReferenceOps()
    ops = TritonOps(kernel_device, torch.float32)
    theirs, told = step(rows, counts)
    for i, ids in enumerate(rows):
        known.lengths[row_of(i, len(rows))] = len(ids) - 1
    matches, matched = no_matches(known), torch.zeros(len(rows), **INTS)
    plain = replace(theirs, firsts=torch.full_like(theirs.firsts, -1))
    reference.find_matches(plain, matched, known, matches, most)
    matches.lengths[row_of(4, len(rows))] += 1  # looked up at another length
    ours, there = Check(**moved(theirs, kernel_device)), SlotRows(**on(known, kernel_device))
    our_matches = Matches(**on(matches, kernel_device))
    reference.plant_chains(theirs, told, known, matches, most)
    ops.plant_chains(ours, told.to(kernel_device), there, our_matches, most)
    assert_equal(ours, theirs)
    chains_are_sound(theirs, rows, counts)

    sampled = torch.randint(0, 9000, theirs.nodes.shape[1:], **INTS)
    right = []
    for i, count in enumerate(counts):
        first, hits = int(theirs.firsts[i]), (0, count, count // 2)[i % 3]
        sampled[max(first, 0) : max(first, 0) + hits] = theirs.nodes[
            0, first + 1 : first + 1 + hits
        ]
        planted = count and int(theirs.nodes[1, first + 1]) == -1
        if not planted:
            hits = 0
        elif hits < count and int(sampled[first + hits]) == int(theirs.nodes[0, first + 1 + hits]):
            hits += 1
        right.append(hits)
    for nodes, tokens, device in (
        (theirs.nodes, known.tokens, torch.device("cpu")),
        (ours.nodes, there.tokens, kernel_device),
    ):
        nodes[2] = sampled.to(device)
        for i, (ids, count) in enumerate(zip(rows, counts, strict=True)):
            first = int(theirs.firsts[i])
            new = sampled[first : first + count + 1] if count else sampled[:1]
            tokens[row_of(i, len(rows)), len(ids) : len(ids) + len(new)] = new.to(device)
    for i, count in enumerate(counts):
        if not count:
            theirs.seq_lens[i] = ours.seq_lens[i] = len(rows[i])
    new_matched = torch.zeros_like(matched).to(kernel_device)
    reference.find_matches(theirs, matched, known, matches, most)
    ops.find_matches(ours, new_matched, there, our_matches, most)
    assert torch.equal(new_matched.cpu(), matched)
    assert_equal(there, known)
    for i, (ids, count) in enumerate(zip(rows, counts, strict=True)):
        row = row_of(i, len(rows))
        grown = [*ids, *known.tokens[row, len(ids) : len(ids) + 1 + right[i]].tolist()]
        assert (int(matches.ends[row]), int(matched[i])) == best(grown)
        assert int(known.lengths[row]) == (len(grown) - 1 if count else len(ids) - 1)


def chains_are_sound(check: Check, rows: list[list[int]], counts: list[int]) -> None:
    """Each candidate sees those ahead of it, and is what followed; or there are none."""
    for i, (ids, count) in enumerate(zip(rows, counts, strict=True)):
        if not count:
            continue
        first, words = int(check.firsts[i]), -(-count // 64)
        tokens, parents = check.nodes[:2, first + 1 : first + 1 + count].tolist()
        offset = int(check.tree_offsets[i])
        seen = check.tree_words[offset : offset + count * words].view(count, words).tolist()
        bits = [sum((one % (1 << 64)) << 64 * w for w, one in enumerate(line)) for line in seen]
        end, matched = best(ids)
        if not matched or i == 4:
            assert parents == [-2] * count and bits == [1 << j for j in range(count)]
            continue
        wanted = list(ids)
        for _ in range(count):
            wanted.append(wanted[end + len(wanted) - len(ids)])
        assert tokens == wanted[len(ids) :]
        assert parents == list(range(-1, count - 1))
        assert bits == [(2 << j) - 1 for j in range(count)]
