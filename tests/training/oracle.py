"""The head written out a second time: one sequence, one entry after another, no batching.

Reads a head's public tensors by name and shares no code with `runtime.training`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from branchline.runtime.config.model_spec import ModelSpec

Tensors = dict[str, torch.Tensor]


class OracleHead:
    """A head that keeps a list of entries.

    Args:
        tensors: public names, float32.
        spec: facts of the target.
    """

    def __init__(self, tensors: Tensors, spec: ModelSpec) -> None:
        self._tensors, self._spec = tensors, spec

    def feature(self, states: torch.Tensor) -> torch.Tensor:
        """[3 H] -> [H]."""
        return self._tensors["fc.weight"] @ states

    def entry(
        self,
        feature: torch.Tensor,
        embedded: torch.Tensor,
        position: int,
        before: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """(output [H] before the final norm, key and value) of one entry behind others."""
        spec, tensors = self._spec, self._tensors
        both = torch.cat(
            [
                self.norm("midlayer.input_layernorm", embedded),
                self.norm("midlayer.hidden_norm", feature),
            ]
        )
        q, k, v = (
            (tensors[f"midlayer.self_attn.{which}_proj.weight"] @ both).view(-1, spec.head_dim)
            for which in "qkv"
        )
        q, k = self._rotate(q, position), self._rotate(k, position)
        seen = [*before, (k, v)]
        group = spec.heads // spec.kv_heads
        heads = []
        for head in range(spec.heads):
            keys = torch.stack([key[head // group] for key, _ in seen])
            values = torch.stack([value[head // group] for _, value in seen])
            heads.append(torch.softmax(keys @ q[head] / spec.head_dim**0.5, 0) @ values)
        x = feature + tensors["midlayer.self_attn.o_proj.weight"] @ torch.cat(heads)
        y = self.norm("midlayer.post_attention_layernorm", x)
        gate = tensors["midlayer.mlp.gate_proj.weight"] @ y
        up = tensors["midlayer.mlp.up_proj.weight"] @ y
        gated = gate * torch.sigmoid(gate) * up
        return x + tensors["midlayer.mlp.down_proj.weight"] @ gated, (k, v)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm by the weight of that name."""
        root = (x.square().mean() + self._spec.rms_eps).sqrt()
        return x / root * self._tensors[f"{name}.weight"]

    def _rotate(self, x: torch.Tensor, position: int) -> torch.Tensor:
        half = self._spec.head_dim // 2
        powers = torch.arange(half, dtype=torch.float64) * 2 / self._spec.head_dim
        angles = position / self._spec.rope.theta**powers
        turned = torch.complex(x[:, :half].double(), x[:, half:].double())
        turned = turned * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=1).float()


def chain(
    head: OracleHead,
    states: torch.Tensor,
    embedding: torch.Tensor,
    ids: Sequence[int],
    depth: int,
    rows: torch.Tensor,
    names: Sequence[int],
) -> list[int]:
    """Greedy drafts behind the last of `ids`, whose own states are not known.

    states: [len(ids) - 1, 3 H]; rows: [n, H] of the output matrix, whose tokens are `names`.
    """
    entries: list[tuple[torch.Tensor, torch.Tensor]] = []
    output = torch.empty(0)
    for position in range(1, len(ids)):
        feature = head.feature(states[position - 1])
        output, made = head.entry(feature, embedding[ids[position]], position, entries)
        entries.append(made)
    drafts: list[int] = []
    for ahead in range(depth):
        drafts.append(names[int((rows @ head.norm("norm", output)).argmax())])
        if ahead + 1 < depth:
            position = len(ids) + ahead
            output, made = head.entry(output, embedding[drafts[-1]], position, entries)
            entries.append(made)
    return drafts
