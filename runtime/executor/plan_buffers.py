"""A plan's arrays on the device: one buffer, one copy a step, always at the same addresses.

Invariant: the views that a graph was recorded with show the step that was loaded last. A step
smaller than what a graph expects is filled up with padding tokens of padding rows, which read and
write page 0 alone. Changes of the tables are in the same copy as long as they are few; the others
are written while the step is loaded. Knows nothing of what the tokens mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from branchline.kernels.beam import Check
from branchline.kernels.ops import AttentionMeta
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.executor.device_stream import DeviceStream, Mark, host_buffer
from branchline.runtime.executor.device_tables import (
    NO_CHANGES,
    DeviceTables,
    TableChanges,
    TableWrites,
)
from branchline.runtime.executor.lora_inputs import sample_slots, token_slots

_RING = 3
"""Host buffers used in turn: one being filled, one being copied, one of the step before."""

TABLE_WRITES = 1024
"""Changes of each table that travel with a plan. Decoding rows get slots in batches, so that a step
has few; a prompt's own are read and written once, and a second copy of theirs is not felt."""

PADDING_PIECE = 64
"""Tokens of a padding row, unless more are needed: short rows cost little attention."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class StepShape:
    """Size that a step is filled up to.

    Attributes:
        tokens, rows: of the step, padding included.
        logits: tokens whose final hidden states are computed, padding included.
        tree: whether there are tree masks.
        decode: every row has one token, whose logits and most likely id are wanted.
        verify: the logits of every token and its most likely id are wanted.
        adapted: some row has an adapter.
        trunks: of decoding, rows may begin with the same slots.
        planned: of a recorded step of many tokens, the host plans its attention.
    """

    tokens: int
    rows: int
    logits: int
    tree: bool = False
    decode: bool = False
    verify: bool = False
    adapted: bool = False
    trunks: bool = False
    planned: bool = False


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Views of a `PlanBuffers` for one shape. t, b and l include padding.

    Attributes:
        shape: what a step is filled up to.
        input_ids: int32 [t], -1 still in it.
        positions: int64 [t].
        out_slots: int32 [t].
        previous: int32 [t], slot of the token before each; what it was, where the plan has none.
        logit_idx: int32 [l].
        sample_idx: int32 [most samples], logit rows that are sampled, then 0.
        sample_places: int64 [most samples], where their ids go in the flat token table, then a
            place of the padding row.
        sample_positions: int64 [most samples], position that each sampled id takes, then 0.
        firsts: int32 [b], see `Check`; -1 for padding.
        last_known: int32 [b], see `LookupOps.plant_chains`; of drafted rows.
        back: int32 [4, most samples or rows]: `nodes` of `Check`, then how well each row matches.
        tree_lens, tree_offsets: int32 [b], tree_words: int64; what they were, where there are none.
        writes: changes of the tables, filled up with writes of padding.
        meta: who attends to what.
        lora_slots: int32 [t], slots of the tokens' adapters; None where no row has one.
        logit_lora_slots: int32 [l], of the logit rows, likewise.
        sample_lora_slots: int32 [most samples], of the sampled ones, then -1; likewise.
    """

    shape: StepShape
    input_ids: torch.Tensor
    positions: torch.Tensor
    out_slots: torch.Tensor
    previous: torch.Tensor
    logit_idx: torch.Tensor
    sample_idx: torch.Tensor
    sample_places: torch.Tensor
    sample_positions: torch.Tensor
    firsts: torch.Tensor
    last_known: torch.Tensor
    back: torch.Tensor
    tree_lens: torch.Tensor
    tree_offsets: torch.Tensor
    tree_words: torch.Tensor
    writes: TableWrites
    meta: AttentionMeta
    lora_slots: torch.Tensor | None = None
    logit_lora_slots: torch.Tensor | None = None
    sample_lora_slots: torch.Tensor | None = None

    @property
    def matched(self) -> torch.Tensor:
        """int32 [b], how well each row matches; see `LookupOps.find_matches`."""
        return self.back[3, : self.shape.rows]

    def check(self) -> Check:
        """The same, for the ops around guesses."""
        return Check(
            firsts=self.firsts,
            rows=self.meta.rows,
            seq_lens=self.meta.seq_lens,
            extend_start=self.meta.extend_start,
            tree_lens=self.tree_lens,
            tree_offsets=self.tree_offsets,
            tree_words=self.tree_words,
            input_ids=self.input_ids,
            out_slots=self.out_slots,
            previous=self.previous,
            positions=self.positions,
            sample_places=self.sample_places,
            sample_positions=self.sample_positions,
            nodes=self.back[:3],
        )


