"""The meaning of `sample_rows`, in float64 and by sorting.

Invariant: the random number of a token is a function of the row's seed, its position and the
token's id, the same in every backend, so backends agree on the token drawn and not only on its
distribution (up to rounding where two tokens are as good as equal).
"""

import torch

from branchline.kernels.sampling import Draws

__all__ = ["draw", "kept_tokens"]

_MASK32 = (1 << 32) - 1


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of 64-bit words held as int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def stream(seeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `position` of each seed's SplitMix64 stream as its low and high 32 bits, int64 [n]."""
    state = seeds + (positions + 1) * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _right(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _right(state, 31)
    return state & _MASK32, _right(state, 32)


def _scramble(h: torch.Tensor) -> torch.Tensor:
    """Finalizer of MurmurHash3 on 32-bit words held as int64."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)


def exponentials(low: torch.Tensor, high: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Exponential random numbers float64 [n, V] from the streams' words [n]."""
    ids = torch.arange(vocabulary, dtype=torch.int64, device=low.device)
    h = _scramble(((ids * 0x9E3779B1) & _MASK32)[None, :] ^ low[:, None])
    h = _scramble((h + high[:, None]) & _MASK32)
    v = ((h >> 8).double() + 0.5) / 2.0**24
    v = torch.where(v < 0.001, v + (h & 255).double() / 2.0**32, v)
    return -torch.log1p(-v)


def kept_tokens(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Which tokens top_k, top_p and min_p leave: bool [n, V]. Greedy rows keep all."""
    n, vocabulary = logits.shape
    scaled = logits.double() * draws.inv_temperature.double()[:, None]
    # Stable, so that of equal logits the lowest id comes first.
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
    weights = torch.softmax(scaled, dim=-1).gather(1, order)
    rank = torch.arange(vocabulary, device=logits.device)[None, :].expand(n, -1)
    kept = (draws.top_k[:, None] <= 0) | (rank < draws.top_k[:, None])
    left = weights * kept
    before = left.cumsum(dim=-1) - left
    whole = left.sum(dim=-1, keepdim=True)
    top_p = draws.top_p.double()[:, None]
    kept &= (top_p >= 1.0) | (before < top_p * whole)
    kept &= weights >= draws.min_p.double()[:, None] * weights[:, :1]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def draw(logits: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int32 [n] and bad rows bool [n]; see `SamplingOps.sample_rows`."""
    largest = logits.amax(dim=-1)
    bad = ~largest.isfinite()
    clean = torch.where(bad[:, None], 0.0, logits)
    noise = -exponentials(*stream(draws.seeds, draws.positions), logits.shape[1]).log()
    greedy = (draws.inv_temperature <= 0)[:, None]
    scaled = clean.double() * draws.inv_temperature.double()[:, None] + noise
    scores = torch.where(greedy, clean.double(), scaled)
    kept = (kept_tokens(clean, draws) | greedy) & (clean > -torch.inf)
    scores = scores.masked_fill(~kept, -torch.inf)
    best = scores == scores.amax(dim=-1, keepdim=True)
    ids = best.to(torch.int8).argmax(dim=-1).to(torch.int32)
    return torch.where(bad, 0, ids), bad
