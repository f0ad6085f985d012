"""What attention is told of one step: rows, lengths, slots and tree masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["AttentionMeta"]


@dataclass(frozen=True)
class AttentionMeta:
    """Who attends to what in one step; built once per step and shared by every layer.

    Row i has the tokens `extend_start[i] : extend_start[i] + extend_lens[i]` of the step; they are
    the last `extend_lens[i]` of its `seq_lens[i]` tokens. Token j of row i lives in the pool slot
    `slot_table[rows[i], j]`. Every token sees itself and all earlier tokens of its row, except the
    last `tree_lens[i]` tokens of a row with a draft tree: tree token x sees all tokens before the
    tree, and the tree token y exactly if bit `y % 64` of
    `tree_words[tree_offsets[i] + x * ceil(tree_lens[i] / 64) + y // 64]` is set.

    Attributes:
        rows: [b] int32, row of `slot_table` for each row of the batch.
        slot_table: [max_rows, max_ctx] int32, index of a token in its row -> pool slot.
        seq_lens: [b] int32, length of each row including this step's tokens.
        extend_lens: [b] int32, number of this step's tokens of each row.
        extend_start: [b + 1] int32, first of the row's tokens among the step's t tokens.
        tree_lens: [b] int32, draft-tree tokens of each row, at most `extend_lens`; 0 = none.
        tree_offsets: [b] int32, first word of the row's mask in `tree_words`.
        tree_words: [w] int64, mask bits (read as unsigned 64-bit words).
        host_seq_lens: `seq_lens` in host memory, for backends that plan a step there without
            waiting for the device; None = `seq_lens` itself is in host memory.
        host_extend_lens: `extend_lens` likewise.
        trunk_lens: [tiles] int32, how many first slots the rows of each tile of the batch have in
            common, where a backend has found that out (`triton.attention.find_trunks`); the result
            does not depend on it.
    """

    rows: torch.Tensor
    slot_table: torch.Tensor
    seq_lens: torch.Tensor
    extend_lens: torch.Tensor
    extend_start: torch.Tensor
    tree_lens: torch.Tensor | None = None
    tree_offsets: torch.Tensor | None = None
    tree_words: torch.Tensor | None = None
    host_seq_lens: torch.Tensor | None = None
    host_extend_lens: torch.Tensor | None = None
    trunk_lens: torch.Tensor | None = None
