"""The draft vocabulary: the tokens that a head may guess, by how often the target says them.

Invariant: ascending target ids, none twice; the target's end ids are always in it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """Which tokens.

    Attributes:
        ids: int64 [n], the target's id of each draft id.
        size: tokens of the target.
    """

    ids: torch.Tensor
    size: int

    @classmethod
    def most_frequent(
        cls, counts: Counts, count: int, always: Collection[int] = ()
    ) -> DraftVocabulary:
        """The `count` ids said most often; of equally frequent ones those with lower ids.

        Args:
            counts: [V] how often each token was said.
            count: more than there are means all.
            always: ids that are in it however rare.
        """
        weights = counts.astype(np.float64)
        weights[list(always)] = np.inf
        chosen = np.argsort(-weights, kind="stable")[:count]
        return cls(torch.from_numpy(np.sort(chosen)), len(counts))

    def offsets(self) -> torch.Tensor:
        """`d2t`: int64 [n], target id - draft id."""
        return self.ids - torch.arange(len(self.ids))

    def members(self) -> torch.Tensor:
        """`t2d`: bool [V], whether a target id is in it."""
        inside = torch.zeros(self.size, dtype=torch.bool)
        inside[self.ids] = True
        return inside

    def coverage(self, counts: Counts) -> float:
        """Share of what was said that is in it."""
        total = int(counts.sum())
        return int(counts[self.ids.numpy()].sum()) / total if total else 1.0
