"""Candidates behind running rows: who gets some, what of a proposal is worth running, what is kept.

Law: a kept candidate is the id that plain decoding would have taken in its place, because the
target samples there as it would have sampled: the same logits, parameters, seed, position, mask and
forced ids. Nothing here, nor in a drafter, can change an output. Knows nothing of how drafters
guess, and of no memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.drafting import MAX_GUESSES, Drafter, DraftRow, StepDrafter
from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import NOBODY, DraftTree, GrowingTree
from branchline.runtime.scheduler.looked_up import LookedUp, is_free
from branchline.runtime.scheduler.pace import Decision, Pace
from branchline.runtime.scheduler.proposed import check_tree, pruned

logger = logging.getLogger(__name__)

NO_GROWTH: Mapping[Request, int] = MappingProxyType({})

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
        forced_nodes: candidates that are no guesses: forced behind one, or places left empty.
        asked: guesses that there could have been.
        levels: where the worker makes the candidates and the tree is n places yet: levels of
            guesses, those of known ids behind the first included; 0 = the tree is known.
        allowed: then, what may come first; None = all.
        follows: then, the row's step before is in flight, and decides where the candidates begin.
        in_place: the worker moves what it keeps to where it belongs.
    """

    tree: DraftTree
    forced: tuple[int, ...]
    matchers: tuple[TokenMatcher | None, ...]
    forced_nodes: frozenset[int] = frozenset()
    asked: int = 0
    levels: int = 0
    allowed: Int32Array | None = None
    follows: bool = False
    in_place: bool = False

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
        drafter: who guesses, the worker maybe.
        vocab_size: ids are below it.
        eos_ids: ids that end any output unless `ignore_eos`.
        max_nodes, max_depth: candidates of a row, and levels of its tree, at most.
        pace: decides how many rows get; None = as many as there can be. Steps with constrained rows
            take other times, and keep other guesses: they have one of their own.
        linked: the drafter is a model that reads the state of the token before each.
        chains: of a tree of guesses only its first path is run.
        looked_up: the worker looks up what free rows go on with, and tells who has something to
            quote; the drafter is asked about the others.

    Attributes:
        looked_up: what it has told; None = it does not.
    """

    def __init__(
        self,
        drafter: Drafter | StepDrafter,
        *,
        vocab_size: int,
        eos_ids: frozenset[int],
        max_nodes: int,
        max_depth: int,
        pace: Pace | None = None,
        linked: bool = True,
        chains: bool = False,
        looked_up: bool = False,
    ) -> None:
        self.linked = linked
        self._chains = chains
        self.looked_up = LookedUp() if looked_up else None
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._max_nodes = max_nodes
        self._max_depth = max_depth
        self._pace = self._free_pace = pace  # of the step that is planned
        self._constrained_pace = None if pace is None else pace.another()
        self._wanted: dict[str, int] = {}
        self._asked_s = 0.0  # spent on asking rows since the last step was over

    def in_step(self, request: Request) -> bool:
        """Whether the worker guesses for a row: then there is `reserve`, else `propose`."""
        if self.looked_up is not None:
            return is_free(request)
        return isinstance(self._drafter, StepDrafter)

    def due(self, requests: Sequence[Request], *, constrained: bool = True) -> bool:
        """Whether the next step should wait for the one before, to run candidates.

        Args:
            requests: all decoding rows.
            constrained: some of them may be.
        """
        if self._pace is None:
            self._wanted = dict.fromkeys(self._kinds(requests), self._max_nodes)
            return bool(self._wanted)
        free = not constrained or all(request.matcher is None for request in requests)
        pace = self._pace = self._free_pace if free else self._constrained_pace
        assert pace is not None, "both are there or none"
        self._wanted = {}
        if pace.rests(len(requests)):
            return False
        kinds = self._kinds(requests)
        if not kinds:
            pace.asked(len(requests))
            return False
        counts = pace.guesses(list(kinds), len(requests), list(kinds.values()))
        self._wanted = dict(zip(kinds, counts, strict=True))
        return any(counts)

    def depth(self, request: Request, growth: int = 0) -> int:
        """Levels that a tree behind `request` may have; 0 = it gets none.

        The last id of an output needs no entry, so no candidate stands in its place.

        Args:
            growth: ids that the row may have got by then.
        """
        if request.sampling.speculative is False:
            return 0
        return max(0, min(self._max_depth, request.max_len - request.length - 1 - growth))

    def nodes(self, request: Request, room: int, growth: int = 0) -> int:
        """Candidates to ask for, where `room` are possible.

        Args:
            growth: ids that the row may get by a step in flight. It gets none where that is likely
                to end the output: unless nearly all of its guesses are kept.
        """
        depth = self.depth(request, min(growth, 1))
        if depth == 0 or (growth and request.max_len - request.length < max(growth - 2, 3)):
            return 0
        if self.looked_up is not None:  # a chain; behind one in flight it may pass the end
            return min(self._wanted.get(request.id, 0), room, room if growth > 1 else depth)
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
        assert not isinstance(self._drafter, StepDrafter), "the worker is not asked"
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
            if tree is not None and self._chains:
                tree = tree.first_path()
            draft = None if tree is None else self._draft(request, tree, nodes)
            if draft is not None:
                found[request] = draft
        return found

    def reserve(
        self, rows: Sequence[tuple[Request, int]], growth: Mapping[Request, int] = NO_GROWTH
    ) -> dict[Request, Draft]:
        """Places for candidates that the worker will make.

        Args:
            rows: requests, and how many candidates each has slots for.
            growth: ids that rows may get in a step that is in flight; more than one where it has
                candidates, so that how many is not known.
        """
        drafter = self._drafter
        most = drafter.levels if isinstance(drafter, StepDrafter) else self._max_depth
        found = []
        for request, nodes in rows:
            known = request.sampled_len - request.planned_len
            more = growth.get(request, 0)
            # Of a row that follows, what is kept beyond its output's end is dropped.
            depth = self._max_depth if more > 1 else self.depth(request, more)
            if request.planned_len > 0 and known <= most:
                levels = min(min(depth, nodes) + known - 1, most)
                found.append((request, nodes, levels, more > 1))
        in_place = all(is_free(request) for request, *_ in found)
        drafts = {request: _reserved(*rest, in_place) for request, *rest in found}
        for request, draft in drafts.items():
            if request.matcher is not None:
                drafts[request] = replace(draft, allowed=self._allowed(request))
        return drafts

    def learn(self, request: Request, draft: Draft, tree: DraftTree) -> Draft:
        """A draft of places, once the worker has made their candidates."""
        empty = frozenset(np.flatnonzero(tree.parents == NOBODY).tolist())
        if request.matcher is None:  # not `replace`, which takes long for what it does
            places = tree, draft.forced, draft.matchers, empty, draft.asked
            return Draft(*places, follows=draft.follows, in_place=draft.in_place)
        return _constrained_there(request, request.matcher, tree, draft)

    def checked(self, request: Request, draft: Draft, path: Sequence[int]) -> None:
        """These candidates of a draft were kept."""
        request.progress.drafted_tokens += draft.guesses
        if self._pace is not None:
            free = [node for node in range(len(draft)) if node not in draft.forced_nodes]
            ranks = {node: rank for rank, node in enumerate(free)}
            kept = [ranks[node] for node in path if node in ranks]
            self._pace.checked(request.id, draft.asked, kept, draft.guesses)

    @property
    def decision(self) -> Decision | None:
        """What the step that is planned has been given guesses by."""
        return None if self._pace is None else self._pace.decision

    def stepped(
        self,
        rows: int,
        guesses: int,
        seconds: float,
        *,
        waited: bool = False,
        decision: Decision | None = None,
    ) -> None:
        """A step of decoding rows alone is over, so long after the one before.

        Args:
            waited: see `Pace.stepped`.
            decision: that it was planned by.
        """
        asked_s, self._asked_s = self._asked_s, 0.0
        if self._pace is not None:
            self._pace.stepped(
                rows, guesses, seconds, waited=waited, asked_s=asked_s, decision=decision
            )

    def resting(self, rows: int) -> bool:
        """`due` would say no, whatever they are, of about so many rows without constraints."""
        return (pace := self._pace) is not None and pace is self._free_pace and pace.resting(rows)

    def finished(self, request: Request) -> None:
        """The sequence has ended."""
        if not isinstance(self._drafter, StepDrafter):
            self._drafter.finished(request.id)
        if self.looked_up is not None:
            self.looked_up.finished(request)
        if self._free_pace is not None and self._constrained_pace is not None:
            self._free_pace.finished(request.id)
            self._constrained_pace.finished(request.id)

    def _kinds(self, requests: Sequence[Request]) -> dict[str, int]:
        """Rows that promise something, by their names, and guesses of which kind."""
        found, asked = {}, requests
        if self.looked_up is not None:
            quoting = self.looked_up.quoting(requests)
            found = {r.id: kind for r, kind in quoting if self.depth(r) > 0}
            asked = self.looked_up.others(requests)
        if isinstance(self._drafter, StepDrafter):
            return {request.id: 1 for request in asked if self.depth(request) > 0}
        if not asked:
            return found
        begin = time.perf_counter()
        for request in asked:
            if self.depth(request) > 0 and (kind := self._promising(request, self._drafter)):
                found[request.id] = kind
        self._asked_s += time.perf_counter() - begin
        return found

    def _promising(self, request: Request, drafter: Drafter) -> int:
        try:
            return drafter.promising(self._row(request, self._max_nodes, _NO_SLOTS))
        except Exception:
            logger.exception("the drafter failed")
            return 0

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

    def _allowed(self, request: Request) -> Int32Array | None:
        """What the constraint lets follow the known ids; None = everything."""
        if request.matcher is None:
            return None
        bitmask = np.full((1, -(-self._vocab_size // 32)), -1, dtype=np.int32)
        return bitmask[0] if request.matcher.fill(bitmask, 0) else None

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


@lru_cache(maxsize=MAX_GUESSES)
def _places(
    n: int,
) -> tuple[DraftTree, tuple[int, ...], tuple[TokenMatcher | None, ...]]:
    """Tree, forced ids and matchers of n places whose candidates are not known."""
    none = np.zeros(n, dtype=np.int32)
    return DraftTree(none, none - 1, none), (-1,) * (n + 1), (None,) * (n + 1)


@lru_cache(maxsize=4 * MAX_GUESSES)
def _reserved(n: int, levels: int, follows: bool, in_place: bool) -> Draft:
    """n places for candidates of a row without a constraint."""
    return Draft(*_places(n), asked=n, levels=levels, follows=follows, in_place=in_place)


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
        if not self.step(token, parent):
            return None
        return self.tree.add(token, parent)

    def step(self, token: int, parent: int) -> bool:
        """Whether a candidate may come; its place is the next one then."""
        run = self.runs[parent + 1]
        if run and token != run[0]:
            return False
        matcher = self.matchers[parent + 1].fork()
        if not matcher.accept(token):
            return False
        if run:
            rest = run[1:]
        else:
            forces = self._forces and not matcher.is_terminated()
            rest = list(matcher.forced_tokens()) if forces else []
        if rest and not matcher.fork().accept(rest[0]):
            rest = []
        self.matchers.append(matcher)
        self.runs.append(rest)
        return True


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
    empty = frozenset(i for i, parent in enumerate(walk.tree.parents) if walk.runs[parent + 1])
    return _walked(request, walk, walk.tree.build(), empty, max_nodes)


def _constrained_there(
    request: Request, matcher: TokenMatcher, tree: DraftTree, draft: Draft
) -> Draft:
    """A tree that the step already runs, under the constraint: what that refuses stays as places
    that nothing leads to."""
    walk = _Walk(request, matcher)
    tokens, parents = tree.token_ids.tolist(), tree.parents.tolist()
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        stands = parent != NOBODY and (parent < 0 or parents[parent] != NOBODY)
        if not (stands and walk.step(token, parent)):
            parents[node] = NOBODY
            walk.matchers.append(matcher)  # takes the place, and is not asked
            walk.runs.append([])
    rest = frozenset(
        node for node, parent in enumerate(parents) if parent == NOBODY or walk.runs[parent + 1]
    )
    left = replace(tree, parents=np.array(parents, dtype=np.int32))
    return replace(_walked(request, walk, left, rest, draft.asked), in_place=draft.in_place)


def _walked(
    request: Request, walk: _Walk, tree: DraftTree, forced_nodes: frozenset[int], asked: int
) -> Draft:
    """The draft of a tree whose places have been walked."""
    forced = tuple(run[0] if run else -1 for run in walk.runs)
    masks: list[TokenMatcher | None] = [None]
    parents, depths = tree.parents.tolist(), tree.depths.tolist()
    for parent, depth, one, following in zip(
        parents, depths, walk.matchers[1:], forced[1:], strict=True
    ):
        if parent == NOBODY or following >= 0 or one.is_terminated():
            masks.append(None)
            continue
        enough = request.output_len + depth + 1 >= request.sampling.min_tokens
        masks.append(None if enough and one.is_accepting() else one)
    return Draft(tree, forced, tuple(masks), forced_nodes, asked)
