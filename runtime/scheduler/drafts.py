"""Candidates behind running rows: who gets some, what of a proposal is worth running, what is kept.

Law: a kept candidate is the id that plain decoding would have taken in its place, because the
target samples there as it would have sampled: the same logits, parameters, seed, position, mask and
forced ids. Nothing here, nor in a drafter, can change an output. Knows nothing of how drafters
guess, and of no memory.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.drafting import Drafter, DraftRow
from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import DraftTree, GrowingTree
from branchline.runtime.scheduler.pace import Pace

logger = logging.getLogger(__name__)

_NO_SLOTS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Draft:
    """Candidates that a step runs behind a row's last token, all of them sampled.

    A place is the row's last token (place 0) or candidate i (place i + 1).

    Attributes:
        tree: n candidates.
        forced: n + 1 ids that the constraint lets follow each place, whatever is sampled there;
            -1 = the sampled one.
        matchers: n + 1 places in the constraint where the masks begin; None = no mask there. Place
            0 is the request's own matcher, which is not in the list.
        forced_nodes: candidates that are no guesses, but forced behind one.
        asked: guesses that there could have been.
    """

    tree: DraftTree
    forced: tuple[int, ...]
    matchers: tuple[TokenMatcher | None, ...]
    forced_nodes: frozenset[int] = frozenset()
    asked: int = 0

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def guesses(self) -> int:
        """Candidates that are guesses."""
        return len(self.tree) - len(self.forced_nodes)

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


class Drafts:
    """Asks the drafter, and makes of its trees what a step can run.

    Args:
        drafter: who guesses.
        vocab_size: ids are below it.
        eos_ids: ids that end any output unless `ignore_eos`.
        max_nodes, max_depth: candidates of a row, and levels of its tree, at most.
        pace: decides how many rows get; None = as many as there can be.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        vocab_size: int,
        eos_ids: frozenset[int],
        max_nodes: int,
        max_depth: int,
        pace: Pace | None = None,
    ) -> None:
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._max_nodes = max_nodes
        self._max_depth = max_depth
        self._pace = pace
        self._wanted: dict[str, int] = {}

    def due(self, requests: Sequence[Request]) -> bool:
        """Whether the next step should wait for the one before, to run candidates.

        Args:
            requests: all decoding rows.
        """
        if self._pace is None:
            return any(self.depth(r) > 0 and self._promising(r) for r in requests)
        self._wanted = {}
        if self._pace.rests(len(requests)):
            return False
        names = [r.id for r in requests if self.depth(r) > 0 and self._promising(r)]
        if names:
            counts = self._pace.guesses(names, len(requests))
            self._wanted = dict(zip(names, counts, strict=True))
        return any(self._wanted.values())

    def depth(self, request: Request) -> int:
        """Levels that a tree behind `request` may have; 0 = it gets none.

        The last id of an output needs no entry, so no candidate stands in its place.
        """
        if request.sampling.speculative is False:
            return 0
        return min(self._max_depth, request.max_len - request.length - 1)

    def nodes(self, request: Request, room: int) -> int:
        """Candidates to ask for, where `room` are possible."""
        if self.depth(request) == 0:
            return 0
        wanted = self._max_nodes if self._pace is None else self._wanted.get(request.id, 0)
        return min(wanted, room)

    def propose(
        self,
        rows: Sequence[tuple[Request, int]],
        slots: np.ndarray[tuple[int, int], np.dtype[np.int32]],
    ) -> dict[Request, Draft]:
        """Candidates for some of the requests.

        Args:
            rows: requests with nothing in flight, and how many candidates each has slots for.
            slots: the slot table.
        """
        wanted = [
            self._row(request, nodes, slots[request.row, : request.length + nodes])
            for request, nodes in rows
        ]
        try:
            trees = self._drafter.propose(wanted)
        except Exception:
            logger.exception("the drafter failed; %d rows run without candidates", len(rows))
            return {}
        found: dict[Request, Draft] = {}
        for (request, nodes), tree in zip(rows, trees, strict=True):
            draft = None if tree is None else self._draft(request, tree, nodes)
            if draft is not None:
                found[request] = draft
        return found

    def checked(self, request: Request, draft: Draft, path: Sequence[int]) -> None:
        """These candidates of a draft were kept."""
        request.progress.drafted_tokens += draft.guesses
        if self._pace is not None:
            free = [node for node in range(len(draft)) if node not in draft.forced_nodes]
            ranks = {node: rank for rank, node in enumerate(free)}
            kept = [ranks[node] for node in path if node in ranks]
            self._pace.checked(request.id, draft.asked, kept, draft.guesses)

    def stepped(self, rows: int, guesses: int, seconds: float) -> None:
        """A step of decoding rows alone is over, so long after the one before."""
        if self._pace is not None:
            self._pace.stepped(rows, guesses, seconds)

    def finished(self, request: Request) -> None:
        """The sequence has ended."""
        self._drafter.finished(request.id)
        if self._pace is not None:
            self._pace.finished(request.id)

    def _promising(self, request: Request) -> bool:
        try:
            return self._drafter.promising(self._row(request, self._max_nodes, _NO_SLOTS))
        except Exception:
            logger.exception("the drafter failed")
            return False

    def _row(self, request: Request, nodes: int, slots: Int32Array) -> DraftRow:
        source = request.source
        return DraftRow(
            row=request.row,
            ids=request.ids[: request.length],
            prompt_len=request.prompt_len,
            computed_len=request.computed_len,
            max_nodes=nodes,
            max_depth=self.depth(request),
            slots=slots,
            request_id=request.id,
            program_id=source.program_id,
            lane_id=source.lane_id,
            matcher=request.matcher,
            least=0.0 if self._pace is None else self._pace.least,
        )

    def _draft(self, request: Request, tree: DraftTree, nodes: int) -> Draft | None:
        """What of a proposal can be run; None when nothing is left of it."""
        try:
            check_tree(tree, nodes, self._vocab_size)
            tree = pruned(tree, self._ends(request), self.depth(request))
            if request.matcher is None:
                count = len(tree) + 1
                draft = Draft(tree, (-1,) * count, (None,) * count, asked=nodes)
            else:
                draft = _constrained(request, request.matcher, tree, nodes, self.depth(request))
        except Exception:
            logger.exception("a proposal for request %s cannot be run", request.id)
            return None
        return draft if len(draft) else None

    def _ends(self, request: Request) -> frozenset[int]:
        """Ids that are never part of the output."""
        own = frozenset(request.sampling.stop_token_ids)
        return own if request.sampling.ignore_eos else own | self._eos_ids


