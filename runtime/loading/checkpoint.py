"""What every model file offers, whatever its format: a spec, named tensors, a tokenizer's source.

Invariant: names and shapes are known before any tensor is read, and tensors are read one at a
time. `DummyCheckpoint` keeps the same promise for weights that exist nowhere.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.loading.on_device import Noise
from branchline.runtime.loading.raw_tensor import RawTensor
from branchline.runtime.loading.weight_map import expected_tensors

if TYPE_CHECKING:
    import torch

    from branchline.runtime.layers.parameter import StoredTensor

TURN_END_TOKENS: tuple[str, ...] = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
)
"""Texts that chat models use to end a turn; one that a model's template writes ends generation."""


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """What a tokenizer is made of.

    Attributes:
        json_text: UTF-8 JSON in the format of the `tokenizers` package.
        chat_template: Jinja text; "" if the model has none.
        bos_id: start of sequence, if any.
        eos_ids: ids that end a generation.
        add_bos: text that starts a sequence begins with `bos_id`.
        fingerprint: hex digest of all of the above; equal sources have equal fingerprints.
    """

    json_text: bytes
    chat_template: str = ""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    fingerprint: str = ""


class TensorSource(Protocol):
    """Named tensors."""

    @property
    def location(self) -> str:
        """Where they are read from, for messages."""

    def tensor_names(self) -> list[str]:
        """Canonical names, in the order in which reading them is cheapest."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape, known without reading the tensor."""

    def read(self, name: str) -> StoredTensor:
        """The tensor; raises `ModelLoadError` for an unknown name or an unreadable type."""

    def close(self) -> None:
        """Let go of the files; tensors already handed out stay valid."""


class Checkpoint(TensorSource, Protocol):
    """Weights of one model and the facts about them."""

    @property
    def spec(self) -> ModelSpec:
        """Facts of the model."""

    @property
    def tokenizer_source(self) -> TokenizerSource | None:
        """What its tokenizer is made of; None if the files carry none."""


class DummyCheckpoint:
    """Random weights of a model that exists only as a spec (`load_format="dummy"`).

    Matrices and biases are normal(0, 0.02) in float32, norms are one. A tensor depends on its
    name, its shape and the seed alone, so reading order does not matter. Made on
    another device than the CPU (`make_on`) they are other values.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int = 0,
        *,
        tokenizer_source: TokenizerSource | None = None,
    ) -> None:
        self.spec = spec
        self.location = f"random weights (seed {seed})"
        self.tokenizer_source = tokenizer_source
        self._seed = seed
        self._device: torch.device | None = None
        self._shapes = expected_tensors(spec)

    def make_on(self, device: torch.device) -> None:
        """Tensors read from now on are made on this device."""
        self._device = None if device.type == "cpu" else device

    def tensor_names(self) -> list[str]:
        """Canonical names, embedding first."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape."""
        return self._shapes[name]

    def read(self, name: str) -> RawTensor | Noise:
        """The tensor: kind "f32"."""
        shape = self._shapes[name]
        if self._device is not None:
            return Noise(name, shape, self._seed, self._device)
        if name.endswith("norm.weight"):
            return RawTensor("f32", shape, np.ones(shape, np.float32))
        rng = np.random.default_rng((self._seed, zlib.crc32(name.encode())))
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(0.02)
        return RawTensor("f32", shape, values)

    def close(self) -> None:
        """Nothing to let go of."""
