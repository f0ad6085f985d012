"""Guesses of a model become trees of what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.executor.drafting import DraftSeed, Guesses, best_tree
from branchline.runtime.scheduler.proposed import check_tree
from branchline.runtime.speculative.model_drafter import ModelDrafter


class Scripted:
    """Gives the same guesses for every seed."""

    max_depth = 3

    def __init__(self, guesses: Guesses) -> None:
        self.guesses = guesses
        self.seeds: list[DraftSeed] = []

    def guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        self.seeds += seeds
        return [self.guesses] * len(seeds)


class EvenIds:
    """A matcher that takes even ids."""

    def fill(self, bitmask: np.ndarray, row: int) -> bool:  # type: ignore[type-arg]
        bitmask[row] = 0x55555555
        return True


def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


GUESSES = Guesses(
    ids=ints(7, 8, 9, 4, 5, 6),
    parents=ints(-1, -1, 0, 0, 1, 2),
    scores=np.array([-0.1, -2.0, -0.5, -np.inf, -2.0, -0.6], dtype=np.float32),
)


def row(pending: int, computed: int = 5, **changes: object) -> DraftRow:
    length = computed + pending
    fields = {
        "row": 0,
        "ids": np.arange(length, dtype=np.int32),
        "prompt_len": 2,
        "computed_len": computed,
        "max_nodes": 4,
        "max_depth": 3,
        "slots": np.arange(100, 100 + length + 4, dtype=np.int32),
        "request_id": "r",
    }
    return DraftRow(**(fields | changes))  # type: ignore[arg-type]


def test_seeds_are_what_the_row_has() -> None:
    executor = Scripted(GUESSES)
    drafter = ModelDrafter(executor, 40)
    assert drafter.promising(row(1))
    trees = drafter.propose([row(2, max_depth=2), row(4), row(1, matcher=EvenIds())])
    assert trees[1] is None and trees[0] is not None and trees[2] is not None
    first, second = executor.seeds
    assert first.slots.tolist() == [100, 101, 102, 103, 104]
    assert first.pending.tolist() == [5, 6] and first.depth == 2 and first.allowed is None
    assert second.allowed is not None and second.allowed.tolist() == [0x55555555] * 2
    assert drafter.propose([row(4)]) == [None] and len(executor.seeds) == 2


@pytest.mark.parametrize("nodes", range(1, 8))
def test_the_likeliest_guesses_are_a_tree(nodes: int) -> None:
    tree = best_tree(GUESSES, nodes)
    assert tree is not None
    check_tree(tree, nodes, 100)
    # in the order of their probability; of equal ones the parent comes first, -inf never
    expected = [0, 2, 5, 1, 4][:nodes]
    assert tree.token_ids.tolist() == GUESSES.ids[expected].tolist()
    deepest = {7: 0, 9: 1, 6: 2, 8: 0, 5: 1}
    assert [deepest[token] for token in tree.token_ids.tolist()] == tree.depths.tolist()


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_guesses_that_are_not_worth_a_check_are_not_made_but_for_the_likeliest(
    floor: float,
) -> None:
    executor = Scripted(GUESSES)
    drafter = ModelDrafter(executor, 64, floor)
    trees = drafter.propose([row(1, least=0.1), row(1, least=0.58), row(1, least=0.99)])
    found = [[] if tree is None else tree.token_ids.tolist() for tree in trees]
    few, two, one = found
    assert few == ([7, 9, 6, 8] if floor == 0.0 else [7, 9, 6])
    assert two == [7, 9] and one == [7]
    assert [seed.least for seed in executor.seeds] == [max(floor, 0.1), 0.58, 0.99]
