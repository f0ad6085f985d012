"""The meaning of every op, in plain torch on any device: the oracle of faster backends.

Invariant: readable first; no blocking, no fusion, no approximation. The float32 results of other
backends are compared with these. Used for real only where no faster backend exists.
"""

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.kernels.reference.beam import ReferenceBeam
from branchline.kernels.reference.lookup import ReferenceLookup
from branchline.kernels.reference.sampling import draw
from branchline.kernels.sampling import Draws, SamplingOps
from branchline.kernels.weights import DenseWeight, Weight

__all__ = ["ReferenceOps"]


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [t, heads, d]; cos and sin [t, 1, d/2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def visible_tokens(meta: AttentionMeta, row: int) -> torch.Tensor:
    """Which tokens each of a row's step tokens sees: [extend_len, seq_len] bool."""
    length, extend = int(meta.seq_lens[row]), int(meta.extend_lens[row])
    index = torch.arange(length)
    mask = index[None, :] <= index[length - extend :, None]
    if meta.tree_lens is None or meta.tree_offsets is None or meta.tree_words is None:
        return mask
    tree, offset = int(meta.tree_lens[row]), int(meta.tree_offsets[row])
    words = (tree + 63) // 64
    for x in range(tree):
        for y in range(tree):
            word = int(meta.tree_words[offset + x * words + y // 64])
            mask[extend - tree + x, length - tree + y] = bool(word >> (y % 64) & 1)
    return mask


class ReferenceOps(ReferenceBeam, ReferenceLookup, Ops, SamplingOps):
    """Every op in torch.

    Args:
        dtype: of the activations that `embedding` starts: float32 or bfloat16.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def prepare(self, weight: Weight) -> Weight:
        return weight

    def resolve_ids(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        meta: AttentionMeta,
        token_table: torch.Tensor,
    ) -> torch.Tensor:
        rows = torch.repeat_interleave(meta.rows.long(), meta.extend_lens.long())
        return torch.where(ids >= 0, ids, token_table[rows, positions])

    def embedding(self, ids: torch.Tensor, weight: Weight) -> torch.Tensor:
        return weight.dense[ids.long()].to(self.dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return _norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        residual += x
        return _norm(residual, weight, eps)

    def linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        dense = weight.dense
        if isinstance(weight, DenseWeight) and dense.dtype != x.dtype:
            out = (x.to(dense.dtype) @ dense.T).to(x.dtype)
        else:
            out = x @ dense.T.to(x.dtype)
        return out if bias is None else out + bias.to(out.dtype)

    def write_heads(self, qkv: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
        t, (_, hkv, d) = qkv.shape[0], into.k_pool.shape
        hq = qkv.shape[1] // d - 2 * hkv
        heads = qkv.reshape(t, hq + 2 * hkv, d)
        q, k, v = torch.split(heads, [hq, hkv, hkv], dim=1)
        if into.q_norm is not None:
            q = _norm(q, into.q_norm, into.eps)
        if into.k_norm is not None:
            k = _norm(k, into.k_norm, into.eps)
        cos, sin = into.cos_sin[into.positions][:, None, :].float().chunk(2, dim=-1)
        slots = into.out_slots.long()
        into.k_pool[slots] = _rotate(k, cos, sin).to(into.k_pool.dtype)
        into.v_pool[slots] = v.to(into.v_pool.dtype)
        return _rotate(q, cos, sin)

    def paged_attention(
        self,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        meta: AttentionMeta,
        scale: float,
    ) -> torch.Tensor:
        t, hq, d = q.shape
        group = hq // k_pool.shape[1]
        out = q.new_empty(t, hq, d)
        for row in range(meta.rows.shape[0]):
            length, extend = int(meta.seq_lens[row]), int(meta.extend_lens[row])
            start = int(meta.extend_start[row])
            slots = meta.slot_table[int(meta.rows[row]), :length].long()
            k = k_pool[slots].float().repeat_interleave(group, dim=1)
            v = v_pool[slots].float().repeat_interleave(group, dim=1)
            tokens = slice(start, start + extend)
            scores = torch.einsum("qhd,khd->hqk", q[tokens].float(), k) * scale
            hidden = ~visible_tokens(meta, row).to(q.device)
            weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
            out[tokens] = torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
        return out.reshape(t, hq * d)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def gather_rows(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x[index.long()]

    def scatter_rows(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        out[index.long()] = x.to(out.dtype)

    def apply_bitmask(
        self, logits: torch.Tensor, bitmask: torch.Tensor, need: torch.Tensor
    ) -> None:
        bits = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = (bitmask[:, :, None] >> bits & 1).bool().flatten(1)[:, : logits.shape[1]]
        logits.masked_fill_(~allowed & need[:, None], float("-inf"))

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        top = logits.max(dim=-1, keepdim=True).values
        # torch.argmax does not promise the first of equal values.
        return (logits == top).to(torch.int8).argmax(dim=-1).to(torch.int32)

    def top_rows(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = logits.float().topk(k, dim=-1)
        return values, indices.int()

    def logsumexp_rows(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(logits.float(), dim=-1)

    def sample_rows(
        self,
        logits: torch.Tensor,
        draws: Draws,
        bitmask: torch.Tensor | None = None,
        need: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if bitmask is not None:
            logits = logits.clone()
            every = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            self.apply_bitmask(logits, bitmask, every if need is None else need)
        return draw(logits, draws)
