"""Quotations are looked up, everything else is guessed by a model.

Where a row's last ids have come before, what followed them is the better guess, costs nothing to
find and may be as long as there is room; a model looks a few levels ahead. Invariant: a row has the
proposal of one of the two, so each is judged by what is kept of its own. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchline.runtime.core.drafting import Drafter, DraftRow
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.speculative.ngram import NgramDrafter

LONG_MATCH = 8
"""Ids that must have come before; shorter runs come by chance, and a model sees more in them."""


class QuotingDrafter:
    """`Drafter` that asks another one about rows that quote nothing.

    Args:
        other: asked about those.
    """

    def __init__(self, other: Drafter) -> None:
        self._quotes = NgramDrafter(least_match=LONG_MATCH)
        self._other = other

    def promising(self, row: DraftRow) -> int:
        """See `Drafter`."""
        return self._quotes.promising(row) or self._other.promising(row)

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        """See `Drafter`."""
        trees = self._quotes.propose(rows)
        left = [index for index, tree in enumerate(trees) if tree is None]
        if left:
            asked = self._other.propose([rows[index] for index in left])
            for index, tree in zip(left, asked, strict=True):
                trees[index] = tree
        return trees

    def finished(self, request_id: str) -> None:
        """See `Drafter`."""
        self._quotes.finished(request_id)
        self._other.finished(request_id)
