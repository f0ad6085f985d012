"""Model classes by architecture name, imported when one is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.models.base import Model


class ModelClass(Protocol):
    """Builds a model without weights."""

    def __call__(self, spec: ModelSpec, max_context: int, dtype: WeightDtype) -> Model: ...


def _llama() -> ModelClass:
    from branchline.runtime.models.llama import Llama

    return Llama


MODELS: dict[str, Callable[[], ModelClass]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
}
"""Architecture name (as in `ModelSpec.architecture`) -> import of its class."""


def make_model(spec: ModelSpec, max_context: int, dtype: WeightDtype = "auto") -> Model:
    """An empty model of the spec's architecture, sized for sequences of `max_context` tokens.

    Raises:
        ModelLoadError: no class for the architecture, or a context the model does not have.
    """
    if spec.architecture not in MODELS:
        raise ModelLoadError(
            "There is no model class for this architecture.",
            value=spec.architecture,
            hint=f"Supported: {', '.join(MODELS)}.",
        )
    if not 1 <= max_context <= spec.max_context:
        raise ModelLoadError(
            "The context length is out of range for this model.",
            value=max_context,
            hint=f"Use 1 to {spec.max_context}.",
        )
    return MODELS[spec.architecture]()(spec, max_context, dtype)