class PlanBuffers:
    """Buffers for steps of up to `tokens` tokens of up to `rows` rows.

    Args:
        tables: padding rows point into them.
        samples: places that are sampled at most.
        tree_words: words of tree masks that fit.
        stream: where the copies are queued.
        adapters: there are adapter slots.
    """

    def __init__(
        self,
        tables: DeviceTables,
        *,
        tokens: int,
        rows: int,
        samples: int,
        tree_words: int,
        stream: DeviceStream,
        adapters: bool = False,
    ) -> None:
        self.tokens, self.rows, self.tree_words = tokens, rows, tree_words
        self._tables = tables
        self._stream = stream
        # name -> (first int32, length, is int64); what every step needs comes first, so that the
        # copy of a small step can stop early
        layout: dict[str, tuple[int, int, bool]] = {}
        at = 0
        for name, length, wide in (
            ("rows", rows, False),
            ("seq_lens", rows, False),
            ("extend_lens", rows, False),
            ("extend_start", rows + 1, False),
            ("firsts", rows, False),
            ("last_known", rows, False),
            ("sample_idx", 2 * samples, False),
            ("sample_places", samples, True),
            ("sample_positions", samples, True),
            ("slot_places", TABLE_WRITES, True),
            ("token_places", TABLE_WRITES, True),
            ("slot_values", TABLE_WRITES, False),
            ("token_values", TABLE_WRITES, False),
            ("input_ids", tokens, False),
            ("out_slots", tokens, False),
            ("previous", tokens, False),
            ("logit_idx", tokens, False),
            ("positions", tokens, True),
            ("lora_slots", tokens if adapters else 0, False),
            ("logit_lora_slots", tokens if adapters else 0, False),
            ("sample_lora_slots", 2 * samples if adapters else 0, False),
            ("tree_lens", rows, False),
            ("tree_offsets", rows, False),
            ("tree_words", tree_words, True),
        ):
            # kernels are compiled anew for an address that 16 does not divide
            at = -(-at // 4) * 4
            layout[name] = (at, length, wide)
            at += length * (2 if wide else 1)
        self._without_tree = layout["tree_lens"][0]
        self._tree_words = layout["tree_words"][0]
        device = stream.device
        self._device = torch.zeros(at, dtype=torch.int32, device=device)
        self._host = [host_buffer((at,), torch.int32, device) for _ in range(_RING)]
        self._marks = [Mark() for _ in range(_RING)]
        self._back = torch.zeros((4, max(samples, rows)), dtype=torch.int32, device=device)
        self._views = {name: _section(self._device, *place) for name, place in layout.items()}
        self._arrays: list[dict[str, Array]] = [
            {name: _section(host, *place).numpy() for name, place in layout.items()}
            for host in self._host
        ]
        self._turn = 0

    def fits(self, plan: ScheduleBatch) -> bool:
        """Whether the plan can be loaded without padding."""
        words = 0 if plan.tree is None else len(plan.tree.words)
        return (
            plan.num_tokens <= self.tokens
            and len(plan.rows) <= self.rows
            and words <= self.tree_words
        )

    def views(self, shape: StepShape) -> StepTensors:
        """What a step of this shape reads; the same memory for every call."""
        v, tokens, rows = self._views, shape.tokens, shape.rows
        meta = AttentionMeta(
            rows=v["rows"][:rows],
            slot_table=self._tables.slots,
            seq_lens=v["seq_lens"][:rows],
            extend_lens=v["extend_lens"][:rows],
            extend_start=v["extend_start"][: rows + 1],
            tree_lens=v["tree_lens"][:rows] if shape.tree else None,
            tree_offsets=v["tree_offsets"][:rows] if shape.tree else None,
            tree_words=v["tree_words"] if shape.tree else None,
        )
        return StepTensors(
            shape=shape,
            input_ids=v["input_ids"][:tokens],
            positions=v["positions"][:tokens],
            out_slots=v["out_slots"][:tokens],
            previous=v["previous"][:tokens],
            logit_idx=v["logit_idx"][: shape.logits],
            sample_idx=v["sample_idx"],
            sample_places=v["sample_places"],
            sample_positions=v["sample_positions"],
            firsts=v["firsts"][:rows],
            last_known=v["last_known"][:rows],
            back=self._back,
            tree_lens=v["tree_lens"][:rows],
            tree_offsets=v["tree_offsets"][:rows],
            tree_words=v["tree_words"],
            writes=TableWrites(
                v["slot_places"], v["slot_values"], v["token_places"], v["token_values"]
            ),
            meta=meta,
            lora_slots=v["lora_slots"][:tokens] if shape.adapted else None,
            logit_lora_slots=v["logit_lora_slots"][: shape.logits] if shape.adapted else None,
            sample_lora_slots=v["sample_lora_slots"] if shape.adapted else None,
        )

    def load(self, plan: ScheduleBatch, tensors: StepTensors) -> AttentionMeta:
        """Queue the copy of a plan that fits to where `tensors` show it, filled up to their shape.

        What it changes in the tables is in `tensors.writes`, which the forward makes first, or is
        written here if it is too much.

        Returns:
            The views' metadata with the lengths in host memory, for a backend to plan with.
        """
        shape = tensors.shape
        self._turn = (self._turn + 1) % _RING
        self._marks[self._turn].wait()
        arrays = self._arrays[self._turn]
        self._fill(arrays, plan, shape)
        changes = self._tables.changes(plan)
        if changes.most > TABLE_WRITES:
            self._tables.write(self._tables.upload(changes))
            changes = NO_CHANGES
        self._fill_writes(arrays, changes)
        words = 0 if plan.tree is None else len(plan.tree.words)
        end = self._tree_words + 2 * words if shape.tree else self._without_tree
        self._device[:end].copy_(self._host[self._turn][:end], non_blocking=True)
        self._marks[self._turn] = self._stream.mark()
        return replace(
            tensors.meta,
            host_seq_lens=torch.from_numpy(arrays["seq_lens"][: shape.rows].copy()),
            host_extend_lens=torch.from_numpy(arrays["extend_lens"][: shape.rows].copy()),
        )

    def _fill(self, a: dict[str, Array], plan: ScheduleBatch, shape: StepShape) -> None:
        t, b, s = plan.num_tokens, len(plan.rows), len(plan.sample_rows)
        for name in ("rows", "seq_lens", "extend_lens"):
            a[name][:b] = getattr(plan, name)
        for name in ("input_ids", "out_slots", "positions"):
            a[name][:t] = getattr(plan, name)
        if plan.previous is not None:
            a["previous"][:t] = plan.previous
        logits = len(plan.logit_idx)
        a["logit_idx"][:logits] = plan.logit_idx
        a["logit_idx"][logits : shape.logits] = np.arange(
            shape.tokens - (shape.logits - logits), shape.tokens
        )
        if s:
            positions = plan.sample_positions
            rows = plan.rows[plan.sample_rows]
            a["sample_idx"][:s] = plan.sample_idx
            a["sample_idx"][s:] = 0
            a["sample_places"][:s] = self._tables.token_places(rows, positions)
            a["sample_positions"][:s] = positions
            a["sample_positions"][s:] = 0
        a["sample_places"][s:] = self._tables.padding_place
        a["firsts"][: shape.rows] = -1
        if plan.drafted is not None and plan.tree is not None:
            drafted = plan.drafted.rows
            a["firsts"][drafted] = np.searchsorted(plan.sample_rows, drafted)
            last = plan.seq_lens[drafted] - plan.tree.counts[drafted] - 1
            a["last_known"][drafted] = np.where(plan.drafted.follows, -1, last)
        if shape.adapted:
            _fill_adapters(a, plan, shape)
        self._pad(a, plan, shape)
        np.cumsum(a["extend_lens"][: shape.rows], out=a["extend_start"][1 : shape.rows + 1])
        if shape.tree:
            a["tree_lens"][: shape.rows] = 0
            a["tree_offsets"][: shape.rows] = 0
            if plan.tree is not None:
                a["tree_lens"][:b] = plan.tree.counts
                a["tree_offsets"][:b] = plan.tree.offsets
                words = plan.tree.words.view(np.int64)
                a["tree_words"][: len(words)] = words

    def _fill_writes(self, a: dict[str, Array], changes: TableChanges) -> None:
        w, v = len(changes.slots), len(changes.tokens)
        a["slot_places"][:w] = changes.slot_places
        a["slot_places"][w:] = self._tables.padding_slot_place
        a["slot_values"][:w] = changes.slots
        a["slot_values"][w:] = 0
        a["token_places"][:v] = changes.token_places
        a["token_places"][v:] = self._tables.padding_place
        a["token_values"][:v] = changes.tokens
        a["token_values"][v:] = 0

    def _pad(self, a: dict[str, Array], plan: ScheduleBatch, shape: StepShape) -> None:
        """Padding tokens belong to padding rows: in pieces, in decoding one to each."""
        t, b = plan.num_tokens, len(plan.rows)
        spare_tokens, spare_rows = shape.tokens - t, shape.rows - b
        assert spare_tokens >= 0 and spare_rows >= 0, "a plan is not larger than its shape"
        assert spare_rows or not spare_tokens, "padding tokens need a padding row"
        if not spare_rows:
            return
        piece = 1 if shape.decode else max(PADDING_PIECE, -(-spare_tokens // spare_rows))
        piece = min(piece, self._tables.slots.shape[1])
        lens: int | Array = spare_tokens
        if spare_rows > 1:
            ends = np.minimum(np.arange(spare_rows + 1) * piece, spare_tokens)
            assert ends[-1] == spare_tokens, "padding fits into its rows"
            lens = ends[1:] - ends[:-1]
        a["rows"][b : shape.rows] = self._tables.padding_row
        a["seq_lens"][b : shape.rows] = lens
        a["extend_lens"][b : shape.rows] = lens
        a["input_ids"][t : shape.tokens] = 0
        a["out_slots"][t : shape.tokens] = 0
        a["previous"][t : shape.tokens] = 0
        a["positions"][t : shape.tokens] = np.arange(spare_tokens) % piece


def _fill_adapters(a: dict[str, Array], plan: ScheduleBatch, shape: StepShape) -> None:
    """Padding has no adapter."""
    a["lora_slots"][: shape.tokens] = -1
    a["logit_lora_slots"][: shape.logits] = -1
    a["sample_lora_slots"][:] = -1
    tokens, sampled = token_slots(plan), sample_slots(plan)
    if tokens is not None and sampled is not None:
        a["lora_slots"][: len(tokens)] = tokens
        a["logit_lora_slots"][: len(plan.logit_idx)] = tokens[plan.logit_idx]
        a["sample_lora_slots"][: len(sampled)] = sampled


def _section(buffer: torch.Tensor, start: int, length: int, wide: bool) -> torch.Tensor:
    if wide:
        return buffer[start : start + 2 * length].view(torch.int64)
    return buffer[start : start + length]
