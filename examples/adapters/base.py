"""The base model outside of branchline: its weights in transformers, its tokens for training.

Invariant: the weights are those of the file, widened exactly as the runtime widens them, so an
adapter is trained on what it will be added to; a training sequence has the ids that a chat with the
runtime has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from branchline.examples.adapters.task import Item
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import Checkpoint
from branchline.runtime.loading.load import load_into, open_checkpoint
from branchline.runtime.loading.weight_map import expected_tensors
from branchline.runtime.tokenizer.chat import ChatTemplate
from branchline.runtime.tokenizer.tokenizer import Tokenizer

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the default model is called in the configuration of an adapter."""


@dataclass(frozen=True)
class Sequence:
    """One training sequence.

    Attributes:
        ids: the prompt's and the answer's.
        prompt_len: how many are the prompt's; nothing is learned from those.
    """

    ids: list[int]
    prompt_len: int


class Encoder:
    """Makes training sequences of items.

    Args:
        checkpoint: of the base model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = Tokenizer(checkpoint.tokenizer_source)
        self._template = ChatTemplate.of(self._tokenizer)
        self._end = min(self._tokenizer.eos_ids)

    def encode(self, item: Item) -> Sequence:
        """A user's turn, the answer, and the end of the turn."""
        turns = [{"role": "user", "content": item.prompt}]
        text = self._template.render(turns, add_generation_prompt=True)
        prompt = self._tokenizer.encode_template(text)
        return Sequence([*prompt, *self._tokenizer.encode(item.answer), self._end], len(prompt))


def load_base(path: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Checkpoint]:
    """(`LlamaForCausalLM` with the weights of a GGUF file or directory, the open checkpoint).

    Args:
        path: of the model.
        dtype: of the weights.

    Raises:
        ModelLoadError: not a Llama with plain rotary embeddings, or files that cannot be read.
    """
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(path)
    spec = checkpoint.spec
    if spec.architecture != "llama" or spec.rope.scaling.kind != "none":
        raise ModelLoadError(
            "this recipe trains on Llama models with plain rotary embeddings only",
            value=f"{spec.architecture}, rope scaling {spec.rope.scaling.kind}",
            hint="Use the default model, smollm2-135m.",
        )
    # Not `model.to(dtype)`: that would round the rotary frequencies as well.
    model = AutoModelForCausalLM.from_config(llama_config(spec), dtype=dtype).to(device)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, tensor in load_into(expected_tensors(spec), checkpoint):
            parameters[name].copy_(tensor.to_torch(torch.float32))
    model.tie_weights()
    return model.eval(), checkpoint


def llama_config(spec: ModelSpec) -> Any:
    """The transformers configuration of a spec."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_eps,
        max_position_embeddings=spec.max_context,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope.theta},
        tie_word_embeddings=spec.tie_embeddings,
        bos_token_id=spec.bos_id,
        eos_token_id=list(spec.eos_ids),
    )
