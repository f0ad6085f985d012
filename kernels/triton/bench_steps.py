"""Whole steps over random weights, from ids to the next ids: see `kernels.triton.bench`."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import Ops
from branchline.kernels.sampling import Draws
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.bench import Bench, Shape, step_meta
from branchline.kernels.triton.ops import TritonOps
from branchline.kernels.weights import DenseWeight, Weight

__all__ = ["CheckStep", "DecodeStep", "checks", "steps"]

_CONTEXT = 8192
"""Columns of the slot table of a check, as an engine has them."""


class DecodeStep:
    """A whole decode step over random weights, from ids to the next ids.

    Args:
        shape: sizes.
        ops: what it runs with.
        rows: of the batch.
        length: tokens of each row.
        layers: of the shape's, to save time.
        extend: tokens of each row in the step.
        context: columns of the slot table, at least `length`; what the host knows of lengths.
    """

    def __init__(
        self,
        shape: Shape,
        ops: Ops,
        rows: int,
        length: int,
        layers: int,
        *,
        extend: int = 1,
        context: int = 0,
    ) -> None:
        self.shape, self.ops, self.rows, self.layers = shape, ops, rows, layers
        h, d = shape.hidden, shape.head

        def weight(n: int, k: int) -> DenseWeight:
            return DenseWeight(torch.randn(n, k, device="cuda").mul_(k**-0.5).bfloat16())

        sizes = [(shape.qkv, h), (h, shape.query_heads * d), (2 * shape.ffn, h), (h, shape.ffn)]
        self.weights = [[weight(n, k) for n, k in sizes] for _ in range(layers)]
        self.embed = weight(shape.vocabulary, h)
        self.norm = torch.ones(h, device="cuda")
        self.head_norm = torch.ones(d, device="cuda") if shape.qk_norm else None
        self.cos_sin = torch.randn(length, d, device="cuda")
        slots = rows * length + 1
        self.pools = torch.randn(layers, 2, slots, shape.kv_heads, d, device="cuda").bfloat16()
        meta = step_meta(rows, length, extend, slots)
        self.out_slots = meta.slot_table[:, -extend:].flatten()
        table = torch.nn.functional.pad(meta.slot_table, (0, max(0, context - length)))
        self.meta = replace(meta, slot_table=table)
        self.ids = torch.zeros(rows * extend, dtype=torch.int32, device="cuda")
        self.positions = torch.arange(length - extend, length, device="cuda").repeat(rows)
        self.draws = Draws.greedy(rows * extend, self.ids.device)

    @property
    def moved(self) -> float:
        """Bytes that must be read."""
        s = self.shape
        body = (s.weights - s.vocabulary * s.hidden) * self.layers / s.layers
        keys = 2 * self.rows * self.cos_sin.shape[0] * s.kv_heads * s.head * self.layers
        return 2 * (body + s.vocabulary * s.hidden + keys)

    def run(self) -> torch.Tensor:
        """One step; the ids are written back, so that the next step reads them."""
        ops, layers = self.ops, self.weights
        residual = ops.embedding(self.ids, self.embed)
        q = ops.norm_heads(residual, self.norm, 1e-5, layers[0][0], self.into(0))
        for i, (_, out, gate_up, down) in enumerate(layers):
            y = self.attend(i, q)
            y = ops.residual_step(self.end(y, out, residual), gate_up, gated=True)
            if i + 1 < len(layers):
                after, into = layers[i + 1][0], self.into(i + 1)
                q = ops.step_heads(self.end(y, down, residual), after, into)
        return self.choose(ops.residual_step(self.end(y, down, residual), None))

    def end(self, x: torch.Tensor, projection: Weight, residual: torch.Tensor) -> BlockEnd:
        """Of a block: its output [t, K], the matrix that brings it into the stream, the stream."""
        return BlockEnd(x, projection, residual, self.norm, 1e-5)

    def into(self, layer: int) -> HeadPlaces:
        """How heads are rotated, and where keys and values of a layer go."""
        keys, values = self.pools[layer].unbind(0)
        norm, at = self.head_norm, self.positions
        several = len(self.ids) > self.rows
        return HeadPlaces(
            self.cos_sin, at, keys, values, self.out_slots, norm, norm, several=several
        )

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attention of one layer, from its queries to the input of its projection."""
        keys, values = self.pools[layer].unbind(0)
        return self.ops.paged_attention(q, keys, values, self.meta, self.shape.head**-0.5)

    def choose(self, y: torch.Tensor) -> torch.Tensor:
        """The next ids, kept as the next step's."""
        assert isinstance(self.ops, TritonOps)
        ids, _ = self.ops.sample_rows(self.ops.head(y, self.embed), self.draws)
        self.ids.copy_(ids)
        return ids


def steps(bench: Bench, name: str, shape: Shape, layers: int) -> None:
    """Whole decode steps."""
    for rows, length in ((1, 256), (2, 256), (8, 256), (16, 256), (32, 256), (64, 640)):
        step = DecodeStep(shape, TritonOps("cuda"), rows, length, layers or shape.layers)
        us = bench.add(f"{name} step, {rows} x {length}", step.run, 4, moved=step.moved)
        sys.stdout.write(f"{'':44s} {rows * 1e6 / us:10.0f} tokens/s\n")
        del step


class CheckStep(DecodeStep):
    """A step that checks a chain of guesses behind one row's last token.

    Args:
        tokens: guesses and the token before them, 64 guesses at most.
        behind: tokens ahead of these.
    """

    def __init__(self, shape: Shape, ops: Ops, tokens: int, behind: int, layers: int) -> None:
        length = behind + tokens
        super().__init__(shape, ops, 1, length, layers, extend=tokens, context=_CONTEXT)
        guesses = tokens - 1
        seen = [(1 << (i + 1)) - 1 for i in range(guesses)]
        self.meta = replace(
            self.meta,
            tree_lens=torch.full_like(self.meta.seq_lens, guesses),
            tree_offsets=torch.zeros_like(self.meta.seq_lens),
            tree_words=torch.tensor(seen, dtype=torch.int64, device="cuda"),
        )


def checks(bench: Bench, name: str, shape: Shape, layers: int) -> None:
    """Whole steps that check guesses of one row."""
    for tokens, behind in ((8, 292), (16, 284), (16, 984), (25, 275)):
        step = CheckStep(shape, TritonOps("cuda"), tokens, behind, layers or shape.layers)
        bench.add(f"{name} check of {tokens} behind {behind}", step.run, 4, moved=step.moved)
