"""Small random adapters in PEFT's format, written without PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from branchline.runtime.config.model_spec import ModelSpec

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERYTHING = (*LINEARS, "embed_tokens", "lm_head")


def module_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every module that can be adapted; columns of an embedding = V."""
    shapes = {"model.embed_tokens": (spec.hidden, spec.vocab_size)}
    for layer in range(spec.num_layers):
        block = {
            "self_attn.q_proj": (spec.q_size, spec.hidden),
            "self_attn.k_proj": (spec.kv_size, spec.hidden),
            "self_attn.v_proj": (spec.kv_size, spec.hidden),
            "self_attn.o_proj": (spec.hidden, spec.q_size),
            "mlp.gate_proj": (spec.ffn, spec.hidden),
            "mlp.up_proj": (spec.ffn, spec.hidden),
            "mlp.down_proj": (spec.hidden, spec.ffn),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["lm_head"] = (spec.vocab_size, spec.hidden)
    return shapes


def write_adapter(
    folder: Path,
    spec: ModelSpec,
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = LINEARS,
    seed: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    rank_pattern: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """An adapter with random matrices, strong enough to change what a random model says.

    Args:
        strength: size of what it adds, as a multiple of what the layer puts out.
        rank_pattern: ranks by the last part of a module's name.
        config: further fields of adapter_config.json.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    patterns = dict(rank_pattern or {})
    for name, (rows, columns) in module_shapes(spec).items():
        last = name.rpartition(".")[2]
        if last not in targets:
            continue
        r = patterns.get(last, rank)
        embedding = last == "embed_tokens"
        a = torch.randn(r, columns, generator=generator)
        a *= 1.0 if embedding else 1.0 / math.sqrt(columns)
        b = torch.randn(rows, r, generator=generator) * strength / math.sqrt(r)
        key = f"base_model.model.{name}.lora_"
        if embedding:
            tensors |= {f"{key}embedding_A": a.to(dtype), f"{key}embedding_B": b.to(dtype)}
        else:
            tensors |= {f"{key}A.weight": a.to(dtype), f"{key}B.weight": b.to(dtype)}
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "rank_pattern": patterns,
        "alpha_pattern": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings | dict(config or {})))
    return folder
