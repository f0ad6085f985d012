"""Guesses of draft models equal plain torch, however the target's tokens were computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.executor.draft_load import load_head, load_standalone
from branchline.runtime.executor.drafting import DraftSeed, Guesses, best_tree
from branchline.runtime.executor.host_draft import FURTHER, HostDraft, scratch_slots
from branchline.runtime.loading.eagle_checkpoint import EagleCheckpoint
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel
from tests.support.eagle_oracle import Oracle, write_head
from tests.support.model_driver import (
    Driver,
    Part,
    load_tiny,
    reference_logprobs,
    reference_model,
    tiny_llama,
)

WIDTH, DEPTH, VOCAB = 3, 4, 101
IDS = [1, 17, 5, 99, 42, 42, 8, 63, 12, 30, 3, 55, 20, 7]
CPU = torch.device("cpu")
HEADS: dict[str, dict[str, Any]] = {
    "1": {"version": 1, "input_norm": False},
    "1, own parts": {
        "version": 1,
        "own_embedding": True,
        "own_head": True,
        "fc_bias": True,
        "input_norm": True,
    },
    "3, mapped, own head": {"version": 3, "draft_vocab": 37, "own_head": True},
    "3, rows of the target's head": {"version": 3, "draft_vocab": 37, "layers": [0, 2, 4]},
    "3, whole vocabulary": {"version": 3, "own_embedding": True, "fc_bias": True},
}


@dataclass
class Case:
    """A target, a head for it, and the head in plain torch."""

    model: Model
    head: DraftModel
    oracle: Oracle
    ops: Ops

    def driver(self, **settings: Any) -> Driver:
        return Driver(
            self.model,
            self.ops,
            draft_model=self.head,
            draft_scratch=scratch_slots(WIDTH, DEPTH),
            **settings,
        )


@pytest.fixture(scope="module", params=["native", "reference"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return make_ops(request.param, threads=2)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("target"), num_hidden_layers=6)


@pytest.fixture(scope="module", params=HEADS)
def case(
    request: pytest.FixtureRequest,
    target: Path,
    ops: Ops,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    settings = dict(HEADS[request.param])
    folder = tmp_path_factory.mktemp("head")
    weights = write_head(folder, settings.pop("version"), VOCAB, **settings)
    model = load_tiny(target, ops)
    head = load_head(EagleCheckpoint(folder), model, ops, dtype="float32", device=CPU)
    layers = settings.get("layers") or (1, 2, 2)
    return Case(model, head, Oracle(weights, reference_model(target), layers), ops)


def host_draft(driver: Driver, ops: Ops) -> HostDraft:
    draft = driver.runner.draft
    assert draft is not None
    context = driver.runner.model.max_context
    return HostDraft(draft, ops, max_context=context, width=WIDTH, max_depth=DEPTH)


def seed(
    driver: Driver,
    row: int,
    pending: Sequence[int],
    depth: int = DEPTH,
    allowed: np.ndarray[Any, Any] | None = None,
) -> DraftSeed:
    slots = driver.slots[row, : driver.lengths[row]].copy()
    return DraftSeed(slots, np.array(pending, dtype=np.int32), depth, allowed)


def path_of(guesses: Guesses, node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(guesses.ids[node]))
        node = int(guesses.parents[node])
    return path


def check(oracle: Oracle, guesses: Guesses, ids: Sequence[int], computed: int) -> None:
    """Every guess scores what its path's log-probabilities sum to, and each level's are the best
    of the oracle's."""
    for node, score in enumerate(guesses.scores.tolist()):
        path = path_of(guesses, node)
        total = 0.0
        for i, token in enumerate(path):
            logprobs = oracle.logprobs(ids, computed, path[:i])
            place = int((oracle.ids == token).nonzero()[0, 0])
            total += float(logprobs[place])
        assert score == pytest.approx(total, rel=3e-4, abs=3e-3)
    first = oracle.logprobs(ids, computed, [])
    expected = oracle.ids[first.topk(WIDTH).indices].tolist()
    assert guesses.ids[:WIDTH].tolist() == expected


