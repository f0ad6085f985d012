"""Places of a model where adapters may add to a layer's product.

Invariant: a site names its parts as the layer's tensors are named, in the order of the product's
rows. Knows nothing of adapters or of where their matrices lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from branchline.kernels.lora import LoraWeight

SiteKind = Literal["linear", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class LoraSite:
    """One layer.

    Attributes:
        kind: "embedding" looks rows up instead of multiplying; "head" is the model's last product.
        columns: width of the input; V for an embedding.
        parts: (name of the module, rows of its product) of each projection fused there.
        put: gives the layer the matrices of all slots; None = it has none any more.
    """

    kind: SiteKind
    columns: int
    parts: tuple[tuple[str, int], ...]
    put: Callable[[LoraWeight | None], None]

    @property
    def rows(self) -> int:
        """Rows of the whole product."""
        return sum(rows for _, rows in self.parts)
