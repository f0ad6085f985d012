"""What a row asks of `sample_rows`, as tensors. Knows nothing of requests.

Invariant: a row's token is a function of its logits, its mask, its parameters, its seed and its
position; neither the other rows nor the row's place change it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch

__all__ = ["Draws", "SamplingOps"]


@dataclass(frozen=True)
class Draws:
    """Parameters of n rows, on the device of the logits.

    A token is kept if it is among the `top_k` likeliest, in the smallest set of the likeliest whose
    share of those is at least `top_p`, and at least `min_p` times as likely as the likeliest;
    where equal logits straddle a cut the lowest ids are kept. One of the kept is drawn.

    Attributes:
        inv_temperature: [n] float32; 0 = the likeliest token, the lowest id among equals.
        top_k: [n] int32; 0 = off.
        top_p: [n] float32; 1 = off.
        min_p: [n] float32; 0 = off.
        seeds: [n] int64, start of each row's random stream (read as unsigned).
        positions: [n] int64, which number of the stream.
        truncated: False = the caller knows that every row has top_k, top_p and min_p off.
    """

    inv_temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    truncated: bool = True

    @classmethod
    def greedy(cls, n: int, device: torch.device) -> Draws:
        """The likeliest token of each row."""
        floats = torch.zeros(n, dtype=torch.float32, device=device)
        longs = torch.zeros(n, dtype=torch.int64, device=device)
        return cls(floats, longs.int(), floats + 1.0, floats, longs, longs, truncated=False)

    def first(self, n: int) -> Draws:
        """Of the first n rows; views."""
        return replace(
            self,
            inv_temperature=self.inv_temperature[:n],
            top_k=self.top_k[:n],
            top_p=self.top_p[:n],
            min_p=self.min_p[:n],
            seeds=self.seeds[:n],
            positions=self.positions[:n],
        )


class SamplingOps(ABC):
    """What a sampler may do to logits on their device, without the host looking."""

    @abstractmethod
    def sample_rows(
        self,
        logits: torch.Tensor,
        draws: Draws,
        bitmask: torch.Tensor | None = None,
        need: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each row.

        Args:
            logits: [n, V] float32, not changed.
            draws: how each row is drawn.
            bitmask: [n, ceil(V / 32)] int32, bit v % 32 of word v // 32 set = token v allowed.
            need: [n] bool, rows whose mask applies; None = all, if there is a bitmask.

        Returns:
            ids int32 [n], and bad bool [n]: rows that held NaN or +inf or nothing allowed; id 0.
        """
