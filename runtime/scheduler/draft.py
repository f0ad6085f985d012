"""Candidates behind one row's last token, and which of them are kept. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.protocols import MaskSource
from branchline.runtime.core.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Draft:
    """Candidates that a step runs behind a row's last token, all of them sampled.

    A place is the row's last token (place 0) or candidate i (place i + 1).

    Attributes:
        tree: n candidates.
        forced: n + 1 ids that the constraint lets follow each place, whatever is sampled there;
            -1 = the sampled one.
        matchers: n + 1 places in the constraint where the masks begin, see `MaskSource`. Place 0 is
            the request's own matcher, which is not in the list.
        forced_nodes: candidates that are no guesses: forced behind one, or places left empty.
        asked: guesses that there could have been.
        levels: where the worker makes the candidates and the tree is n places yet: levels of
            guesses, those of known ids behind the first included; 0 = the tree is known.
        allowed: then, what may come first; None = all.
        follows: then, the row's step before is in flight, and decides where the candidates begin.
        in_place: the worker moves what it keeps to where it belongs.
        left: ids of the output that are known already, and behind what the step can reach.
    """

    tree: DraftTree
    forced: tuple[int, ...]
    matchers: tuple[MaskSource, ...]
    forced_nodes: frozenset[int] = frozenset()
    asked: int = 0
    levels: int = 0
    allowed: Int32Array | None = None
    follows: bool = False
    in_place: bool = False
    left: int = 0

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def guesses(self) -> int:
        """Candidates that are guesses."""
        return len(self.tree) - len(self.forced_nodes)

    @property
    def height(self) -> int:
        """Candidates that can be kept at most."""
        return self.levels or int(self.tree.depths.max(initial=-1)) + 1

    def kept(self, sampled: Sequence[int], bad: Container[int]) -> list[int]:
        """The candidates that are right, from the first level down.

        Args:
            sampled: n + 1 ids, of each place.
            bad: places where nothing could be sampled.
        """
        parents, tokens = self.tree.parents.tolist(), self.tree.token_ids.tolist()
        children = {key: node for node, key in enumerate(zip(parents, tokens, strict=True))}
        path: list[int] = []
        node: int | None = -1
        while node is not None:
            place = node + 1
            following = self.forced[place]
            if following < 0:
                if place in bad:
                    break
                following = sampled[place]
            node = children.get((place - 1, following))
            if node is not None:
                path.append(node)
        return path
