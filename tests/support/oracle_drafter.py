"""A drafter that knows what will come, and errs on purpose."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree


class OracleDrafter:
    """Proposes trees around a scripted continuation.

    Args:
        scripts: whole outputs by request id; sequences without one get random guesses.
        vocab: ids are below it.
        right: probability that a level of a tree has the scripted id.
        width: candidates of a level at most.
        silent: probability that a row gets nothing, or is not promising.
        seed: of everything random.

    Attributes:
        proposed: candidates so far.
        ended: ids of sequences that were told to be over.
        rows: most rows that were asked for at once.
    """

    def __init__(
        self,
        scripts: dict[str, list[int]],
        vocab: int,
        *,
        right: float = 0.8,
        width: int = 3,
        silent: float = 0.1,
        seed: int = 0,
    ) -> None:
        self._scripts = scripts
        self._vocab = vocab
        self._right = right
        self._width = width
        self._silent = silent
        self._random = random.Random(seed)
        self.proposed = 0
        self.ended: list[str] = []
        self.rows = 0

    def promising(self, row: DraftRow) -> bool:
        return self._random.random() >= self._silent

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        self.rows = max(self.rows, len(rows))
        return [self._tree(row) for row in rows]

    def finished(self, request_id: str) -> None:
        self.ended.append(request_id)

    def _tree(self, row: DraftRow) -> DraftTree | None:
        r = self._random
        assert row.max_nodes >= 1 and row.max_depth >= 1
        assert len(row.slots) == len(row.ids) + row.max_nodes
        assert row.computed_len < len(row.ids)
        if r.random() < self._silent:
            return None
        script = self._scripts.get(row.request_id, [])
        coming = script[len(row.ids) - row.prompt_len :]
        tokens, parents, depths = [], [], []
        last = -1
        for depth in range(min(row.max_depth, r.randint(1, row.max_depth))):
            level = {r.randrange(self._vocab) for _ in range(r.randint(0, self._width - 1))}
            right = depth < len(coming) and r.random() < self._right
            if right:
                level.add(coming[depth])
            following = -1
            order = sorted(level)
            r.shuffle(order)
            for token in order:
                if len(tokens) == row.max_nodes:
                    break
                if right and token == coming[depth]:
                    following = len(tokens)
                tokens.append(token)
                parents.append(last)
                depths.append(depth)
            if following < 0:
                break
            last = following
        if not tokens:
            return None
        self.proposed += len(tokens)
        return DraftTree(*(np.array(part, dtype=np.int32) for part in (tokens, parents, depths)))
