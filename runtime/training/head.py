"""The EAGLE-3 head (Li et al., 2025) in torch, as it is trained: unrolled on its own outputs.

One decoder layer that guesses what the target model says next. Its entry at position j is made of
the target's feature of position j - 1 and the embedding of token j, is rotated by j, attends to the
entries up to its own, and guesses token j + 1. Where the target has not been, the head's own output
takes the feature's place. No feature comes before position 0, so the first entry is that of 1.

Invariant: names and shapes of the parameters are those of public EAGLE-3 checkpoints, and entry j
depends on no token behind j. The head has no output matrix: its guesses are products with rows of
the target's. Knows nothing of the target beside its `ModelSpec`.

Symbols: B sequences padded on the right to T tokens, H = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.layers.rotary import rotary_table


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What is chosen about a head; the rest is as in its target.

    Attributes:
        ffn: width of the gated MLP.
        layers: three layers of the target, ascending, counted from 0: the residual stream after
            each is part of the feature.
    """

    ffn: int
    layers: tuple[int, int, int]

    @classmethod
    def usual(cls, spec: ModelSpec, ffn: int | None = None) -> HeadShape:
        """The layers that EAGLE-3 names (a low one, the middle, a high one), and the target's MLP.

        Raises:
            InvalidRequest: the target has too few layers.
        """
        count = spec.num_layers
        layers = (1, count // 2 - 1, count - 4) if count >= 8 else (0, 0, max(0, count - 2))
        if count < 2:
            raise InvalidRequest("a head needs a target of at least two layers", value=count)
        return cls(spec.ffn if ffn is None else ffn, layers)


class Entries(list[tuple[torch.Tensor, torch.Tensor]]):
    """Keys and values of the steps of an unrolling: [B, kv_heads, T, head_dim] each.

    The first are of the entries that the target's features made. Entry n of the k-th pair after
    them stands k positions further on, behind the same first entries 0 … n.
    """


class EagleHead(nn.Module):
    """The head.

    Args:
        spec: facts of the target.
        shape: what is chosen.
        max_context: longest sequence; an unrolling may go 64 tokens past it.

    Attributes:
        input_scale: float32 [3 H], by which features are divided before `fc`, so that all of them
            are trained at one size; not part of a checkpoint (`public_tensors` folds it in).
    """

    input_scale: torch.Tensor
    rotary: torch.Tensor

    def __init__(self, spec: ModelSpec, shape: HeadShape, max_context: int) -> None:
        super().__init__()
        self.spec, self.shape = spec, shape
        hidden = spec.hidden
        self.fc = nn.Linear(3 * hidden, hidden, bias=False)
        self.midlayer = _Layer(spec, shape.ffn)
        self.norm = _Norm(hidden, spec.rms_eps)
        self.register_buffer("input_scale", torch.ones(3 * hidden), persistent=False)
        table = rotary_table(spec.rope, spec.head_dim, max_context + 64)
        self.register_buffer("rotary", table, persistent=False)

    def init_weights(self, seed: int) -> None:
        """Matrices normal with deviation 1 / sqrt(inputs), norms one; the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
                continue
            values = torch.empty(parameter.shape).normal_(
                0.0, parameter.shape[1] ** -0.5, generator=generator
            )
            parameter.data.copy_(values)

    def feature(self, states: torch.Tensor) -> torch.Tensor:
        """Residual streams of the three layers side by side [.., 3 H] -> feature [.., H]."""
        result: torch.Tensor = self.fc(states / self.input_scale)
        return result

    def step(
        self, feature: torch.Tensor, embedded: torch.Tensor, first: int, entries: Entries
    ) -> torch.Tensor:
        """The next step of an unrolling; its keys and values are added to `entries`.

        Args:
            feature: [B, T, H] of the position before each.
            embedded: [B, T, H] embeddings of the tokens there.
            first: position of the first of the T.
            entries: of the steps before.

        Returns:
            [B, T, H], before the final norm: the next step's feature.
        """
        layer = self.midlayer
        q, k, v = layer.heads(feature, embedded)
        angles = self.rotary[first : first + feature.shape[1]]
        q, k = rotated(q, angles), rotated(k, angles)
        entries.append((k, v))
        return layer.after(feature, _attend(q, entries))

    def unroll(
        self, states: torch.Tensor, embedded: torch.Tensor, steps: int
    ) -> list[torch.Tensor]:
        """Outputs of each step, teacher-forced.

        Args:
            states: [B, T, 3 H] of the target.
            embedded: [B, T, H] of the tokens.
            steps: how many.

        Returns:
            [B, T - 1, H] for each step, before the final norm. Index i of the k-th stands at
            position i + k + 1 and guesses the token after. Tokens past the end count as zeros, so
            what stands there means nothing.
        """
        entries = Entries()
        feature = self.feature(states)[:, :-1]
        outputs = []
        for ahead in range(steps):
            tokens = embedded[:, ahead + 1 :]
            tokens = functional.pad(tokens, (0, 0, 0, feature.shape[1] - tokens.shape[1]))
            feature = self.step(feature, tokens, ahead + 1, entries)
            outputs.append(feature)
        return outputs

    def public_tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
        """Parameters by their public names, on the CPU."""
        tensors = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        tensors["fc.weight"] = tensors["fc.weight"] / self.input_scale.cpu()
        return {name: value.to(dtype).contiguous() for name, value in tensors.items()}


class _Norm(nn.Module):
    """Root-mean-square norm, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(self.weight.dtype)


class _Attention(nn.Module):
    """Projections of the attention; its inputs are an embedding and a feature, side by side."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2 * spec.hidden, spec.q_size, bias=False)
        self.k_proj = nn.Linear(2 * spec.hidden, spec.kv_size, bias=False)
        self.v_proj = nn.Linear(2 * spec.hidden, spec.kv_size, bias=False)
        self.o_proj = nn.Linear(spec.q_size, spec.hidden, bias=False)


class _Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class _Layer(nn.Module):
    """The decoder layer; the residual stream begins as the feature."""

    def __init__(self, spec: ModelSpec, ffn: int) -> None:
        super().__init__()
        self._head_dim = spec.head_dim
        self.self_attn = _Attention(spec)
        self.mlp = _Mlp(spec.hidden, ffn)
        self.hidden_norm = _Norm(spec.hidden, spec.rms_eps)
        self.input_layernorm = _Norm(spec.hidden, spec.rms_eps)
        self.post_attention_layernorm = _Norm(spec.hidden, spec.rms_eps)

    def heads(
        self, feature: torch.Tensor, embedded: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v, not rotated: [B, heads, T, head_dim]."""
        both = torch.cat([self.input_layernorm(embedded), self.hidden_norm(feature)], dim=-1)
        attn = self.self_attn
        q, k, v = attn.q_proj(both), attn.k_proj(both), attn.v_proj(both)
        return self._by_head(q), self._by_head(k), self._by_head(v)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], -1, self._head_dim).transpose(1, 2)

    def after(self, feature: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What follows the attention: [B, T, H] and [B, T, heads * head_dim] -> [B, T, H]."""
        residual = feature + self.self_attn.o_proj(attended)
        result: torch.Tensor = residual + self.mlp(self.post_attention_layernorm(residual))
        return result


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x [.., T, head_dim] with its halves rotated by `angles` [T, head_dim] (cos, then sin)."""
    cos, sin = angles.chunk(2, dim=-1)
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def grouped(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, heads, T, head_dim] -> [B, kv_heads, group, T, head_dim], scaled for scores."""
    batch, heads, tokens, dim = q.shape
    scale: float = dim**-0.5
    return q.view(batch, kv_heads, heads // kv_heads, tokens, dim) * scale


def _attend(q: torch.Tensor, entries: Entries) -> torch.Tensor:
    """Query n sees the first step's entries up to n, and entry n of each step after it.

    q: [B, heads, T, head_dim] of the newest step. Returns [B, T, heads * head_dim].
    """
    (keys, values), own = entries[0], entries[1:]
    kv_heads, tokens = keys.shape[1], q.shape[2]
    q = grouped(q, kv_heads)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ keys[:, :, None].transpose(-1, -2)).masked_fill(hidden, float("-inf"))
    alone = [(q * k[:, :, None]).sum(-1, keepdim=True) for k, _ in own]
    weights = torch.cat([scores, *alone], dim=-1).float().softmax(-1).to(values.dtype)
    result = weights[..., :tokens] @ values[:, :, None]
    for at, (_, v) in enumerate(own, tokens):
        result = result + weights[..., at : at + 1] * v[:, :, None]
    return result.flatten(1, 2).transpose(1, 2).flatten(2)
