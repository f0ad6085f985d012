"""FlashInfer's wrappers for prompts, and the buffers that they plan into.

Invariant: a pinned buffer is written again only when its copy to the device is over; what a
recording reads stays where it is. Steps run one after the other, so all share the kernels' scratch.
Knows nothing of models, or of which steps are planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from branchline.kernels.ops import AttentionMeta
from branchline.runtime.attention.base import AttentionNeeds

_WORKSPACE_BYTES = 256 << 20
_TURNS = 3

MOST_KEYS = 1 << 21
"""Slots of a recorded step's rows at most, row by row: 8 MB for each number of rows."""


@dataclass(slots=True)
class Planned:
    """FlashInfer's part of a step, or of every step that one recording replays.

    Attributes:
        wrapper: FlashInfer's, planned.
        rows: int32 [b] on the device, rows of the slot table.
        seq_lens: int32 [b] on the device, how many slots each has.
        slots: int32 [n] on the device, where they go.
        longest: of these rows, or more.
        extend_start, extend_lens: int32 on the device, of a recorded step's rows; else None.
        short: int32 [b] on the device, of a recorded step's rows: how many tokens each has that
            FlashInfer leaves to the ops' own kernels; else None.
        indptr: int32 [2, b + 1] on the device, of a recorded step: where the tokens that FlashInfer
            attends for begin in the step, and the slots of each row in `slots`; else None.
        copied: of a recorded step, when its plan may be made anew; else None.
        layout: of a recorded step, FlashInfer's own numbers, which the recording keeps.
    """

    wrapper: Any
    rows: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    longest: int
    extend_start: torch.Tensor | None = None
    extend_lens: torch.Tensor | None = None
    short: torch.Tensor | None = None
    indptr: torch.Tensor | None = None
    copied: torch.cuda.Event | None = None
    layout: list[int] | None = None

    def read_slots(self, slot_table: torch.Tensor) -> None:
        """Queue the reading of the rows' slots; of a recorded step, too, which rows are short."""
        # Imported where it is used: a machine without a GPU may have no Triton.
        from branchline.kernels.triton.paging import slots_of_rows

        if self.indptr is None:
            begins = torch.zeros(len(self.rows) + 1, dtype=torch.int32, device=self.rows.device)
            torch.cumsum(self.seq_lens, 0, dtype=torch.int32, out=begins[1:])
        else:
            begins = self.indptr[1]
            start, lens, short = self.extend_start, self.extend_lens, self.short
            assert start is not None and lens is not None and short is not None, "it is recorded"
            short.copy_(torch.where(start[:-1] < self.indptr[0, 0], lens, 0))
        slots_of_rows(slot_table, self.rows, begins, self.slots, self.longest)


@dataclass(slots=True)
class _Turn:
    """A wrapper over buffers of its own, and when they may be used again."""

    wrapper: Any
    copied: torch.cuda.Event


class Wrappers:
    """All wrappers of one backend; made when they are needed.

    Args:
        needs: what the model and the pool are.
    """

    def __init__(self, needs: AttentionNeeds) -> None:
        self._needs = needs
        self._scratch: torch.Tensor | None = None
        self._turns: list[_Turn] = []
        self._next = 0
        self._recorded: dict[int, tuple[Any, torch.Tensor, torch.Tensor, torch.cuda.Event]] = {}

    def plan(
        self, meta: AttentionMeta, seq_lens: torch.Tensor, extend_lens: torch.Tensor, split: int
    ) -> Planned:
        """Plan the rows of a step from `split` on.

        Args:
            seq_lens, extend_lens: int32 [b] in host memory, of all rows.
        """
        turn, lens = self._take_turn(), seq_lens[split:]
        slots = torch.empty(int(lens.sum()), dtype=torch.int32, device=self._needs.device)
        self._call(turn.wrapper, _indptr(extend_lens[split:]), lens, slots)
        turn.copied.record()
        longest = int(lens.max())
        return Planned(turn.wrapper, meta.rows[split:], meta.seq_lens[split:], slots, longest)

    def recorded(self, meta: AttentionMeta) -> Planned:
        """For steps that are replayed, over `meta`'s own buffers; `plan_again` comes next.

        Recordings of as many rows share a wrapper, of which FlashInfer takes the largest step to be
        the one that is planned first.
        """
        rows, width = len(meta.rows), meta.slot_table.shape[1]
        if rows not in self._recorded:
            device = self._needs.device
            indptr = torch.zeros(2, rows + 1, dtype=torch.int32, device=device)
            slots = torch.zeros(min(MOST_KEYS, rows * width), dtype=torch.int32, device=device)
            wrapper = self._make(
                use_cuda_graph=True,
                qo_indptr_buf=indptr[0],
                paged_kv_indptr_buf=indptr[1],
                paged_kv_indices_buf=slots,
                paged_kv_last_page_len_buf=torch.ones(rows, dtype=torch.int32, device=device),
            )
            self._recorded[rows] = wrapper, indptr, slots, _event()
        wrapper, indptr, slots, copied = self._recorded[rows]
        return Planned(
            wrapper,
            meta.rows,
            meta.seq_lens,
            slots,
            width,
            extend_start=meta.extend_start,
            extend_lens=meta.extend_lens,
            short=torch.zeros_like(meta.extend_lens),
            indptr=indptr,
            copied=copied,
        )

    def plan_again(
        self, plan: Planned, seq_lens: torch.Tensor, extend_lens: torch.Tensor, split: int
    ) -> None:
        """Make the plan of a recording that of a step, whose rows before `split` are not planned.

        Raises:
            RuntimeError: the plan has another layout than when it was made first.
        """
        assert plan.copied is not None, "it is recorded"
        plan.copied.synchronize()
        starts = _indptr(extend_lens)
        starts.clamp_(min=int(starts[split]))
        lens = seq_lens.clone()
        lens[:split] = 0
        self._call(plan.wrapper, starts, lens, plan.slots[: int(lens.sum())])
        plan.copied.record()
        layout = [int(number) for number in plan.wrapper._plan_info]
        if plan.layout is None:
            plan.layout = layout
        if layout != plan.layout:
            raise RuntimeError(
                "FlashInfer planned a recorded step otherwise than it was recorded; set "
                "attention_backend='triton' and report this with the version of flashinfer-python"
            )

    def _take_turn(self) -> _Turn:
        if len(self._turns) < _TURNS:
            self._turns.append(_Turn(self._make(), _event()))
            return self._turns[-1]
        turn = self._turns[self._next]
        self._next = (self._next + 1) % _TURNS
        turn.copied.synchronize()
        return turn

    def _make(self, **buffers: Any) -> Any:
        # Imported at the first prompt: it takes a second, and a CPU never gets here.
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        if self._scratch is None:
            device = self._needs.device
            self._scratch = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        return BatchPrefillWithPagedKVCacheWrapper(self._scratch, **buffers)

    def _call(
        self, wrapper: Any, starts: torch.Tensor, lens: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Plan rows whose tokens begin at `starts` in the queries and that see `lens` slots."""
        needs = self._needs
        wrapper.plan(
            starts,
            _indptr(lens),
            slots,
            torch.ones(len(lens), dtype=torch.int32),
            needs.heads,
            needs.kv_heads,
            needs.head_dim,
            1,
            causal=True,
            q_data_type=torch.bfloat16,
            kv_data_type=needs.kv_dtype,
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own


def _indptr(lens: torch.Tensor) -> torch.Tensor:
    """int32 [b + 1], 0 and the running sums of lens."""
    out = torch.zeros(len(lens) + 1, dtype=torch.int32)
    torch.cumsum(lens, 0, out=out[1:])
    return out
