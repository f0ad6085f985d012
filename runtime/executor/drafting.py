"""Guesses of a draft model as they leave the executor, and the best tree that can be made of them.

Invariant: a guess never scores higher than its parent, and parents come first, so the best n of a
row are a tree. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from branchline.runtime.core.tree import DraftTree

if TYPE_CHECKING:
    from branchline.runtime.core.batch import Float32Array, Int32Array

    Words = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class DraftSeed:
    """Where guessing begins in one row.

    Attributes:
        slots: int32 [n], slots of the tokens that the target has computed; n >= 1.
        pending: int32 [k], the ids behind them that it has not; k >= 1.
        depth: levels of guesses wanted, at least 1.
        allowed: int32 [ceil(V / 32)], which of the target's ids may follow the pending ones, bit
            set = allowed; None = all.
        nodes: how many of the likeliest guesses will be taken; what cannot be among them need not
            be found. None = all.
        least: chance below which a guess is not worth checking; what follows only such ones need
            not be found.
    """

    slots: Int32Array
    pending: Int32Array
    depth: int
    allowed: Words | None = None
    nodes: int | None = None
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Guesses:
    """What may follow one row's pending ids.

    Attributes:
        ids: int32 [c], of the target's vocabulary.
        parents: int32 [c], index of the guess before it; -1 = follows the last pending id.
        scores: float32 [c], log-probability of the path up to it; -inf = no guess.
    """

    ids: Int32Array
    parents: Int32Array
    scores: Float32Array


class DraftExecutor(Protocol):
    """Runs a draft model for rows whose targets have been committed."""

    max_depth: int

    def guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        """Guesses for each seed, of any number of seeds; `pending` may be at most `max_depth`
        long, and counts towards the levels that are left."""


def best_tree(guesses: Guesses, max_nodes: int, least: float = 0.0) -> DraftTree | None:
    """The likeliest `max_nodes` guesses, likeliest first; of all but the first only those with a
    chance of `least` or more. None where there are none.

    So the first k of them are the tree of k guesses.
    """
    order = np.argsort(-guesses.scores, kind="stable")[:max_nodes]
    scores = guesses.scores[order]
    worth = scores >= math.log(least) if least > 0.0 else np.isfinite(scores)
    worth[:1] = np.isfinite(scores[:1])
    order = order[worth]
    if not len(order):
        return None
    place = np.full(len(guesses.ids) + 1, -1, dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    parents = place[guesses.parents[order]]  # the last place stays -1: no parent
    depths: list[int] = []
    for parent in parents.tolist():
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return DraftTree(guesses.ids[order], parents, np.array(depths, dtype=np.int32))
