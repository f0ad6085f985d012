"""A beam search over the levels of a draft model, as ops: what is looked into next, on the device.

Invariant: the result of a row depends on that row alone. Knows nothing of draft models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

__all__ = ["HEADER", "Beam", "BeamOps"]

HEADER = 3
"""Columns of `Beam.inputs` ahead of the pending ids: length, last slot, whether masked."""


@dataclass(frozen=True)
class Beam:
    """Buffers of a search of R rows, w guesses of each at a level, up to L levels.

    A level has one guess of each row at first and w later, called s: what belongs to guess j of row
    r is at place r * s + j of the level. Guess j of row r lies in the scratch slot
    `scratch + (level * scratch_rows + r) * w + j`, and at each level its path's slots are in row
    r * w + j of the table.

    Attributes:
        width: w.
        depth: levels of this search, at most L.
        first: the first position of a row that has an entry.
        context: longest row.
        scratch: the first scratch slot.
        scratch_rows: rows that have some at each level.
        inputs: int32 [R, HEADER + L + context]: tokens that the row has, slot of the last one,
            whether its first guesses are masked, ids that are known to come (-1 = none), slots of
            its entries.
        masks: int32 [R, words], which ids may follow, bit set = allowed.
        vocabulary: int32 [v], the id of each column of the logits; None = they are the same.
        table: int32 [R * w, context + L], slots of the rows and of their paths.
        positions: int64 [L, R * w], of the guesses.
        ends: int32 [L, R * w], lengths of their paths in the table, themselves included.
        ids: int32 [L, R * w].
        scores: float32 [L, R * w], log-probabilities of their paths; -inf = dead.
        nodes: int32 [L, R * w], their indices among all that were found; -1 = was known.
        previous: int32 [L, R * w], slots of their parents.
        found: int32 [3, R, w + (depth - 1) * w * w], ids, parents (-1 = follows what was known) and
            bits of the float32 scores of everything that was found, level after level, w behind
            each; -inf where the next id is known.
    """

    width: int
    depth: int
    first: int
    context: int
    scratch: int
    scratch_rows: int
    inputs: torch.Tensor
    masks: torch.Tensor
    vocabulary: torch.Tensor | None
    table: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    ids: torch.Tensor
    scores: torch.Tensor
    nodes: torch.Tensor
    previous: torch.Tensor
    found: torch.Tensor

    @property
    def rows(self) -> int:
        """R."""
        return self.inputs.shape[0]

    @property
    def levels(self) -> int:
        """L."""
        return self.positions.shape[0]

    def size(self, level: int) -> int:
        """s, guesses of each row at a level."""
        return self.width if level else 1

    def count(self, level: int) -> int:
        """Guesses of a row that were found before those behind the level."""
        return self.width + (level - 1) * self.width**2 if level else 0


class BeamOps(ABC):
    """What a search does between the levels of a model."""

    @abstractmethod
    def beam_begin(self, beam: Beam) -> None:
        """From `inputs`: positions, ends, the table with the rows' own slots, and level 0, which is
        the first known id."""

    @abstractmethod
    def beam_step(self, beam: Beam, level: int, logits: torch.Tensor) -> None:
        """What follows the guesses of a level, and the level behind it, if the search has one.

        Behind each guess the w likeliest ids go to `found`; of a row's w * s the w of the highest
        scores are the next level, or, where the next id is known, that one alone is alive. At level
        0 what the masks forbid is not found, if only one id is known.

        Args:
            beam: its `found` and next level are changed, and the columns of the paths in the table.
            level: whose guesses the logits follow.
            logits: [R * s, v].
        """
