"""The token embedding and the output head, which may be the same matrix.

Invariant: a tied head holds no memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.weights import Weight
from branchline.runtime.layers.lora_site import LoraSite
from branchline.runtime.layers.parameter import Slot, StoredTensor, WeightDtype, make_weight


class Embedding:
    """ids int32 [t] -> [t, hidden].

    Args:
        name: tensor name without ".weight".
        vocab_size: rows.
        hidden: columns.
        dtype: how the matrix is kept.

    Attributes:
        lora: what adapters add; None where none can be loaded.
    """

    weight: Weight
    lora: LoraWeight | None = None

    def __init__(self, name: str, vocab_size: int, hidden: int, dtype: WeightDtype) -> None:
        self._name = name
        self._shape = (vocab_size, hidden)
        self._dtype: WeightDtype = dtype

    def __call__(self, ids: torch.Tensor, ops: Ops, lora: LoraBatch | None = None) -> torch.Tensor:
        """Rows of the matrix, adapters included."""
        y = ops.embedding(ids, self.weight)
        if lora is not None and self.lora is not None:
            ops.lora_embedding(y, ids, self.lora, lora)
        return y

    def site(self) -> LoraSite:
        """Where adapters add to it."""
        rows, columns = self._shape
        return LoraSite("embedding", rows, ((self._name, columns),), self._put_lora)

    def prepare(self, ops: Ops) -> None:
        """Bring the matrix into the layout that these ops want."""
        self.weight = ops.prepare(self.weight)

    def slots(self) -> Iterator[Slot]:
        """The matrix."""
        yield Slot(f"{self._name}.weight", self._shape, self._put)

    def memory(self) -> int:
        """Bytes of the matrix."""
        return self.weight.nbytes

    def _put_lora(self, weight: LoraWeight | None) -> None:
        self.lora = weight

    def _put(self, tensor: StoredTensor) -> None:
        self.weight = make_weight([tensor], self._dtype)


class LMHead(Embedding):
    """hidden states [n, hidden] -> logits [n, vocab].

    What adapters add to a tied head is the head's alone: the embedding stays as it is.

    Args:
        tied: the embedding whose matrix it uses; None = it has its own.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        hidden: int,
        dtype: WeightDtype,
        *,
        tied: Embedding | None = None,
    ) -> None:
        super().__init__(name, vocab_size, hidden, dtype)
        self._tied = tied

    def __call__(self, x: torch.Tensor, ops: Ops, lora: LoraBatch | None = None) -> torch.Tensor:
        """Logits, in float32 if the backend sums in it, adapters included."""
        y = ops.head(x, self.matrix)
        if lora is not None and self.lora is not None:
            ops.lora_add(y, x, self.lora, lora)
        return y

    def site(self) -> LoraSite:
        """Where adapters add to it."""
        rows, columns = self._shape
        return LoraSite("head", columns, ((self._name, rows),), self._put_lora)

    @property
    def matrix(self) -> Weight:
        """What it multiplies by, its own or the embedding's."""
        return self.weight if self._tied is None else self._tied.weight

    def prepare(self, ops: Ops) -> None:
        """Its own matrix, if it is not tied."""
        if self._tied is None:
            super().prepare(ops)

    def slots(self) -> Iterator[Slot]:
        """Its own matrix, if it is not tied."""
        if self._tied is None:
            yield from super().slots()

    def memory(self) -> int:
        """Bytes of its own matrix."""
        return super().memory() if self._tied is None else 0
