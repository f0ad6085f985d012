"""What a constraint leaves of a tree of candidates: which may be kept, what is forced behind each,
and where its mask begins.

Law: every place has the mask and the forced id that it would have in plain decoding. Knows nothing
of drafters and of no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import NOBODY, DraftTree, GrowingTree
from branchline.runtime.scheduler.draft import Draft


class _Walk:
    """The places of a constrained tree, each with its matcher and the ids forced behind it.

    A run of forced ids goes on as it was told at its beginning, up to an id that is refused, as in
    `Committer.force`.

    Args:
        known: ids that the request has behind place 0 already; the matcher stands behind them.
    """

    def __init__(self, request: Request, matcher: TokenMatcher, known: Sequence[int] = ()) -> None:
        self.tree = GrowingTree()
        self.matchers: list[TokenMatcher] = [matcher]
        self.runs: list[list[int]] = [list(known)]
        self.known = [len(known)]  # of each place's run, so many ids have been accepted
        self._forces = request.sampling.logprobs is None

    def try_add(self, token: int, parent: int) -> int | None:
        """The new candidate; None where it may not come."""
        if not self.step(token, parent):
            return None
        return self.tree.add(token, parent)

    def step(self, token: int, parent: int) -> bool:
        """Whether a candidate may come; its place is the next one then."""
        run = self.runs[parent + 1]
        if run and token != run[0]:
            return False
        matcher, known = self.matchers[parent + 1], self.known[parent + 1]
        if not known:
            matcher = matcher.fork()
            if not matcher.accept(token):
                return False
        if run:
            rest = run[1:]
        else:
            forces = self._forces and not matcher.is_terminated()
            rest = list(matcher.forced_tokens()) if forces else []
        known = max(known - 1, 0)
        if rest and not known and not matcher.fork().accept(rest[0]):
            rest = []
        self.matchers.append(matcher)
        self.runs.append(rest)
        self.known.append(known)
        return True


def constrained(
    request: Request, matcher: TokenMatcher, proposed: DraftTree, max_nodes: int, max_depth: int
) -> Draft:
    """What the constraint leaves of a tree, and behind it what it forces."""
    walk = _Walk(request, matcher)
    places: dict[int, int] = {-1: -1}
    forced_at: set[int] = set()  # places whose forced id is a candidate
    for node, (token, parent) in enumerate(
        zip(proposed.token_ids.tolist(), proposed.parents.tolist(), strict=True)
    ):
        if parent in places:
            added = walk.try_add(token, places[parent])
            if added is not None:
                places[node] = added
                forced_at.add(places[parent])
    node = 0
    while node < len(walk.tree) < max_nodes:
        run = walk.runs[node + 1]
        if run and node not in forced_at and walk.tree.depths[node] + 1 < max_depth:
            walk.try_add(run[0], node)
        node += 1
    empty = frozenset(i for i, parent in enumerate(walk.tree.parents) if walk.runs[parent + 1])
    return _walked(request, walk, walk.tree.build(), empty, max_nodes)


def constrained_there(
    request: Request, matcher: TokenMatcher, tree: DraftTree, draft: Draft, known: list[int]
) -> Draft:
    """A tree that the step already runs, under the constraint: what that refuses stays as places
    that nothing leads to."""
    walk = _Walk(request, matcher, known)
    tokens, parents = tree.token_ids.tolist(), tree.parents.tolist()
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        stands = parent != NOBODY and (parent < 0 or parents[parent] != NOBODY)
        if not (stands and walk.step(token, parent)):
            parents[node] = NOBODY
            walk.matchers.append(matcher)  # takes the place, and is not asked
            walk.runs.append([])
            walk.known.append(len(known))
    rest = frozenset(
        node for node, parent in enumerate(parents) if parent == NOBODY or walk.runs[parent + 1]
    )
    left = replace(tree, parents=np.array(parents, dtype=np.int32))
    made = _walked(request, walk, left, rest, draft.asked)
    unreached = max(min(walk.known) - 1, 0) if known else 0
    return replace(made, follows=draft.follows, in_place=draft.in_place, left=unreached)


def _walked(
    request: Request, walk: _Walk, tree: DraftTree, forced_nodes: frozenset[int], asked: int
) -> Draft:
    """The draft of a tree whose places have been walked."""
    forced = tuple(run[0] if run else -1 for run in walk.runs)
    masks: list[TokenMatcher | int | None] = [None]
    before = request.output_len - walk.known[0]  # ids up to place 0
    parents, depths = tree.parents.tolist(), tree.depths.tolist()
    for parent, depth, one, following in zip(
        parents, depths, walk.matchers[1:], forced[1:], strict=True
    ):
        if parent != NOBODY and following >= 0:
            masks.append(following)
            continue
        if parent == NOBODY or one.is_terminated():
            masks.append(None)
            continue
        enough = before + depth + 1 >= request.sampling.min_tokens
        masks.append(None if enough and one.is_accepting() else one)
    return Draft(tree, forced, tuple(masks), forced_nodes, asked)
