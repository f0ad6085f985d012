"""What the executor needs of a model.

Invariant: a model holds weights and tables, and no state of a step. It is handed ops, a batch and
the key-value pool, and touches nothing else. Knows nothing of files, schedulers or samplers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import Ops
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.layers.lora_site import LoraSite
from branchline.runtime.layers.parameter import Slot


class KVLayers(Protocol):
    """The key-value pool as models see it (`memory.KVPool`)."""

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer: [slots, kv_heads, head_dim] each, views."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes that a model's weights take; a matrix shared by two layers counts once.

    Attributes:
        embedding: the token embedding, and the head if it is tied.
        head: an output head of its own.
        attention, mlp: matrices and biases of all layers.
        norms: of all layers.
        tables: rotary tables.
        kinds: bytes by how matrices are stored, such as {"Q4_1": 66355200}.
    """

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int
    tables: int
    kinds: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        parts = self.embedding + self.head + self.attention + self.mlp
        return parts + self.norms + self.tables


class Tap(Protocol):
    """Listens to one forward: is shown hidden states of all tokens as they come about.

    Attributes:
        final: the states after the last layer are wanted too, for all tokens. Else only tokens
            whose logits are wanted pass the end of it.
    """

    final: bool

    def layer(self, index: int, residual: torch.Tensor, ops: Ops) -> None:
        """The residual stream [t, hidden] after layer `index`. It is changed afterwards: what is
        wanted of it must be computed or copied at once."""

    def end(self, hidden: torch.Tensor) -> None:
        """Final normed states [t, hidden]; called only where `final`."""


class Model(Protocol):
    """A decoder-only language model."""

    @property
    def spec(self) -> ModelSpec:
        """Facts of the model."""

    @property
    def max_context(self) -> int:
        """Longest sequence, in tokens."""

    def slots(self) -> Iterator[Slot]:
        """Every tensor it needs."""

    def lora_sites(self) -> Iterator[LoraSite]:
        """Every layer that adapters may add to."""

    def prepare(self, ops: Ops) -> None:
        """Fit the weights to the ops that it will run with; once, after all slots are filled."""

    def forward(
        self, batch: ForwardBatch, ops: Ops, kv: KVLayers, tap: Tap | None = None
    ) -> torch.Tensor:
        """Run one step: the step's keys and values enter the pool, `tap` is shown the states.

        Returns:
            Final normed hidden states of the tokens `batch.logit_idx`: [l, hidden].
        """

    def logits(self, hidden: torch.Tensor, ops: Ops, lora: LoraBatch | None = None) -> torch.Tensor:
        """Output head: [n, hidden] -> [n, vocab]; lora: slots of the n rows, if any has one."""

    def memory_report(self) -> MemoryReport:
        """What its weights take now."""
