"""Cross-entropy against the target's distribution over the draft vocabulary, and its gradient.

Invariant: logits exist for one piece of the rows at a time. The output matrix is the target's own
and is not trained, so all that is kept for the backward pass is the gradient of the hidden states.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

PIECE = 1 << 27
"""Logits that exist at one time at most."""


class Loss(NamedTuple):
    """Sums over rows, weighted: float32 scalars.

    Attributes:
        total: the one with a gradient.
        hits: rows whose most likely guess is the target's most likely token.
    """

    total: torch.Tensor
    hits: torch.Tensor


def soft_cross_entropy(
    hidden: torch.Tensor,
    head: torch.Tensor,
    target: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
) -> Loss:
    """-sum w sum p log q, where q = softmax(hidden head^T) and p = target[index].

    Args:
        hidden: [m, H], the head's normed outputs.
        head: [n, H], the target's rows of the draft vocabulary.
        target: [r, n], the target's distributions.
        index: int64 [m], row of `target` for each of `hidden`.
        weights: float32 [m].
    """
    total, hits = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, head, target, index, weights
    )
    return Loss(total, hits)


def pieces(rows: int, width: int) -> range:
    """First rows of pieces of at most `PIECE` values."""
    return range(0, rows, piece_rows(width))


def piece_rows(width: int) -> int:
    """Rows of one piece."""
    return max(1, PIECE // width)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), device=hidden.device)
        hits = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        count = piece_rows(head.shape[0])
        for first in pieces(hidden.shape[0], head.shape[0]):
            rows = slice(first, first + count)
            wanted, weight = target[index[rows]], weights[rows]
            logits = (hidden[rows].to(head.dtype) @ head.T).float()
            hits += (weight * (logits.argmax(-1) == wanted.argmax(-1))).sum()
            logits -= logits.logsumexp(-1, keepdim=True)  # now log q
            wide = wanted.float() * weight[:, None]
            total -= torch.dot(logits.flatten(), wide.flatten())
            wrong = logits.exp_().mul_(weight[:, None]).sub_(wide).to(head.dtype)
            gradient[rows] = (wrong @ head).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(
        ctx: Any, *outer: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None
