"""What a constraint says of a tree that a step already runs, before anything is sampled in it.

Law: every place has the mask and the forced id that it would have in plain decoding. One matcher
goes along the branches and back, and writes the masks on its way: to copy one for each place costs
more than all that is asked of it there. Knows nothing of drafters and of no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.protocols import TokenMatcher, Visit
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import NOBODY, DraftTree
from branchline.runtime.errors import ConstraintError


@dataclass(frozen=True, slots=True)
class Walked:
    """A tree of n candidates under a constraint. A place is the row's last token (place 0) or
    candidate i (place i + 1).

    Attributes:
        parents: int32 [n], `NOBODY` where the constraint refuses a candidate or one before it.
        forced: n + 1 ids that it lets follow each place, whatever is sampled; -1 = the sampled one.
        masks: n + 1 of what may be sampled, see `Draft.matchers`; place 0 has none here.
        unreached: of the ids that are known, so many lie behind all candidates but one.
    """

    parents: Int32Array
    forced: tuple[int, ...]
    masks: tuple[int | Int32Array | None, ...]
    unreached: int


def walked(
    request: Request, matcher: TokenMatcher, tree: DraftTree, known: Sequence[int], words: int
) -> Walked:
    """Walk through a tree.

    Args:
        matcher: of the request; left where it is.
        known: ids that the request has behind place 0 already; the matcher stands behind them.
        words: of a mask.
    """
    walk = _Walk(request, matcher, tree, known, words)
    walk.run()
    return Walked(
        walk.left(),
        tuple([run[0] if run else -1 for run in walk.runs]),
        tuple(walk.masks),
        max(min(walk.known) - 1, 0) if known else 0,
    )


class _Walk:
    """A run of forced ids goes on as it was told at its beginning, up to an id that is refused, as
    in `Committer.force`.

    Attributes:
        runs: ids forced behind each place.
        known: of each place's run, so many ids are behind the matcher already.
        masks: see `Walked`.
    """

    def __init__(
        self,
        request: Request,
        matcher: TokenMatcher,
        tree: DraftTree,
        known: Sequence[int],
        words: int,
    ) -> None:
        count = len(tree) + 1
        self.runs: list[Sequence[int]] = [()] * count
        self.runs[0] = known
        self.known = [len(known)] * count
        self.masks: list[int | Int32Array | None] = [None] * count
        self._tokens: list[int] = tree.token_ids.tolist()
        self._parents: list[int] = tree.parents.tolist()
        self._depths: list[int] = tree.depths.tolist()
        self._children: list[list[int]] = [[] for _ in range(count)]
        for node, parent in enumerate(self._parents):
            if parent != NOBODY:
                self._children[parent + 1].append(node)
        self._stands = [False] * len(tree)
        self._forces = request.sampling.logprobs is None
        before = request.output_len - len(known)  # ids up to place 0
        self._least = request.sampling.min_tokens - before - 1  # depth from which it may end
        self._origin, self._cursor = matcher, matcher.fork()
        self._words = np.empty((count, words), dtype=np.int32)
        self._path: list[int] = []  # candidates from place 0 to where the cursor is

    def run(self) -> None:
        """Through all branches."""
        waiting = self._children[0].copy()
        while waiting:
            node = waiting.pop()
            self._back(self._parents[node])
            if self._enter(node, self._parents[node] + 1):
                self._stands[node] = True
                self._path.append(node)
                waiting += self._children[node + 1]

    def left(self) -> Int32Array:
        """The parents of the candidates that stand."""
        both = zip(self._parents, self._stands, strict=True)
        return np.array([p if stands else NOBODY for p, stands in both], dtype=np.int32)

    def _back(self, to: int) -> None:
        """Go back until the path ends with candidate `to`; -1 = to place 0."""
        path, steps = self._path, 0
        while path and path[-1] != to:
            steps += self.known[self._parents[path.pop()] + 1] == 0
        if steps:
            self._cursor.rollback(steps)

    def _enter(self, node: int, before: int) -> bool:
        """Whether a candidate may come behind place `before`, where the cursor is; the cursor is
        behind it then, and what follows there is known."""
        place = node + 1
        token, run, known = self._tokens[node], self.runs[before], self.known[before]
        if run and token != run[0]:
            return False
        if known:
            self.known[place] = known - 1
            if known > 1:
                self.runs[place], self.masks[place] = run[1:], run[1]
            else:
                self._stand(node)
            return True
        self.known[place] = 0
        try:
            free = self._depths[node] >= self._least
            found = self._cursor.visit(token, self._words, place, free=free)
            if found is None:
                return False
            rest, masked = found
            wanted = run[1:] if run else rest if self._forces else ()
            if wanted != rest:
                rest, masked = self._other_run(wanted, place, found)
        except ConstraintError:
            self._give_up(node)
            return True
        if rest:
            self.runs[place], self.masks[place] = rest, rest[0]
        elif masked:
            self.masks[place] = self._words[place]
        return True

    def _other_run(self, wanted: Sequence[int], place: int, found: Visit) -> Visit:
        """What there is at a place where the ids that follow are others than the constraint says
        now."""
        if wanted and self._cursor.accept(wanted[0]):
            self._cursor.rollback(1)
            return Visit(wanted, False)
        masked = self._cursor.fill(self._words, place) if found.forced else found.masked
        return Visit((), masked)

    def _stand(self, node: int) -> None:
        """The mask of a place where the request stands: all ids before it are known."""
        here, place = self._cursor, node + 1
        free = self._depths[node] >= self._least
        if here.is_terminated() or (free and here.is_accepting()):
            return
        try:
            if here.fill(self._words, place):
                self.masks[place] = self._words[place]
        except ConstraintError:
            self._give_up(node)

    def _give_up(self, node: int) -> None:
        """Behind a candidate the constraint gives up: nothing may follow there, which is another
        place's business only if that comes to it, too."""
        self._words[node + 1] = 0
        self.masks[node + 1] = self._words[node + 1]
        self._cursor = self._origin.fork()
        for one in (*self._path, node):
            if self.known[self._parents[one] + 1] == 0:
                self._cursor.accept(self._tokens[one])
