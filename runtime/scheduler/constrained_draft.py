"""What a constraint leaves of a tree of candidates: which may be kept, what is forced behind each,
and where its mask begins.

Law: every place has the mask and the forced id that it would have in plain decoding. Knows nothing
of drafters and of no memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import NOBODY, DraftTree, GrowingTree
from branchline.runtime.scheduler.constrained_walk import walked
from branchline.runtime.scheduler.draft import Draft


class _Walk:
    """The places of a constrained tree that grows, each with its matcher and the ids forced behind
    it.

    A run of forced ids goes on as it was told at its beginning, up to an id that is refused, as in
    `Committer.force`.
    """

    def __init__(self, request: Request, matcher: TokenMatcher) -> None:
        self.tree = GrowingTree()
        self.matchers: list[TokenMatcher] = [matcher]
        self.runs: list[list[int]] = [[]]
        self._forces = request.sampling.logprobs is None

    def try_add(self, token: int, parent: int) -> int | None:
        """The new candidate; None where it may not come."""
        run = self.runs[parent + 1]
        if run and token != run[0]:
            return None
        matcher = self.matchers[parent + 1].after(token)
        if matcher is None:
            return None
        rest = run[1:]
        if not run and self._forces and not matcher.is_terminated():
            rest = matcher.forced_tokens()
        if rest and matcher.after(rest[0]) is None:
            rest = []
        self.matchers.append(matcher)
        self.runs.append(rest)
        return self.tree.add(token, parent)


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
    forced = frozenset(i for i, parent in enumerate(walk.tree.parents) if walk.runs[parent + 1])
    told = tuple([run[0] if run else -1 for run in walk.runs])
    return Draft(walk.tree.build(), told, _masks(request, walk), forced, max_nodes)


def constrained_there(
    request: Request,
    matcher: TokenMatcher,
    tree: DraftTree,
    draft: Draft,
    known: Sequence[int],
    words: int,
) -> Draft:
    """A tree that the step already runs, under the constraint: what that refuses stays as places
    that nothing leads to.

    Args:
        known: ids that the request has behind place 0 already; the matcher stands behind them.
        words: of a mask.
    """
    found = walked(request, matcher, tree, known, words)
    parents, forced = found.parents.tolist(), found.forced
    rest = [n for n, parent in enumerate(parents) if parent == NOBODY or forced[parent + 1] >= 0]
    return Draft(
        DraftTree(tree.token_ids, found.parents, tree.depths),
        forced,
        found.masks,
        frozenset(rest),
        draft.asked,
        follows=draft.follows,
        in_place=draft.in_place,
        left=found.unreached,
    )


def _masks(request: Request, walk: _Walk) -> tuple[TokenMatcher | int | None, ...]:
    """Where the masks of a tree's places begin; see `Draft.matchers`."""
    masks: list[TokenMatcher | int | None] = [None]
    least = request.sampling.min_tokens - request.output_len - 1
    for depth, matcher, run in zip(walk.tree.depths, walk.matchers[1:], walk.runs[1:], strict=True):
        if run:
            masks.append(run[0])
        elif matcher.is_terminated() or (depth >= least and matcher.is_accepting()):
            masks.append(None)
        else:
            masks.append(matcher)
    return tuple(masks)
