"""What the executor needs of a draft model: entries beside the target's, and guesses from them.

A draft model keeps something of every token that the target computes (`observe`, part of every
forward of the target), in the target's own slots. From there it guesses level by level (`level`): a
level is a step of its own whose tokens are guesses, in scratch slots. Invariant: what is kept of a
token depends on the tokens up to it alone, so that cached prefixes serve drafts as they serve the
target. Knows nothing of trees, nor of which guesses are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionNeeds, OpsAttention, OpsPlan, Support
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.layers.embedding import Embedding, LMHead
from branchline.runtime.layers.parameter import Slot
from branchline.runtime.models.base import KVLayers, Model, Tap


@runtime_checkable
class Target(Protocol):
    """What a head takes from the model it drafts for."""

    spec: ModelSpec
    max_context: int
    embed: Embedding
    head: LMHead


class DraftEntries(KVLayers, Protocol):
    """What is kept, as draft models see it (`memory.DraftPool`).

    Attributes:
        features: [slots, feature_width], a state vector of the target for each token.
    """

    features: torch.Tensor


@dataclass(frozen=True, slots=True)
class DraftSizes:
    """What a draft model keeps of each token, and from where its attention begins.

    Attributes:
        num_layers, kv_heads, head_dim: of its keys and values.
        feature_width: elements of the target's state vector; 0 = it needs none.
        first: the first position of a row that has an entry.
    """

    num_layers: int
    kv_heads: int
    head_dim: int
    feature_width: int
    first: int


class DraftModel(Protocol):
    """Guesses what the target will say.

    Attributes:
        sizes: of what it keeps.
        vocabulary: int32 [v], the target's id of each of its own; None = they are the same.
    """

    sizes: DraftSizes
    vocabulary: torch.Tensor | None

    def slots(self) -> Iterator[Slot]:
        """Every tensor it needs."""

    def prepare(self, ops: Ops) -> None:
        """Fit the weights to the ops; once, after all slots are filled and the target is ready."""

    def tap(self) -> Tap | None:
        """A listener for one forward of the target; None if it reads nothing of it."""

    def observe(
        self, batch: ForwardBatch, ops: Ops, entries: DraftEntries, tap: Tap | None
    ) -> None:
        """Keep what is kept of the step's tokens; after the target's forward of the same batch."""

    def level(self, batch: ForwardBatch, ops: Ops, entries: DraftEntries) -> torch.Tensor:
        """Run one level of guesses; what is kept of them enters their slots.

        Args:
            batch: each token with its parent's slot in `previous`; `logit_idx` names them all.

        Returns:
            Logits [t, v] of what follows each.
        """

    def memory(self) -> int:
        """Bytes of its own weights and tables."""


class StandaloneDraft:
    """A whole small model with the target's vocabulary.

    Args:
        model: with its weights or still without.
    """

    vocabulary: torch.Tensor | None = None

    def __init__(self, model: Model) -> None:
        self._model = model
        spec = model.spec
        self.sizes = DraftSizes(spec.num_layers, spec.kv_heads, spec.head_dim, 0, first=0)
        self._attention = EntryAttention()

    def slots(self) -> Iterator[Slot]:
        """All tensors of the model."""
        return self._model.slots()

    def prepare(self, ops: Ops) -> None:
        """See `Model.prepare`."""
        self._model.prepare(ops)

    def tap(self) -> Tap | None:
        """It reads ids alone."""
        return None

    def observe(
        self, batch: ForwardBatch, ops: Ops, entries: DraftEntries, tap: Tap | None
    ) -> None:
        """Its own keys and values of the step's tokens."""
        self._model.forward(self._attention.over(batch), ops, entries)

    def level(self, batch: ForwardBatch, ops: Ops, entries: DraftEntries) -> torch.Tensor:
        """Its own forward and head."""
        hidden = self._model.forward(self._attention.over(batch), ops, entries)
        return self._model.logits(hidden, ops)

    def memory(self) -> int:
        """Bytes of the model."""
        return self._model.memory_report().total


class EntryAttention(OpsAttention):
    """The ops' own attention over the metadata of a plan that was made for another model."""

    name = "draft"

    def supports(self, needs: AttentionNeeds) -> Support:
        """Whatever the ops can do."""
        return Support(True)

    def over(self, batch: ForwardBatch) -> ForwardBatch:
        """The same step; what the target's backend found out about it, and the target's adapters,
        are left aside."""
        meta = replace(batch.plan.meta, trunk_lens=None)
        return replace(batch, backend=self, plan=OpsPlan(meta), lora=None, logit_lora=None)
