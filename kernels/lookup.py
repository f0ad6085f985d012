"""Guesses by looking up, as ops: where a row's last ids have come before, and what followed there
as the candidates of a step.

Invariant: what is found of a row depends on that row's ids alone. Knows nothing of who asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from branchline.kernels.beam import Check, SlotRows

__all__ = ["CHANGED", "LEAST", "LONG", "MATCH", "SEARCHED", "LookupOps", "Matches"]

LEAST = 2
"""A place must match so well to be one at all. Runs as short as that come by chance, but where
places are kept free for guesses any guess is better than none."""

MATCH = 16
"""Ids beyond which a longer match is no better."""

LONG = 8
"""So many equal ids behind one that differs make a place match better: texts are quoted with
changes."""

CHANGED = 3
"""By so much: what stands behind a changed id is a match as soon as that id is there."""

SEARCHED = 1 << 14
"""Places of a row that are looked at, the latest ones."""


@dataclass(frozen=True)
class Matches:
    """Where the last ids of each row of the tables have come before.

    Attributes:
        lengths: int32 [rows], ids that the row had when it was looked up.
        ends: int32 [rows], position of the id that followed the earlier ones; 0 = there are none.
    """

    lengths: torch.Tensor
    ends: torch.Tensor


class LookupOps(ABC):
    """What is done ahead of a step that checks chains of guesses, and behind every step.

    A place e of a row of n ids, 0 < e < n, matches as well as ids before e are equal to the last
    ids of the row, counted from the last one back to the first that differs, up to `MATCH`; and by
    `CHANGED` better, if the `LONG` ids before that one are equal again. (They are looked at up to
    `MATCH` + `LONG` ids back.) The best place of those that match by `LEAST` or more is found, of
    equal ones the latest.
    """

    @abstractmethod
    def plant_chains(
        self, check: Check, last_known: torch.Tensor, known: SlotRows, matches: Matches, most: int
    ) -> None:
        """Make what followed the place that was found for each row the candidates of its row of the
        step, one behind the other, as many as there are places; where that runs into the row's own
        end it goes round. Rows of which nothing was found, or had another length then, have
        candidates with parent -2, which see themselves alone.

        Everything of the step that depends on them or on how long the row is is written; the ids of
        known tokens are not.

        Args:
            check: at least `firsts`, rows, tree_lens, tree_offsets and extend_start are there.
            last_known: int32 [b], position of each row's last known token; -1 = as many are
                computed as `SlotRows.lengths` tells.
            most: candidates of a row at most.
        """

    @abstractmethod
    def find_matches(
        self,
        check: Check,
        matched: torch.Tensor,
        known: SlotRows,
        matches: Matches,
        most: int,
    ) -> None:
        """Behind a step: keep the candidates that were sampled, from the first one on, and look up
        each row, with what was sampled, which is in the table of tokens.

        Args:
            check: as the step was run; of rows whose `firsts` are -1 only rows and seq_lens count:
                one id is sampled behind their tokens.
            matched: int32 [b], changed: how well the place that was found matches; 0 = none.
            known: its lengths are changed, of rows whose `firsts` are not -1.
            matches: changed.
            most: candidates of a row at most, which stand one behind the other.
        """
