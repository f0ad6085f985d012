"""Low-rank adapters of a step: which token uses which, and one layer's matrices for all of them.

Low-rank adaptation (Hu et al., 2021) adds `scale * B (A x)` to the product of a layer. The matrices
of the adapters that are on the device lie in slots, so that tokens of different adapters, and of
the base model, share one batch (Chen et al., "Punica", 2023).

Invariant: what a token gets depends on its own slot and operands alone; a token of the base model
(slot -1) keeps its bits. The module knows no adapters by name and no files.
"""

from dataclasses import dataclass

import torch

__all__ = ["LoraBatch", "LoraOps", "LoraProduct", "LoraWeight"]


@dataclass(frozen=True)
class LoraWeight:
    """Matrices of one layer for the adapters in all slots: S slots, P parts, R = the largest rank.

    The layer may be several projections of one input fused (q | k | v, gate | up): each part has an
    A of its own, and outputs that get that part's product alone. Within a slot all is contiguous;
    the first stride is free, so that a slot's matrices of all layers can lie together. Slots are
    written between steps, at the same addresses.

    Attributes:
        a: [S, P, R, K]; of an embedding [S, V, R].
        b: [S, R, N], N = sum(parts): B transposed, so that neighbouring outputs are neighbours.
        ranks: [S, P] int32, the rank in use: rows of A and of B transposed from there on are never
            read, whatever they hold; 0 = the slot's adapter leaves the part as it is.
        scales: [S, P] float32.
        parts: columns of `b` of each part.
    """

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor
    parts: tuple[int, ...]


@dataclass(frozen=True)
class LoraBatch:
    """Slots of the n tokens (or logit rows) of a step.

    Made once per step by `Ops.lora_batch`, for all layers.

    Attributes:
        slots: [n] int32; -1 = the base model.
        order: [n] int32, the tokens sorted by slot, those of a slot in their order, base ones last;
            None where a backend has no use for it.
        starts: [S + 2] int32: tokens of slot s are order[starts[s] : starts[s + 1]], and base ones
            those of slot S; with `order`.
    """

    slots: torch.Tensor
    order: torch.Tensor | None = None
    starts: torch.Tensor | None = None


@dataclass(frozen=True)
class LoraProduct:
    """A layer's product whose adapters the op behind it may still have to add.

    Attributes:
        y: [t, N].
        left: what its backend has still to add; None = nothing.
    """

    y: torch.Tensor
    left: object | None = None


class LoraOps:
    """The ops of adapters, part of `Ops`: here with their meaning, token by token."""

    def lora_batch(self, slots: torch.Tensor, count: int) -> LoraBatch:
        """Slots of a step's tokens (or logit rows), and what this backend wants to know of them.

        Called once per step, within the recorded part: `slots` alone changes from step to step.

        Args:
            slots: [n] int32 in [-1, count).
            count: S, slots that there are.
        """
        return LoraBatch(slots)

    def lora_add(
        self, y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        """Add the adapters' products to a linear layer's, in place.

        For each token i of slot s >= 0, and each part p of the layer with its rows n:
        `y[i, n] += scales[s, p] * (A[s, p] @ x[i]) @ b[s, :, n]`, sums in float32. Tokens of slot
        -1, and parts of rank 0, keep their bits.

        Args:
            y: [t, N], the layer's product, changed.
            x: [t, K], its input, as the layer got it.
            weight: of the layer.
            lora: slots of the t tokens.
        """
        _add_product(y, x, weight, lora)

    def lora_embedding(
        self, y: torch.Tensor, ids: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        """Add the adapters' part of a token embedding, in place.

        `y[i] += scales[s, 0] * A[s, ids[i]] @ b[s]` for each token i of slot s >= 0.

        Args:
            y: [t, H], rows of the embedding, changed.
            ids: [t] int32 in [0, V).
            weight: `a` [S, V, R], `b` [S, R, H].
            lora: slots of the t tokens.
        """
        _add_embedding(y, ids, weight, lora)


def _add_product(y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch) -> None:
    """The meaning of `Ops.lora_add`, token by token, sums in float32."""
    for token, slot in enumerate(lora.slots.tolist()):
        if slot < 0:
            continue
        first, row = 0, x[token].float()
        for part, rows in enumerate(weight.parts):
            rank, last = int(weight.ranks[slot, part]), first + rows
            if rank:
                inner = weight.a[slot, part, :rank].float() @ row
                _add(
                    y[token, first:last],
                    weight.b[slot, :rank, first:last],
                    inner,
                    weight,
                    slot,
                    part,
                )
            first = last


def _add_embedding(y: torch.Tensor, ids: torch.Tensor, weight: LoraWeight, lora: LoraBatch) -> None:
    """The meaning of `Ops.lora_embedding`."""
    for token, slot in enumerate(lora.slots.tolist()):
        rank = int(weight.ranks[slot, 0]) if slot >= 0 else 0
        if rank:
            inner = weight.a[slot, int(ids[token]), :rank].float()
            _add(y[token], weight.b[slot, :rank], inner, weight, slot, 0)


def _add(
    y: torch.Tensor,
    b: torch.Tensor,
    inner: torch.Tensor,
    weight: LoraWeight,
    slot: int,
    part: int,
) -> None:
    y.copy_(y.float() + weight.scales[slot, part] * (inner @ b.float()))
