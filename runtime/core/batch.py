"""The CPU's plan of one step: which tokens of which rows run, and what is read off the logits.

A plan is built by the scheduler, read by the worker, and never changed in between. b = rows in the
step, t = tokens, l = logit rows, s = sampled rows, m = scored tokens. All arrays are numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from branchline.runtime.core.tree import DraftTree

if TYPE_CHECKING:
    from branchline.runtime.sampling.sampling_batch import SamplingBatch

Int32Array = np.ndarray[tuple[int], np.dtype[np.int32]]
Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]
UInt64Array = np.ndarray[tuple[int], np.dtype[np.uint64]]
Float32Array = np.ndarray[tuple[int], np.dtype[np.float32]]


SHORTEST_TRUNK = 256
"""First slots that rows must share for it to be worth finding out."""


class ForwardMode(Enum):
    """Kind of a step. EXTEND also covers steps that mix prefill chunks with decode rows."""

    EXTEND = "extend"
    DECODE = "decode"
    VERIFY = "verify"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class RowInit:
    """Contents of a row of the token table, written before the step's forward.

    Attributes:
        row: row of the token and slot tables.
        start: first position written.
        ids: int32 [n], written at positions start … start + n - 1.
    """

    row: int
    start: int
    ids: Int32Array


@dataclass(frozen=True, slots=True)
class SlotWrites:
    """Entries of the slot table that changed, for a copy of it on another device.

    Attributes:
        index: int64 [w], row * width + position, where width is the table's own.
        slots: int32 [w]; a place named twice has the same slot both times.
    """

    index: Int64Array
    slots: Int32Array


@dataclass(frozen=True, slots=True)
class TreeSamples:
    """Where sampled places stand in a step that samples at candidates too.

    Attributes:
        positions: int64 [s], position that each sampled id takes.
        tails: for sampled places (indices into s) of rows with penalties: int32, the candidates
            between the row's known ids and the sampled one, in order.
    """

    positions: Int64Array
    tails: dict[int, Int32Array]


@dataclass(frozen=True, slots=True)
class TreeMask:
    """Which of the candidate tokens at the end of a row each of them may see.

    Tokens of a row before its last `counts[i]` ones are seen by all; a row with count 0 is causal.

    Attributes:
        counts: int32 [b], candidate tokens at the end of each row's extend segment.
        offsets: int32 [b], index into `words` of the row's first word.
        words: uint64; candidate j of a row owns ceil(count / 64) words, bit i = sees candidate i
            (its own bit is set).
        samples: where the sampled places stand, if some of them are candidates.
        drafted: rows whose candidates are still to be made, if any.
    """

    counts: Int32Array
    offsets: Int32Array
    words: UInt64Array
    samples: TreeSamples | None = None
    drafted: DraftedRows | None = None


@dataclass(frozen=True, slots=True)
class ScoreRead:
    """Log-probabilities to read: of token `token_ids[j]` in logit row `logit_rows[j]`.

    Attributes:
        logit_rows: int32 [m], indices into the l logit rows.
        token_ids: int32 [m].
        top_k: alternatives wanted for each (0 = none).
    """

    logit_rows: Int32Array
    token_ids: Int32Array
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class DraftedRows:
    """Rows whose candidates the worker makes itself once the step is handed to it. In the plan they
    are places: their ids, positions and who sees whom do not count.

    Attributes:
        rows: int32 [g], which of the batch (indices into b), increasing.
        levels: int32 [g], levels of guesses, those of known ids behind the first included.
        follows: bool [g], the step before decides how long the row is, and has not been looked at:
            nothing that the plan says of the row's positions, slots and last id counts.
        allowed: what may come first of each: int32 [ceil(V / 32)], bit set = allowed; None = all.
        accepts: the worker accepts those that were sampled: their entries are moved to where they
            belong, and the next step may follow. Else the scheduler does, by the next plan.
        masked: what may be sampled behind candidates depends on which they are.
        repeats: the step is the one before once more: the same rows, all of which follow, with as
            many candidates. But for the plan's `slot_writes` there is nothing to be told.
    """

    rows: Int32Array
    levels: Int32Array
    follows: np.ndarray[tuple[int], np.dtype[np.bool_]]
    allowed: list[Int32Array | None]
    accepts: bool
    masked: bool = False
    repeats: bool = False

    @property
    def host_reads(self) -> bool:
        """Whether the scheduler must know the candidates before the step is sampled."""
        return self.masked or not self.accepts


@dataclass(slots=True)
class ScheduleBatch:
    """One step.

    Attributes:
        rows: int32 [b], rows of the token and slot tables.
        seq_lens: int32 [b], tokens of each row including this step's.
        extend_lens: int32 [b], this step's tokens of each row (1 for a decode row).
        input_ids: int32 [t]; -1 = read token_table[row, position] on the device, where the step
            before has written the id that it sampled.
        positions: int64 [t].
        out_slots: int32 [t], key-value slot that each token writes.
        logit_idx: int32 [l], tokens whose logits are computed (indices into t, increasing).
        sample_idx: int32 [s], logit rows that are sampled (indices into l).
        sample_rows: int32 [s], the batch row (index into b) of each; a row with candidates that
            are sampled comes several times, one behind the other. The sampled id is written to
            token_table[rows[i], sample_positions[i]]; where several go to one place, to any.
        sampling: parameters of the s sampled rows; None when s = 0.
        score: log-probabilities to read, if any.
        hidden_rows: int32 [p], logit rows whose hidden states are given back; None when p = 0.
        tree: candidate-token masks, if any row has candidates.
        inits: rows of the token table to fill before the forward.
        slot_writes: entries of the slot table that changed since the last plan, to be written to
            copies of it before the forward; None where the table itself is read.
        copies: (src, dst) key-value slots to copy before the forward.
        previous: int32 [t], slot of the token before each one on its path (the parent's for a
            candidate), 0 for a row's first token; None where nobody reads it.
        adapter_slots: int32 [b], slot of each row's adapter, -1 = the base model; None where no row
            has one.
        trunks: rows next to each other may share their first `SHORTEST_TRUNK` slots; False says
            that none do.
    """

    mode: ForwardMode
    rows: Int32Array
    seq_lens: Int32Array
    extend_lens: Int32Array
    input_ids: Int32Array
    positions: Int64Array
    out_slots: Int32Array
    logit_idx: Int32Array
    sample_idx: Int32Array
    sample_rows: Int32Array
    sampling: SamplingBatch | None = None
    score: ScoreRead | None = None
    hidden_rows: Int32Array | None = None
    tree: TreeMask | None = None
    inits: list[RowInit] = field(default_factory=list)
    slot_writes: SlotWrites | None = None
    copies: tuple[Int32Array, Int32Array] | None = None
    previous: Int32Array | None = None
    adapter_slots: Int32Array | None = None
    trunks: bool = True

    @property
    def drafted(self) -> DraftedRows | None:
        """Rows whose candidates are still to be made, if any."""
        return None if self.tree is None else self.tree.drafted

    @property
    def repeats(self) -> bool:
        """See `DraftedRows.repeats`."""
        return self.drafted is not None and self.drafted.repeats

    @property
    def extend_start(self) -> Int32Array:
        """int32 [b + 1], where each row's tokens begin among the t, then t."""
        starts: Int32Array = np.zeros(len(self.extend_lens) + 1, dtype=np.int32)
        np.cumsum(self.extend_lens, out=starts[1:])
        return starts

    @property
    def num_tokens(self) -> int:
        """t: tokens of the step."""
        return len(self.input_ids)

    @property
    def sample_positions(self) -> Int64Array:
        """int64 [s], position that each sampled id takes."""
        if self.tree is not None and self.tree.samples is not None:
            return self.tree.samples.positions
        return self.seq_lens[self.sample_rows].astype(np.int64)

    @property
    def sample_tails(self) -> dict[int, Int32Array]:
        """See `TreeSamples.tails`; empty where no candidate is sampled."""
        samples = None if self.tree is None else self.tree.samples
        return {} if samples is None else samples.tails


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Log-probabilities (natural log, untempered, unmasked) read at n places.

    Attributes:
        chosen: float32 [n].
        top_ids: int32 [n, k]; k = 0 when no alternatives were asked for.
        top_values: float32 [n, k], best first.
    """

    chosen: Float32Array
    top_ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    top_values: np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """Result of one step, on the CPU.

    Attributes:
        token_ids: int32 [s, k + 1], -1 padded; column 0 is the only one without speculation.
        num_new: int32 [s], ids kept of each row.
        logprobs: of the sampled tokens, for the steps in which a row asked for them.
        scores: of `ScoreRead`.
        hidden: float32 [p, hidden], final normed states of the plan's `hidden_rows`.
        bad_rows: sampled rows (indices into s) whose logits held NaN or nothing allowed.
        trees: candidates that the worker made, of each of the plan's `drafted`.
        matched: int32 [b], how well the last ids of each row, sampled ones included, match ids that
            came before in it, 0 = not at all (`kernels.lookup`); None = nobody looked.
    """

    token_ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    num_new: Int32Array
    logprobs: TopLogprobs | None = None
    scores: TopLogprobs | None = None
    hidden: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None
    bad_rows: tuple[int, ...] = ()
    trees: list[DraftTree] = field(default_factory=list)
    matched: Int32Array | None = None