def test_guesses_equal_the_oracle_behind_chunks_and_batch_mates(case: Case) -> None:
    driver = case.driver()
    other = IDS[::-1]
    driver.run(Part(2, IDS[:5]), Part(0, other[:3]))
    driver.run(Part(0, other[3:9]), Part(2, IDS[5:6]))
    driver.run(Part(2, IDS[6:11]))
    found = host_draft(driver, case.ops).guess(
        [seed(driver, 2, IDS[11:12]), seed(driver, 0, other[9:10], depth=2)]
    )
    check(case.oracle, found[0], IDS[:12], 11)
    check(case.oracle, found[1], other[:10], 9)
    assert len(found[0].ids) == WIDTH + (DEPTH - 1) * WIDTH**2
    assert len(found[1].ids) == WIDTH + WIDTH**2


def test_guesses_that_will_not_be_taken_are_not_looked_into(case: Case) -> None:
    driver = case.driver()
    driver.run(Part(1, IDS[:9]))
    drafts = host_draft(driver, case.ops)
    whole = drafts.guess([seed(driver, 1, IDS[9:10])])[0]
    for nodes in (1, 2, 5, 9):
        (found,) = drafts.guess([replace(seed(driver, 1, IDS[9:10]), nodes=nodes)])
        wanted, tree = best_tree(whole, nodes), best_tree(found, nodes)
        assert wanted is not None and tree is not None
        assert wanted.token_ids.tolist() == tree.token_ids.tolist()
        assert wanted.parents.tolist() == tree.parents.tolist()
        assert len(found.ids) < len(whole.ids) or nodes > 5


def test_levels_that_hardly_pay_are_not_run(case: Case) -> None:
    driver = case.driver()
    driver.run(Part(1, IDS[:9]))
    drafts = host_draft(driver, case.ops)
    whole = drafts.guess([seed(driver, 1, IDS[9:10])])[0]
    for least in (1e-9, 0.004, 0.02, 0.3):
        (found,) = drafts.guess([replace(seed(driver, 1, IDS[9:10]), least=least)])
        count = len(found.ids)
        assert WIDTH <= count <= len(whole.ids)
        worth = np.log(least * FURTHER)
        wanted = {i for i in range(len(whole.ids)) if whole.parents[i] >= 0}
        wanted = {i for i in wanted if whole.scores[whole.parents[i]] > worth}
        paths = {tuple(path_of(whole, i)) for i in wanted} | {(int(i),) for i in whole.ids[:WIDTH]}
        assert {tuple(path_of(found, i)) for i in range(count)} == paths


def test_known_ids_come_before_guesses(case: Case) -> None:
    driver = case.driver()
    driver.run(Part(1, IDS[:9]))
    (found,) = host_draft(driver, case.ops).guess([seed(driver, 1, IDS[9:12], depth=2)])
    check(case.oracle, found, IDS[:12], 9)
    assert len(found.ids) == WIDTH + WIDTH**2


