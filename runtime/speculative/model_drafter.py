"""Guesses by a draft model: a head over the target's states, or a whole small model.

Invariant: a proposal is a function of the row's ids and of what the target's steps left in its
slots. Nothing is kept between calls. Knows nothing of the model, nor where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.executor.drafting import DraftExecutor, DraftSeed, best_tree


class ModelDrafter:
    """`core.drafting.Drafter` over a draft model.

    Args:
        executor: runs it.
        vocab_size: of the target.
        least: chance below which no guess is made, whatever a row asks for.
    """

    def __init__(self, executor: DraftExecutor, vocab_size: int, least: float = 0.0) -> None:
        self._executor = executor
        self._least = least
        self._words = -(-vocab_size // 32)

    def promising(self, row: DraftRow) -> int:
        """A model always has a guess."""
        return 1

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        """See `Drafter`; nothing behind more pending ids than the model has levels."""
        seeds: dict[int, DraftSeed] = {}
        for index, row in enumerate(rows):
            pending = row.ids[row.computed_len :]
            if row.computed_len > 0 and len(pending) <= self._executor.max_depth:
                slots = row.slots[: row.computed_len]
                depth = min(row.max_depth, row.max_nodes)
                allowed = self._allowed(row)
                least = max(row.least, self._least)
                seeds[index] = DraftSeed(slots, pending, depth, allowed, row.max_nodes, least)
        trees: list[DraftTree | None] = [None] * len(rows)
        if seeds:
            found = self._executor.guess(list(seeds.values()))
            for index, guesses in zip(seeds, found, strict=True):
                trees[index] = best_tree(guesses, rows[index].max_nodes, seeds[index].least)
        return trees

    def finished(self, request_id: str) -> None:
        """Nothing is kept of a sequence."""

    def _allowed(self, row: DraftRow) -> np.ndarray[tuple[int], np.dtype[np.int32]] | None:
        """What the row's constraint lets follow its ids."""
        if row.matcher is None:
            return None
        bitmask = np.full((1, self._words), -1, dtype=np.int32)
        return bitmask[0] if row.matcher.fill(bitmask, 0) else None
