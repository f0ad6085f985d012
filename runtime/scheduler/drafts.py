"""Candidates behind running rows: who gets some, what of a proposal is worth running, what is kept.

Law: a kept candidate is the id that plain decoding would have taken in its place, because the
target samples there as it would have sampled: the same logits, parameters, seed, position, mask and
forced ids. Nothing here, nor in a drafter, can change an output. Knows nothing of how drafters
guess, and of no memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.drafting import MAX_GUESSES, Drafter, DraftRow, StepDrafter
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import NOBODY, DraftTree
from branchline.runtime.scheduler.constrained_draft import constrained, constrained_there
from branchline.runtime.scheduler.device_matches import DeviceMatches, is_free
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.pace import Decision, Pace
from branchline.runtime.scheduler.proposed import check_tree, pruned

logger = logging.getLogger(__name__)

SLOW_WALK_S = 0.1
"""CPU seconds of the loop thread for a walk of a constraint through a tree. Who takes more holds up
everyone, and gets no more guesses."""

NO_GROWTH: Mapping[Request, int] = MappingProxyType({})

_NO_SLOTS = np.zeros(0, dtype=np.int32)


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
        device_matches: what it has found; None = it does not look up.
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
        self.device_matches = DeviceMatches() if looked_up else None
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._max_nodes = max_nodes
        self._max_depth = max_depth
        self._pace = self._free_pace = pace  # of the step that is planned
        self._constrained_pace = None if pace is None else pace.another()
        self._wanted: dict[str, int] = {}
        self._slow: set[str] = set()  # requests whose constraint takes too long over a tree
        self._asked_s = 0.0  # spent on asking rows since the last step was over

    def in_step(self, request: Request) -> bool:
        """Whether the worker guesses for a row: then there is `reserve`, else `propose`."""
        if self.device_matches is not None:
            return is_free(request)
        return isinstance(self._drafter, StepDrafter)

    def kept_there(self, request: Request) -> bool:
        """Whether the worker can keep the guesses of a row that are right: it is told what each id
        may be, and nothing else counts."""
        if self.device_matches is not None:
            return is_free(request)
        enough = request.output_len >= request.sampling.min_tokens
        return enough and not request.sampling.has_penalties

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
        if request.sampling.speculative is False or request.id in self._slow:
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
        if self.device_matches is not None:  # a chain; behind one in flight it may pass the end
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
            more = growth.get(request, 0)
            known = 1 if more > 1 else request.sampled_len - request.planned_len
            # Of a row that follows, what is kept beyond its output's end is dropped.
            depth = self._max_depth if more > 1 else self.depth(request, more)
            if request.planned_len > 0 and known <= most:
                levels = min(min(depth, nodes) + known - 1, most)
                found.append((request, nodes, levels, more > 1))
        in_place = all(self.kept_there(request) for request, *_ in found)
        drafts = {request: _reserved(*rest, in_place) for request, *rest in found}
        for request, draft in drafts.items():
            if request.matcher is not None and request not in growth:
                drafts[request] = replace(draft, allowed=self._allowed(request))
        return drafts

    def learn(self, request: Request, draft: Draft, tree: DraftTree, known: Int32Array) -> Draft:
        """A draft of places, once the worker has made their candidates.

        Args:
            known: what the constraint has forced behind the row since the step was planned.
        """
        empty = frozenset(np.flatnonzero(tree.parents == NOBODY).tolist())
        if request.matcher is None:  # not `replace`, which takes long for what it does
            places = tree, draft.forced, draft.matchers, empty, draft.asked
            return Draft(*places, follows=draft.follows, in_place=draft.in_place)
        words, begin = -(-self._vocab_size // 32), time.thread_time()
        made = constrained_there(request, request.matcher, tree, draft, known.tolist(), words)
        if time.thread_time() - begin > SLOW_WALK_S:
            self._slow.add(request.id)
        return made

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

    def goes_on_resting(self, rows: int) -> bool:
        """`due` would say no, whatever they are, of about so many rows without constraints; where
        it does, that step is decided."""
        pace = self._pace
        return pace is not None and pace is self._free_pace and pace.goes_on_resting(rows)

    def finished(self, request: Request) -> None:
        """The sequence has ended."""
        self._slow.discard(request.id)
        if not isinstance(self._drafter, StepDrafter):
            self._drafter.finished(request.id)
        if self.device_matches is not None:
            self.device_matches.finished(request)
        if self._free_pace is not None and self._constrained_pace is not None:
            self._free_pace.finished(request.id)
            self._constrained_pace.finished(request.id)

    def _kinds(self, requests: Sequence[Request]) -> dict[str, int]:
        """Rows that promise something, by their names, and guesses of which kind."""
        found, asked = {}, requests
        if self.device_matches is not None:
            quoting = self.device_matches.quoting(requests)
            found = {r.id: kind for r, kind in quoting if self.depth(r) > 0}
            asked = self.device_matches.others(requests)
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
                draft = constrained(request, request.matcher, tree, nodes, self.depth(request))
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
) -> tuple[DraftTree, tuple[int, ...], tuple[None, ...]]:
    """Tree, forced ids and matchers of n places whose candidates are not known."""
    none = np.zeros(n, dtype=np.int32)
    return DraftTree(none, none - 1, none), (-1,) * (n + 1), (None,) * (n + 1)


@lru_cache(maxsize=4 * MAX_GUESSES)
def _reserved(n: int, levels: int, follows: bool, in_place: bool) -> Draft:
    """n places for candidates of a row without a constraint."""
    return Draft(*_places(n), asked=n, levels=levels, follows=follows, in_place=in_place)