def test_the_first_guess_obeys_a_mask(case: Case) -> None:
    driver = case.driver()
    driver.run(Part(1, IDS[:6]))
    drafts = host_draft(driver, case.ops)
    first = case.oracle.logprobs(IDS[:7], 6, [])
    order = case.oracle.ids[first.argsort(descending=True)].tolist()
    allowed = order[5:7]
    words = np.zeros(4, dtype=np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    found, none = drafts.guess(
        [
            seed(driver, 1, IDS[6:7], depth=1, allowed=words.view(np.int32)),
            seed(driver, 1, IDS[6:7], allowed=np.zeros(4, dtype=np.int32)),
        ]
    )
    kept = np.isfinite(found.scores)
    assert found.ids[kept].tolist() == allowed
    assert np.exp(found.scores[kept]).sum() == pytest.approx(1.0, abs=1e-4)
    assert best_tree(none, 8) is None
    tree = best_tree(found, 8)
    assert tree is not None and tree.token_ids.tolist() == allowed


def tree_of(*paths: Sequence[int]) -> DraftTree:
    """A trie of paths."""
    ids, parents, depths = [], [], []
    known: dict[tuple[int, ...], int] = {}
    for path in paths:
        for end in range(1, len(path) + 1):
            prefix = tuple(path[:end])
            if prefix not in known:
                known[prefix] = len(ids)
                ids.append(path[end - 1])
                parents.append(known.get(prefix[:-1], -1))
                depths.append(end - 1)
    return DraftTree(*(np.array(part, dtype=np.int32) for part in (ids, parents, depths)))


@pytest.mark.parametrize("page_size", [1, 4])
def test_kept_candidates_leave_what_their_own_steps_would(case: Case, page_size: int) -> None:
    """Entries and states of a tree's kept nodes are those of the same tokens one after the other,
    once their slots have been renumbered or copied."""
    driver, plain = case.driver(page_size=page_size), case.driver(seed=5)
    kept = [63, 12, 30]
    tree = tree_of([4, 9], [63, 4, 5], [63, 12, 7], kept)
    driver.run(Part(3, IDS[:8], tree))
    nodes = []
    for end in range(1, len(kept) + 1):
        at = [i for i in range(len(tree)) if int(tree.token_ids[i]) == kept[end - 1]]
        parent = nodes[-1] if nodes else -1
        nodes.append(next(i for i in at if int(tree.parents[i]) == parent))
    sources = driver.slots[3, 8 + np.array(nodes)].copy()
    copies = None
    if page_size == 1:
        rest = driver.slots[3, 8:]
        driver.slots[3, 8:] = np.concatenate([sources, rest[~np.isin(rest, sources)]])
    else:
        copies = (sources, driver.slots[3, 8 : 8 + len(kept)].copy())
    driver.lengths[3] += len(kept)
    tail = driver.plan([Part(3, IDS[8:11])])
    tail.copies = copies
    with torch.inference_mode():
        driver.runner.run(tail)
    for token in [*IDS[:8], *kept, *IDS[8:11]]:
        plain.run(Part(1, [token]))
    ours, theirs = driver.runner.draft, plain.runner.draft
    assert ours is not None and theirs is not None
    n = driver.lengths[3]
    here, there = driver.slots[3, :n], plain.slots[1, :n]
    torch.testing.assert_close(
        ours.pool.features[here], theirs.pool.features[there], rtol=1e-4, atol=1e-4
    )
    # position 0 has no entry that anyone reads
    mine, other = ours.pool.buffer[:, :, here[1:]], theirs.pool.buffer[:, :, there[1:]]
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_listening_changes_no_bit_of_the_target(case: Case) -> None:
    heard, alone = case.driver(), Driver(case.model, case.ops)
    for part in (Part(0, IDS[:6]), Part(0, IDS[6:7]), Part(0, IDS[7:9], tree_of([3, 4], [5]))):
        ours, theirs = heard.run(part), alone.run(part)
        if isinstance(case.ops, NativeOps):
            assert torch.equal(ours, theirs)
        else:  # torch's products depend on the number of rows
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_recorded_level_equals_an_eager_one(case: Case) -> None:
    """The recording and the ops one by one, over the same pool."""
    driver = case.driver()
    driver.run(Part(0, IDS[:7]))
    drafts = host_draft(driver, case.ops)
    seeds = [seed(driver, 0, IDS[7:8])]
    first = drafts.guess(seeds)[0]
    drafts._levels._graph = None
    again = drafts.guess(seeds)[0]
    assert np.array_equal(first.ids, again.ids) and np.array_equal(first.scores, again.scores)


def test_a_small_model_drafts_what_it_would_say(target: Path, ops: Ops, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, num_hidden_layers=1, hidden_size=48, head_dim=8)
    model = load_tiny(target, ops)
    small = load_standalone(SafetensorsCheckpoint(folder), model, ops, dtype="float32", device=CPU)
    driver = Case(model, small, None, ops).driver()  # type: ignore[arg-type]
    driver.run(Part(2, IDS[:5]))
    driver.run(Part(2, IDS[5:9]))
    (found,) = host_draft(driver, ops).guess([seed(driver, 2, IDS[9:11], depth=2)])
    reference = reference_model(folder)
    for node, score in enumerate(found.scores.tolist()):
        path = path_of(found, node)
        logprobs = reference_logprobs(reference, [*IDS[:11], *path])
        total = sum(float(logprobs[10 + i, token]) for i, token in enumerate(path))
        assert score == pytest.approx(total, rel=3e-4, abs=3e-3)
    best = reference_logprobs(reference, IDS[:11])[-1].topk(WIDTH).indices.tolist()
    assert found.ids[:WIDTH].tolist() == best