def check_tree(tree: DraftTree, max_nodes: int, vocab_size: int) -> None:
    """Raise `ValueError` where a drafter broke its promise."""
    tokens, parents, depths = (
        part.tolist() for part in (tree.token_ids, tree.parents, tree.depths)
    )
    n = len(tokens)
    if not n == len(parents) == len(depths) or n > max_nodes:
        raise ValueError(f"a tree of {n} candidates, {max_nodes} were asked for")
    for node, (token, parent, depth) in enumerate(zip(tokens, parents, depths, strict=True)):
        if not -1 <= parent < node:
            raise ValueError("a candidate stands before its parent")
        if depth != (0 if parent < 0 else depths[parent] + 1):
            raise ValueError("the depth of a candidate is not its parent's plus one")
        if not 0 <= token < vocab_size:
            raise ValueError("a candidate is no token of the model")


def pruned(tree: DraftTree, ends: frozenset[int], max_depth: int) -> DraftTree:
    """The tree without ids that end the output, deeper levels, and what stands behind either."""
    keep: Sequence[bool] = (tree.depths < max_depth).tolist()
    tokens = tree.token_ids.tolist()
    if all(keep) and ends.isdisjoint(tokens):
        return tree
    grown = GrowingTree()
    places: dict[int, int] = {-1: -1}
    for node, parent in enumerate(tree.parents.tolist()):
        if keep[node] and parent in places and tokens[node] not in ends:
            places[node] = grown.add(tokens[node], places[parent])
    return grown.build()


class _Walk:
    """The places of a constrained tree, each with its matcher and the ids forced behind it.

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
        matcher = self.matchers[parent + 1].fork()
        if not matcher.accept(token):
            return None
        if run:
            rest = run[1:]
        else:
            forces = self._forces and not matcher.is_terminated()
            rest = list(matcher.forced_tokens()) if forces else []
        if rest and not matcher.fork().accept(rest[0]):
            rest = []
        self.matchers.append(matcher)
        self.runs.append(rest)
        return self.tree.add(token, parent)


def _constrained(
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
    forced = tuple(run[0] if run else -1 for run in walk.runs)
    masks: list[TokenMatcher | None] = [None]
    for depth, one, following in zip(walk.tree.depths, walk.matchers[1:], forced[1:], strict=True):
        enough = request.output_len + depth + 1 >= request.sampling.min_tokens
        free = following >= 0 or one.is_terminated() or (enough and one.is_accepting())
        masks.append(None if free else one)
    nodes = frozenset(i for i, parent in enumerate(walk.tree.parents) if walk.runs[parent + 1])
    return Draft(walk.tree.build(), forced, tuple(masks), nodes, max_nodes)
