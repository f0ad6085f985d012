"""A plan's arrays on the device: one buffer, one copy a step, always at the same addresses.

Invariant: the views that a graph was recorded with show the step that was loaded last. A step
smaller than what a graph expects is filled up with padding tokens of padding rows, which read and
write page 0 alone. Knows nothing of what the tokens mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from branchline.kernels.ops import AttentionMeta
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.executor.device_stream import DeviceStream, Mark, host_buffer
from branchline.runtime.executor.device_tables import DeviceTables

_RING = 3
"""Host buffers used in turn: one being filled, one being copied, one of the step before."""

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
    """

    tokens: int
    rows: int
    logits: int
    tree: bool = False
    decode: bool = False


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
        meta: who attends to what.
    """

    shape: StepShape
    input_ids: torch.Tensor
    positions: torch.Tensor
    out_slots: torch.Tensor
    previous: torch.Tensor
    logit_idx: torch.Tensor
    sample_idx: torch.Tensor
    sample_places: torch.Tensor
    meta: AttentionMeta


class PlanBuffers:
    """Buffers for steps of up to `tokens` tokens of up to `rows` rows.

    Args:
        tables: padding rows point into them.
        samples: places that are sampled at most.
        tree_words: words of tree masks that fit.
        stream: where the copies are queued.
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
            ("sample_idx", 2 * samples, False),
            ("sample_places", samples, True),
            ("input_ids", tokens, False),
            ("out_slots", tokens, False),
            ("previous", tokens, False),
            ("logit_idx", tokens, False),
            ("positions", tokens, True),
            ("tree_lens", rows, False),
            ("tree_offsets", rows, False),
            ("tree_words", tree_words, True),
        ):
            at += at % 2 if wide else 0
            layout[name] = (at, length, wide)
            at += length * (2 if wide else 1)
        self._without_tree = layout["tree_lens"][0]
        self._tree_words = layout["tree_words"][0]
        device = stream.device
        self._device = torch.zeros(at, dtype=torch.int32, device=device)
        self._host = [host_buffer((at,), torch.int32, device) for _ in range(_RING)]
        self._marks = [Mark() for _ in range(_RING)]
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
            meta=meta,
        )

    def load(self, plan: ScheduleBatch, tensors: StepTensors) -> AttentionMeta:
        """Queue the copy of a plan that fits to where `tensors` show it, filled up to their shape.

        Returns:
            The views' metadata with the lengths in host memory, for a backend to plan with.
        """
        shape = tensors.shape
        self._turn = (self._turn + 1) % _RING
        self._marks[self._turn].wait()
        arrays = self._arrays[self._turn]
        self._fill(arrays, plan, shape)
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
            places = self._tables.token_places(plan.rows[plan.sample_rows], plan.sample_positions)
            a["sample_idx"][:s] = plan.sample_idx
            a["sample_idx"][s:] = 0
            a["sample_places"][:s] = places
        a["sample_places"][s:] = self._tables.padding_place
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
        ends = np.minimum(np.arange(1, spare_rows + 1) * piece, spare_tokens)
        assert not spare_tokens or ends[-1] == spare_tokens, "padding fits into its rows"
        lens = np.diff(ends, prepend=0).astype(np.int32)
        a["rows"][b : shape.rows] = self._tables.padding_row
        a["seq_lens"][b : shape.rows] = lens
        a["extend_lens"][b : shape.rows] = lens
        a["input_ids"][t : shape.tokens] = 0
        a["out_slots"][t : shape.tokens] = 0
        a["previous"][t : shape.tokens] = 0
        a["positions"][t : shape.tokens] = np.arange(spare_tokens) % piece


def _section(buffer: torch.Tensor, start: int, length: int, wide: bool) -> torch.Tensor:
    if wide:
        return buffer[start : start + 2 * length].view(torch.int64)
    return buffer[start : start + length]
