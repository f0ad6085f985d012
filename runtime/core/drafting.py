"""The seam between the scheduler and whoever guesses what comes next. Imports no torch.

A drafter proposes candidate tokens behind a row's ids; the next step runs them under a tree mask
and samples the target at the row's last token and at each of them (`core.tree.DraftTree`). A
candidate is kept where the target sampled the same id. So the output never depends on a drafter,
only the number of steps does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from branchline.runtime.core.tree import DraftTree

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import TokenMatcher

Int32Array = np.ndarray[tuple[int], np.dtype[np.int32]]

MAX_GUESSES = 256
"""Candidates of one step at most that are sampled: each needs a row of logits."""


@dataclass(slots=True)  # not frozen: that takes several times as long to make
class DraftRow:
    """One row that wants candidates. Views are valid during the call alone, and read-only.

    Attributes:
        row: row of the slot and token tables.
        ids: int32 [length], prompt and output so far. The last one, or more of them after forced
            ids, has not been computed yet: its step is the one that the candidates join.
        prompt_len: ids of these that are the prompt.
        computed_len: leading ids whose key-value entries exist; at most length - 1.
        max_nodes: candidates at most, at least 1.
        max_depth: candidates on one path at most, at least 1.
        least: chance of being kept below which a candidate is not worth its place; 0 = not known.
        slots: int32 [length + max_nodes], key-value slots of the row's positions. Those from
            computed_len on are the row's own and hold nothing yet: a drafter may use them for
            entries of its own guesses, which the step overwrites.
        request_id: unique among running sequences.
        program_id, lane_id: see `GenerateRequest`; "" = none.
        matcher: at the place behind the ids, for drafters that ask what may come: it must be left
            as it was found. Candidates it refuses are dropped by the scheduler in any case.
    """

    row: int
    ids: Int32Array
    prompt_len: int
    computed_len: int
    max_nodes: int
    max_depth: int
    slots: Int32Array
    request_id: str
    program_id: str = ""
    lane_id: str = ""
    matcher: TokenMatcher | None = None
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class StepDrafter:
    """Guesses are made by the worker, as part of the step that checks them (`DraftedRows`): nobody
    is asked before it.

    Attributes:
        levels: of guesses at most, those of known ids behind the first included.
    """

    levels: int


class Drafter(Protocol):
    """Guesses what follows. All calls come from the loop thread, one at a time."""

    def promising(self, row: DraftRow) -> int:
        """Whether a proposal for this row is likely to come of asking, as cheaply as can be told.

        0 = it is not; else of which kind it would be: 1 for most, more for kinds that are kept more
        often. What kinds bring is judged apart.

        Asked before a step while the one before may still run, whose ids `row.ids` then lacks;
        `row.slots` is empty. Where no row is promising the step is planned without waiting for the
        one before, and `propose` is not called. Drafters that always have a guess say 1.
        """

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        """One tree for each row, of at most `max_nodes` candidates and `max_depth` levels; None
        where nothing is worth trying. Likely candidates come first, as far as parents allow: how
        many pay is judged by what is kept of the first few.

        Every step before has been committed and none is in flight, so a drafter may read and use
        the device and the key-value pool. A proposal is a function of what the row holds (and, for
        drafters that say so, of the other lanes of its program); no randomness. An error that is
        raised here ends no request: the rows run without candidates.
        """

    def finished(self, request_id: str) -> None:
        """The sequence has ended; what is kept for it may go. Unknown ids are ignored."""
