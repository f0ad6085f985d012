"""Draft heads written out in plain torch, and random checkpoints of them.

Independent of the runtime's classes: every pair of a state and a token is put side by side, every
attention is a matrix over all pairs. A head is a dict of tensors by the names of its file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]

HIDDEN, HEADS, KV_HEADS, DIM, FFN, EPS, THETA = 96, 4, 2, 24, 128, 1e-5, 10000.0


def write_head(
    folder: Path,
    version: int,
    vocab_size: int,
    *,
    draft_vocab: int | None = None,
    own_head: bool = False,
    own_embedding: bool = False,
    layers: Sequence[int] | None = None,
    input_norm: bool = True,
    fc_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    hidden: int = HIDDEN,
) -> Weights:
    """Save a random head to `folder`; its tensors in float32, without the maps."""
    gen = torch.Generator().manual_seed(version)

    def randn(*shape: int, scale: float = 0.15) -> torch.Tensor:
        return (torch.randn(*shape, generator=gen) * scale).to(dtype)

    def norm() -> torch.Tensor:
        return (1.0 + 0.3 * torch.randn(hidden, generator=gen)).to(dtype)

    third = version == 3
    prefix, width = ("midlayer", 2 * hidden) if third else ("layers.0", hidden)
    weights = {
        "fc.weight": randn(hidden, hidden * (3 if third else 2)),
        f"{prefix}.self_attn.q_proj.weight": randn(HEADS * DIM, width),
        f"{prefix}.self_attn.k_proj.weight": randn(KV_HEADS * DIM, width),
        f"{prefix}.self_attn.v_proj.weight": randn(KV_HEADS * DIM, width),
        f"{prefix}.self_attn.o_proj.weight": randn(hidden, HEADS * DIM),
        f"{prefix}.mlp.gate_proj.weight": randn(FFN, hidden),
        f"{prefix}.mlp.up_proj.weight": randn(FFN, hidden),
        f"{prefix}.mlp.down_proj.weight": randn(hidden, FFN),
        f"{prefix}.post_attention_layernorm.weight": norm(),
    }
    if input_norm:
        weights[f"{prefix}.input_layernorm.weight"] = norm()
    if third:
        weights |= {f"{prefix}.hidden_norm.weight": norm(), "norm.weight": norm()}
    if fc_bias:
        weights["fc.bias"] = randn(hidden)
    if own_head:
        weights["lm_head.weight"] = randn(draft_vocab or vocab_size, hidden)
    if own_embedding:
        weights["embed_tokens.weight"] = randn(vocab_size, hidden, scale=1.0)
    saved = dict(weights)
    if draft_vocab is not None:
        ids = torch.randperm(vocab_size, generator=gen)[:draft_vocab].sort().values
        saved["d2t"] = ids - torch.arange(draft_vocab)
        saved["t2d"] = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, ids, True)
        weights["ids"] = ids
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3" if third else "LlamaForCausalLMEagle"],
        "hidden_size": hidden,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": DIM,
        "num_hidden_layers": 1,
        "vocab_size": vocab_size,
        "max_position_embeddings": 64,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
    }
    if draft_vocab is not None:
        config["draft_vocab_size"] = draft_vocab
    if layers is not None:
        config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": list(layers)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(saved, str(folder / "model.safetensors"))
    return {name: x if name == "ids" else x.float() for name, x in weights.items()}


class Oracle:
    """Log-probabilities of what a head guesses behind a sequence.

    Args:
        weights: of `write_head`.
        target: the target in transformers.
        layers: after which a head of version 3 reads.
    """

    def __init__(self, weights: Weights, target: Any, layers: Sequence[int] = ()) -> None:
        self.third = "midlayer.hidden_norm.weight" in weights
        prefix = "midlayer." if self.third else "layers.0."
        self.w = {name.removeprefix(prefix): x for name, x in weights.items()}
        self.target, self.layers = target, layers
        own = self.w.get("embed_tokens.weight")
        self.table = target.get_input_embeddings().weight if own is None else own
        head = self.w.get("lm_head.weight")
        ids = self.w.get("ids")
        if head is None:
            head = target.get_output_embeddings().weight
            head = head if ids is None else head[ids]
        self.head = head
        self.ids = torch.arange(len(head)) if ids is None else ids

    @torch.inference_mode()
    def states(self, ids: Sequence[int]) -> torch.Tensor:
        """The target's state vector at each token: [n, hidden]."""
        out = self.target(torch.tensor([list(ids)]), output_hidden_states=True)
        if not self.third:
            return out.hidden_states[-1][0]
        side_by_side = torch.cat([out.hidden_states[i + 1][0] for i in self.layers], dim=-1)
        return side_by_side @ self.w["fc.weight"].T + self.w.get("fc.bias", 0.0)

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int], computed: int, guesses: Sequence[int]) -> torch.Tensor:
        """Of the head's vocabulary [v], behind `ids` and then `guesses`; the target has computed
        the first `computed` ids."""
        path = [*ids, *guesses]
        states = list(self.states(ids[:computed]))
        while True:
            expected = self._run(torch.stack(states), path[1 : len(states) + 1])
            if len(states) == len(path) - 1:
                break
            states.append(expected)
        if self.third:
            expected = _norm(expected, self.w["norm.weight"])
        return torch.log_softmax(self.head @ expected, dim=-1)

    def _run(self, states: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """The state that is expected at the last of `ids`, each beside the state before it."""
        w, embedded = self.w, self.table[torch.tensor(ids)]
        if self.third:
            stream = states
            x = torch.cat(
                [
                    _norm(embedded, w["input_layernorm.weight"]),
                    _norm(states, w["hidden_norm.weight"]),
                ],
                dim=-1,
            )
        else:
            stream = torch.cat([embedded, states], dim=-1) @ w["fc.weight"].T + w.get("fc.bias", 0)
            known = w.get("input_layernorm.weight")
            x = stream if known is None else _norm(stream, known)
        n = len(ids)
        q = _turn((x @ w["self_attn.q_proj.weight"].T).view(n, HEADS, DIM))
        k = _turn((x @ w["self_attn.k_proj.weight"].T).view(n, KV_HEADS, DIM))
        v = (x @ w["self_attn.v_proj.weight"].T).view(n, KV_HEADS, DIM)
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(DIM)
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1)
        attended = torch.einsum("hqk,khd->qhd", mixed, v).reshape(n, -1)
        stream = stream + attended @ w["self_attn.o_proj.weight"].T
        y = _norm(stream, w["post_attention_layernorm.weight"])
        gate, up = y @ w["mlp.gate_proj.weight"].T, y @ w["mlp.up_proj.weight"].T
        down: torch.Tensor = (torch.nn.functional.silu(gate) * up) @ w["mlp.down_proj.weight"].T
        return (stream + down)[-1]


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _turn(x: torch.Tensor) -> torch.Tensor:
    """Rotate heads [n, heads, DIM]: pair j stands at position j + 1, but distances alone count."""
    frequencies = THETA ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.arange(len(x))[:, None, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
