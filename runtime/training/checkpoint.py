"""Heads as files: the names, shapes and settings of public EAGLE-3 checkpoints.

Invariant: what `read_head` returns guesses as what was written. There is no `lm_head.weight`: the
output matrix is the rows of the target's own that `d2t` names, which keeps a small head small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from branchline.runtime.config.model_spec import ModelSpec, RopeSpec
from branchline.runtime.errors import ModelLoadError, UnsupportedFeature
from branchline.runtime.loading.safetensors import read_json
from branchline.runtime.training.head import EagleHead, HeadShape
from branchline.runtime.training.vocabulary import DraftVocabulary


class TrainedHead(NamedTuple):
    """A head, and what it may guess."""

    head: EagleHead
    vocabulary: DraftVocabulary


def write_head(folder: Path, head: EagleHead, vocabulary: DraftVocabulary) -> int:
    """Write config.json and model.safetensors (bfloat16); returns the bytes of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    config = head_config(head, len(vocabulary.ids))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = head.public_tensors() | {
        "d2t": vocabulary.offsets(),
        "t2d": vocabulary.members(),
    }
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size


def head_config(head: EagleHead, draft_vocab_size: int) -> dict[str, Any]:
    """config.json of a head. Raises UnsupportedFeature: rotary scaling that it cannot state."""
    spec = head.spec
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": spec.hidden,
        "intermediate_size": head.shape.ffn,
        "num_hidden_layers": 1,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "draft_vocab_size": draft_vocab_size,
        "max_position_embeddings": spec.max_context,
        "rms_norm_eps": spec.rms_eps,
        **_rope_config(spec.rope),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": list(head.shape.layers),
            "use_aux_hidden_state": True,
        },
    }


def read_head(folder: Path, spec: ModelSpec, max_context: int) -> TrainedHead:
    """The head that `write_head` wrote, in float32 on the CPU.

    Args:
        folder: its files.
        spec: facts of its target.
        max_context: longest sequence.

    Raises:
        ModelLoadError: missing or damaged, or of another target.
    """
    config = read_json(folder / "config.json")
    try:
        layers = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
        shape = HeadShape(int(config["intermediate_size"]), (layers[0], layers[1], layers[2]))
        tensors = load_file(folder / "model.safetensors")
        offsets = tensors.pop("d2t")
        del tensors["t2d"]
        head = head_of(tensors, spec, shape, max_context)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(
            f"{folder} is no head of this model: {error}.",
            hint="It must have been trained for the same target.",
        ) from error
    return TrainedHead(head, DraftVocabulary(offsets + torch.arange(len(offsets)), spec.vocab_size))


def head_of(
    tensors: dict[str, torch.Tensor], spec: ModelSpec, shape: HeadShape, max_context: int
) -> EagleHead:
    """A head with these public tensors, float32 on the CPU."""
    head = EagleHead(spec, shape, max_context)
    head.load_state_dict({name: value.float() for name, value in tensors.items()})
    return head.requires_grad_(False)


def _rope_config(rope: RopeSpec) -> dict[str, Any]:
    scaling = rope.scaling
    found: dict[str, Any] = {"rope_theta": rope.theta}
    match scaling.kind:
        case "none":
            return found
        case "linear":
            return found | {"rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
        case "llama3":
            stated = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
            return found | {"rope_scaling": stated}
        case kind:
            raise UnsupportedFeature(
                "a head's config.json cannot state how this target scales its positions",
                value=kind,
                hint="Train with the target's Hugging Face directory in place of a .gguf file.",
            )
