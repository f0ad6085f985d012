"""A beam search over the levels of a draft model, as ops: what is looked into next, on the device,
and the step that checks what was found: its tree before, what is kept of it after.

Invariant: the result of a row depends on that row alone. Knows nothing of draft models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

__all__ = ["HEADER", "Beam", "BeamOps", "Check", "SlotRows"]

HEADER = 5
"""Columns of `Beam.inputs` ahead of the known ids: row of the tables, tokens that it has (-1 =
`SlotRows.lengths` tells), whether masked, levels of the row's own, row of the step that checks."""


@dataclass(frozen=True)
class SlotRows:
    """What is known of every row.

    Attributes:
        slots: int32 [rows, width], slot of each position.
        tokens: int32 [rows, context + 1], id at each position.
        lengths: int32 [rows], tokens that are computed, where a step has found out what is kept.
    """

    slots: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor


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
        inputs: int32 [R, HEADER + L]: see `HEADER`, then ids that are known to come (-1 = none); a
            first one of -1 is in the table of tokens.
        known: what the rows hold.
        lengths: int32 [R], tokens that each row has.
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
    known: SlotRows
    lengths: torch.Tensor
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


@dataclass(frozen=True)
class Check:
    """A step that checks guesses: what it reads of its b rows, t tokens and s sampled places.

    Of row i the last `tree_lens[i]` tokens are candidates, the one ahead of them is its last known
    one. Its sampled places, from `firsts[i]` on, are that one and the candidates in order.

    Attributes:
        firsts: int32 [b]; -1 = the row's candidates are not made here.
        rows, seq_lens, tree_lens, tree_offsets: int32 [b]; extend_start: int32 [b + 1]; tree_words:
            int64; see `AttentionMeta`.
        input_ids, out_slots, previous: int32 [t], positions: int64 [t]: ids, slots, slots of the
            tokens before, positions.
        sample_places, sample_positions: int64 [s], where sampled ids go in the flat table of
            tokens, and their positions.
        nodes: int32 [3, s], id and parent of the candidate at each place, parent -1 = the row's
            last known token, -2 = no candidate; and what was sampled there, negative = nothing.
    """

    firsts: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    extend_start: torch.Tensor
    tree_lens: torch.Tensor
    tree_offsets: torch.Tensor
    tree_words: torch.Tensor
    input_ids: torch.Tensor
    out_slots: torch.Tensor
    previous: torch.Tensor
    positions: torch.Tensor
    sample_places: torch.Tensor
    sample_positions: torch.Tensor
    nodes: torch.Tensor


class BeamOps(ABC):
    """What a search does between the levels of a model, and around the step that checks it."""

    @abstractmethod
    def beam_begin(self, beam: Beam) -> None:
        """From `inputs`: lengths, positions, ends, the table with the rows' own slots, and level 0,
        which is the first known id."""

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

    @abstractmethod
    def beam_tree(self, beam: Beam, check: Check, most: int) -> None:
        """Make the likeliest of what was found of each row, up to its own levels, the candidates of
        its row of the step: equal ones in the order found, likeliest first, so that parents come
        before their children. Places that are left have parent -2 and see themselves alone.

        Everything of the step that depends on them or on how long the row is is written; the ids of
        known tokens are not.

        Args:
            beam: searched to its end.
            check: at least `firsts`, rows, tree_lens, tree_offsets and extend_start are there.
            most: candidates of a row at most.
        """

    @abstractmethod
    def keep_guesses(
        self, check: Check, known: SlotRows, depth: int, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row's candidates, those that were sampled behind one another from its last known
        token on: sampled ids along them enter the table of tokens, `lengths` counts them.

        Args:
            check: as the step was run, with what was sampled.
            known: its tokens and lengths are changed, of rows whose `firsts` are not -1.
            depth: candidates of a path at most.
            most: candidates of a row at most.

        Returns:
            (source, target): int32 [b * depth], slots to copy, all at once, so that what is kept
            lies behind what was there; 0 to 0 where nothing is to be copied.
        """
