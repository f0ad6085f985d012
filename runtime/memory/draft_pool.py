"""What a draft model keeps of every token, in the slots of the target's own pool.

Invariant: slot s here belongs to the token whose keys and values the target keeps in its slot s, so
whoever shares, moves or frees slots there does it here without knowing. An entry depends on tokens
up to its own alone. The slots behind the target's are scratch: entries of guesses lie there while a
draft is made, and nobody refers to them afterwards.
"""

from __future__ import annotations

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.memory.kv_pool import MOVED_AT_ONCE, KVPool
from branchline.runtime.memory.types import Slots


class DraftPool(KVPool):
    """Keys and values of the draft's layers, and one state vector of the target for each token.

    Args:
        num_layers, kv_heads, head_dim: of the draft.
        feature_width: elements of a state vector; 0 = none is kept.
        num_pages, page_size: of the target's pool.
        scratch: slots on top.
        dtype: of keys and values.
        feature_dtype: of the state vectors.

    Attributes:
        features: [num_slots, feature_width], zero at first.
        first_scratch: the first slot that is no token's.
    """

    def __init__(
        self,
        num_layers: int,
        kv_heads: int,
        head_dim: int,
        feature_width: int,
        *,
        num_pages: int,
        page_size: int,
        scratch: int,
        dtype: torch.dtype,
        feature_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        pages = -(-scratch // page_size)
        super().__init__(
            num_layers,
            num_pages + pages,
            page_size,
            kv_heads,
            head_dim,
            dtype=dtype,
            device=device,
        )
        self.first_scratch = (num_pages + 1) * page_size
        self.features = torch.zeros(
            (self.num_slots, feature_width), dtype=feature_dtype, device=device
        )

    def free(self) -> None:
        """As the target's pool does, state vectors too."""
        super().free()
        self.features.untyped_storage().resize_(0)

    def copy_slots(self, src: torch.Tensor | Slots, dst: torch.Tensor | Slots) -> None:
        """As the target's pool does, state vectors too."""
        super().copy_slots(src, dst)
        if len(src) and self.features.shape[1]:
            device = self.features.device
            source = torch.as_tensor(src, dtype=torch.int64, device=device)
            target = torch.as_tensor(dst, dtype=torch.int64, device=device)
            self.features.index_copy_(0, target, self.features.index_select(0, source))

    def move_slots(self, ops: Ops, source: torch.Tensor, target: torch.Tensor) -> None:
        """As the target's pool does, state vectors too."""
        super().move_slots(ops, source, target)
        if self.features.shape[1]:
            states = self.features[None, :, None, :]
            for first in range(0, len(source), MOVED_AT_ONCE):
                part = slice(first, first + MOVED_AT_ONCE)
                ops.copy_slots(states, source[part], target[part])
