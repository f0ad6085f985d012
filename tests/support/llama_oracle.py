"""transformers' Llama of a spec of ours: the oracle of models."""

from __future__ import annotations

from typing import Any

from branchline.examples.adapters import base
from branchline.runtime.config.model_spec import ModelSpec


def llama_config(spec: ModelSpec) -> Any:
    """Its configuration; attention is computed step by step."""
    config = base.llama_config(spec)
    config._attn_implementation = "eager"
    return config
