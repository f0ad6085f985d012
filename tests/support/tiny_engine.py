"""A real engine over a tiny random model whose tokens are bytes: built in a second, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from branchline.runtime.engine import Engine
from branchline.runtime.tokenizer.byte_tokenizer import BYTE_CHAT_TEMPLATE

SPECIALS = ("<|bos|>", "<|eos|>", "<|turn|>", "<|end|>")


def write_tiny_model(folder: Path, **changes: Any) -> Path:
    """A model directory: config and tokenizer; weights are made at random when it is loaded.

    Args:
        changes: go to the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {name: i for i, name in enumerate(_byte_names())}
    added = [
        {"id": 256 + i, "content": name, "special": True} | dict.fromkeys(_FLAGS, False)
        for i, name in enumerate(SPECIALS)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 256,
        "eos_token_id": [257, 259],
        "tie_word_embeddings": True,
    }
    special = {
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "chat_template": BYTE_CHAT_TEMPLATE,
    }
    for name, value in (
        ("tokenizer.json", tokenizer),
        ("config.json", config | changes),
        ("tokenizer_config.json", special),
    ):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def tiny_engine(folder: Path, **settings: Any) -> Engine:
    """An engine over `write_tiny_model(folder)`, on one thread."""
    defaults = {"load_format": "dummy", "kv_tokens": 8192, "threads": 1}
    return Engine(str(write_tiny_model(folder)), **(defaults | settings))


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def _byte_names() -> list[str]:
    """GPT-2's printable name of each byte, in the bytes' own order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in visible}
    hidden = [byte for byte in range(256) if byte not in names]
    names |= {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [names[byte] for byte in range(256)]


def write_tiny_weights(folder: Path, **changes: Any) -> Path:
    """`write_tiny_model` with weights that transformers made; `changes` go to its configuration."""
    import torch
    import transformers

    write_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text()) | {"initializer_range": 0.2}
    torch.manual_seed(11)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(config | changes)))
    model.save_pretrained(folder)
    return folder
