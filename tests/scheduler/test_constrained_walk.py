"""A constrained tree that a step runs already: every place is told what plain decoding is.
The oracle copies a matcher for each place and walks down to it from the start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from branchline.runtime.core.protocols import TokenMatcher, Visit
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.core.tree import NOBODY, DraftTree, GrowingTree
from branchline.runtime.errors import ConstraintError
from branchline.runtime.grammar.base import Bitmask
from branchline.runtime.scheduler.constrained_walk import Walked, walked
from tests.grammar.conformance.test_matchers import BACKENDS, WORDS
from tests.grammar.conformance.tiny_vocabulary import EOS, TOKENS

PATTERNS = [
    r"ab(ab|1)abab",
    r"(aba|bab)ab1 a",
    r"a{2,3}b",
    r"\w+",
    r"(ab)*",
    r"b(ébab| 1 )aba11",
    r"(?:a|b){3}",
]
TREES = 12


def request_of(output_len: int, *, logprobs: int | None, min_tokens: int) -> Request:
    sampling = SimpleNamespace(logprobs=logprobs, min_tokens=min_tokens)
    return cast("Request", SimpleNamespace(sampling=sampling, output_len=output_len))


def allowed(matcher: TokenMatcher) -> list[int]:
    return [token for token in range(len(TOKENS)) if matcher.fork().accept(token)]


def tree_of(matcher: TokenMatcher, known: list[int], rng: np.random.Generator) -> DraftTree:
    """Of 20 candidates, most of them allowed, with two empty places; `known` begins it, mostly."""
    tree = GrowingTree()
    places: list[tuple[int, TokenMatcher | None, list[int]]] = [(-1, matcher, known)]
    for node in range(20):
        if node in (7, 13):
            tree.add(0, -1)
            continue
        parent, here, rest = places[int(rng.integers(len(places)))]
        likely = rest[:1] or ([] if here is None else allowed(here))
        token = int(rng.integers(len(TOKENS)))
        if likely and rng.random() < 0.8:
            token = likely[int(rng.integers(len(likely)))]
        elif rng.random() < 0.1:
            token = EOS[0]
        place = tree.add(token, parent)
        going_on = here is not None and token in likely
        behind = here.fork() if going_on and here is not None else None
        if behind is not None and not rest:
            assert behind.accept(token)
        places.append((place, behind, rest[1:] if going_on else []))
    made = tree.build()
    parents = made.parents.copy()
    parents[[7, 13]] = NOBODY
    return DraftTree(made.token_ids, parents, made.depths)


def check_place(  # what plain decoding does behind the ids of a path
    matcher: TokenMatcher, request: Request, found: Walked, tree: DraftTree, node: int, known: int
) -> None:
    here, sampling = matcher.fork(), request.sampling
    path = [int(tree.token_ids[one]) for one in tree.path(node)]
    assert all(here.accept(token) for token in path[known:])
    mask, forced = found.masks[node + 1], found.forced[node + 1]
    ahead = here.forced_tokens() if sampling.logprobs is None and not here.is_terminated() else []
    if ahead:
        assert forced == mask == ahead[0]
        return
    assert forced == -1
    enough = request.output_len - known + len(path) >= sampling.min_tokens
    if here.is_terminated() or (enough and here.is_accepting()):
        assert mask is None
        return
    words = np.zeros((1, WORDS), dtype=np.int32)
    assert here.fill(words, 0)
    assert isinstance(mask, np.ndarray) and np.array_equal(mask, words[0])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("logprobs", "min_tokens"), [(None, 0), (None, 9), (2, 0)])
def test_every_place_is_told_what_plain_decoding_is(
    name: str, pattern: str, logprobs: int | None, min_tokens: int
) -> None:
    backend = BACKENDS[name]()
    rng = np.random.default_rng(len(pattern))
    stood = 0
    for _ in range(TREES):
        matcher = backend.compile(Constraint(kind="regex", text=pattern)).matcher()
        known: list[int] = []
        if logprobs is None:
            for _ in range(int(rng.integers(3))):
                options = [token for token in allowed(matcher) if token not in EOS]
                if options:
                    token = options[int(rng.integers(len(options)))]
                    assert matcher.accept(token)
                    known = matcher.accept_forced(int(rng.integers(1, 4)))
        before = matcher.fork()
        request = request_of(5 + len(known), logprobs=logprobs, min_tokens=min_tokens)
        tree = tree_of(matcher, known, rng)
        found = walked(request, matcher, tree, known, WORDS)
        parents = tree.parents.tolist()
        for node, parent in enumerate(found.parents.tolist()):
            path = [int(tree.token_ids[one]) for one in tree.path(node)]
            down = matcher.fork()
            behind = path[len(known) :]
            may = parents[node] != NOBODY and path[: len(known)] == known[: len(path)]
            if parents[node] >= 0:
                may = may and found.parents[parents[node]] != NOBODY
            may = may and all(down.accept(token) for token in behind)
            assert parent == (parents[node] if may else NOBODY)
            if not may:
                assert found.masks[node + 1] is None and found.forced[node + 1] == -1
            elif len(path) < len(known):
                assert found.masks[node + 1] == found.forced[node + 1] == known[len(path)]
            elif not known or len(path) > len(known):
                check_place(matcher, request, found, tree, node, len(known))
                stood += 1
        assert found.forced[0] == (known[0] if known else -1) and found.masks[0] is None
        assert allowed(matcher) == allowed(before)
    assert stood


class Sick:
    """A matcher that gives up at one place, and is of no use to anyone who has been there."""

    def __init__(self, ids: tuple[int, ...] = (), *, fatal: tuple[int, ...]) -> None:
        self.ids, self.fatal, self.dead = ids, fatal, False

    def visit(self, token: int, bitmask: Bitmask, row: int, *, free: bool) -> Visit | None:
        return Visit((), self.fill(bitmask, row)) if self.accept(token) else None

    def accept(self, token: int) -> bool:
        if not self.dead:
            self.ids += (token,)
        return not self.dead

    def rollback(self, count: int) -> None:
        self.ids = self.ids[:-count]

    def fill(self, bitmask: Bitmask, row: int) -> bool:
        self.dead = self.dead or self.ids == self.fatal
        if self.dead:
            raise ConstraintError("the engine gave up", hint="")
        bitmask[row] = sum(self.ids)
        return True

    def fork(self) -> Sick:
        return Sick(self.ids, fatal=self.fatal)


def test_a_place_where_the_constraint_gives_up_is_closed_and_others_are_as_ever() -> None:
    matcher = Sick(fatal=(1, 2))
    parents = np.array([-1, 0, 1, 0, -1], dtype=np.int32)
    ids = np.array([1, 2, 4, 8, 16], dtype=np.int32)
    tree = DraftTree(ids, parents, np.array([0, 1, 2, 1, 0], dtype=np.int32))
    request = request_of(0, logprobs=None, min_tokens=0)
    found = walked(request, cast("TokenMatcher", matcher), tree, [], 2)
    assert found.parents.tolist() == parents.tolist()
    masks = [mask.tolist() for mask in found.masks[1:] if isinstance(mask, np.ndarray)]
    assert masks == [[1, 1], [0, 0], [7, 7], [9, 9], [16, 16]]
    assert not matcher.dead and matcher.ids == ()
