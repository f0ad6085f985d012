"""Whatever a drafter guesses, outputs are those of plain decoding; only the steps are fewer."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.protocols import Pending
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.scheduler.proposed import check_tree, pruned
from tests.scheduler.harness import Bench, Overlapped
from tests.support.hash_model import VOCAB, expected_output
from tests.support.oracle_drafter import OracleDrafter

EOS = frozenset({7, 50})


def make_place(r: random.Random) -> Any:
    """What a constraint says of one place: nothing, one id, some, or a run of forced ids."""
    kind = r.randrange(6)
    ids = [r.randrange(VOCAB) for _ in range(r.randint(1, 4))]
    return (None, None, None, ids[:1], ids, {"run": ids})[kind]


def make_work(r: random.Random, count: int) -> list[dict[str, Any]]:
    """Random requests: greedy and seeded, constrained, with stops, log-probabilities, n > 1."""
    trunk = [r.randrange(VOCAB) for _ in range(30)]
    work: list[dict[str, Any]] = []
    for _ in range(count):
        prompt = trunk[: r.randint(1, 30)] + [r.randrange(VOCAB) for _ in range(r.randint(0, 12))]
        options: dict[str, Any] = {"prompt": prompt, "max_tokens": r.randint(1, 30)}
        if r.random() < 0.5:
            options |= {"temperature": 0.8, "seed": r.randrange(1000)}
        if r.random() < 0.4:
            table = [make_place(r) for _ in range(r.randint(1, 25))]
            enough = r.randint(1, len(table))
            text = json.dumps({"rows": table, "enough": enough})
            options["constraint"] = Constraint(kind="lark", text=text)
        if r.random() < 0.3:
            options["logprobs"] = 0
        if r.random() < 0.3:
            options["stop_token_ids"] = (r.randrange(VOCAB), r.randrange(VOCAB))
        if r.random() < 0.2:
            options["ignore_eos"] = True
        if r.random() < 0.2:
            options["n"] = 2
        work.append(options)
    return work


def run(
    work: list[dict[str, Any]], bench: Bench, r: random.Random, aborts: frozenset[str]
) -> dict[str, Request]:
    for i, options in enumerate(work):
        bench.submit(str(i), **options)
        for _ in range(r.randint(0, 3)):
            bench.scheduler.step()
    for name in aborts:
        bench.scheduler.step()
        bench.scheduler.abort(name)
    bench.run()
    return bench.out.done


def outcome(request: Request) -> tuple[Any, ...]:
    progress = request.progress
    return (
        request.output_ids(),
        request.finish,
        progress.end_id,
        progress.forced,
        progress.forced_tokens,
        [entry.token_id for entry in progress.logprobs],
        [round(entry.logprob, 4) for entry in progress.logprobs],
    )


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_outputs_are_those_of_plain_decoding(data: st.DataObject) -> None:
    r = random.Random(data.draw(st.integers(0, 100_000)))
    work = make_work(r, data.draw(st.integers(1, 9)))
    plain = Bench(tokens=4096, context=110, eos=EOS, rows=8)
    stops = {str(i): r.randint(1, 12) for i in range(len(work)) if r.random() < 0.2}
    plain.out.stop_after = stops
    wanted = run(work, plain, r, frozenset())
    scripts = {name: [*request.output_ids(), 7] for name, request in wanted.items()}
    page_size = data.draw(st.sampled_from([1, 4, 16]))
    bench = Bench(
        tokens=data.draw(st.sampled_from([128, 160, 1024])),
        page_size=page_size,
        context=110,
        eos=EOS,
        rows=data.draw(st.sampled_from([2, 6, 32])),
        step_tokens=data.draw(st.sampled_from([16, 64])),
        overlap=data.draw(st.booleans()),
        lazy=data.draw(st.booleans()),
        prefix_cache=data.draw(st.booleans()),
        mirror=data.draw(st.booleans()),
        grow_ahead=data.draw(st.sampled_from([1, 5])),
        drafter=OracleDrafter(
            scripts,
            VOCAB,
            right=data.draw(st.sampled_from([0.0, 0.7, 1.0])),
            width=data.draw(st.sampled_from([1, 3])),
            silent=data.draw(st.sampled_from([0.0, 0.5])),
            seed=r.randrange(1000),
        ),
        max_nodes=data.draw(st.sampled_from([1, 4, 12])),
        max_depth=data.draw(st.sampled_from([1, 3, 12])),
        pace=data.draw(st.booleans()),
        chains=data.draw(st.booleans()),
        constrained_overlap=data.draw(st.sampled_from([None, Overlapped((True, True, False))])),
    )
    bench.out.stop_after = stops
    aborts = frozenset(str(i) for i in range(len(work)) if r.random() < 0.15)
    found = run(work, bench, r, aborts)
    assert found.keys() == wanted.keys()
    for name, request in found.items():
        if request.finish == "abort":
            whole = wanted[name].output_ids()
            assert request.output_ids() == whole[: request.output_len]
        else:
            assert outcome(request) == outcome(wanted[name])
        meta = request.progress
        assert 0 <= meta.accepted_tokens <= min(meta.drafted_tokens, request.output_len)


def knowing(prompt: list[int], count: int, **options: Any) -> OracleDrafter:
    """A drafter that is always right about request "a"."""
    script = expected_output(prompt, count)
    settings = {"right": 1.0, "width": 1, "silent": 0.0} | options
    return OracleDrafter({"a": script}, VOCAB, **settings)


class Chains:
    """Proposes chains as long as they may be."""

    def __init__(self, scripts: dict[str, list[int]]) -> None:
        self.scripts = scripts
        self.asked = 0

    def promising(self, row: DraftRow) -> bool:
        return True

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        self.asked += len(rows)
        trees: list[DraftTree | None] = []
        for row in rows:
            at = len(row.ids) - row.prompt_len
            limit = min(row.max_depth, row.max_nodes)
            trees.append(chain(self.scripts[row.request_id][at : at + limit]))
        return trees

    def finished(self, request_id: str) -> None:
        self.scripts.pop(request_id, None)


def chain(tokens: Sequence[int]) -> DraftTree:
    n = len(tokens)
    return DraftTree(
        np.array(tokens, dtype=np.int32),
        np.arange(-1, n - 1, dtype=np.int32),
        np.arange(n, dtype=np.int32),
    )


@pytest.mark.parametrize("chains", [False, True])
def test_where_chains_are_asked_for_every_candidate_sees_all_before_it(chains: bool) -> None:
    prompt = [5, 9, 2]
    bench = Bench(drafter=knowing(prompt, 30, width=3), chains=chains)
    plans: list[ScheduleBatch] = []
    forward = bench.worker.forward

    def noted(plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        plans.append(plan)
        return forward(plan, awaited=awaited)

    bench.worker.forward = noted  # type: ignore[method-assign]
    bench.submit("a", prompt, max_tokens=30)
    bench.run()
    words = [plan.tree.words.tolist() for plan in plans if plan.tree is not None]
    assert words
    straight = all(found == [2 ** (j + 1) - 1 for j in range(len(found))] for found in words)
    assert straight == chains


@pytest.mark.parametrize("page_size", [1, 4])
def test_right_guesses_save_their_steps(page_size: int) -> None:
    prompt = [3, 1, 4]
    bench = Bench(
        drafter=Chains({"a": expected_output(prompt, 21)}), max_depth=4, page_size=page_size
    )
    bench.submit("a", prompt, 21)
    bench.run()
    done = bench.out.done["a"]
    assert done.output_ids() == expected_output(prompt, 21)
    assert done.progress.forwards == 1 + 4, "the first id, then five at a time"
    assert done.progress.accepted_tokens == done.progress.drafted_tokens == 16
    assert bench.worker.forwarded_tokens == 3 + 4 * 5


def test_the_last_ids_of_an_output_are_not_guessed_at() -> None:
    prompt = [3, 1, 4]
    for count, drafted in ((1, 0), (2, 0), (3, 1), (4, 2)):
        bench = Bench(drafter=Chains({"a": expected_output(prompt, 50)}))
        bench.submit("a", prompt, count)
        bench.run()
        assert bench.output("a") == expected_output(prompt, count)
        assert bench.out.done["a"].progress.drafted_tokens == drafted


def test_reuse_is_that_of_plain_decoding() -> None:
    prompt, count = list(range(30)), 20
    cached = []
    for drafter in (None, knowing(prompt, 40, width=3), Chains({"a": expected_output(prompt, 40)})):
        bench = Bench(drafter=drafter)
        bench.out.stop_after["a"] = count  # in the middle of what was guessed
        bench.submit("a", prompt, 60)
        bench.run()
        follow = prompt + bench.output("a") + [5, 6, 7]
        bench.submit("b", follow, 3)
        bench.run()
        assert bench.output("b") == expected_output(follow, 3)
        cached.append(bench.out.done["b"].progress.cached_tokens)
    assert cached[0] == len(prompt) + count - 1
    assert cached[1] >= cached[0] and cached[2] >= cached[0]


def test_forced_runs_behind_a_guess_run_with_it() -> None:
    prompt = [1, 2, 3]
    table = [None, [5], [6], [7], None, [8], [9], None]
    text = Constraint(kind="lark", text=json.dumps(table))
    plain = Bench()
    plain.submit("a", prompt, 50, constraint=text)
    plain.run()
    script = plain.output("a")
    drafter = Chains({"a": script})
    bench = Bench(drafter=drafter, max_depth=8)
    drafter.propose = lambda rows: [  # type: ignore[method-assign]
        chain([script[len(row.ids) - row.prompt_len]]) for row in rows
    ]
    bench.submit("a", prompt, 50, constraint=text)
    bench.run()
    done, usual = bench.out.done["a"], plain.out.done["a"]
    assert done.output_ids() == script
    assert done.progress.forced_tokens == usual.progress.forced_tokens == 5
    assert usual.progress.forwards == 3
    assert done.progress.forwards == 2, "behind the guess come its forced ids, then the last one"
    assert (done.progress.drafted_tokens, done.progress.accepted_tokens) == (1, 1)


def test_a_refused_guess_is_not_run() -> None:
    prompt = [1, 2, 3]
    table = [[5, 6], [7, 8], [9, 10], [11, 12]]
    bench = Bench(drafter=Chains({"a": [20] * 9}))
    bench.submit("a", prompt, 50, constraint=Constraint(kind="lark", text=json.dumps(table)))
    bench.run()
    assert bench.out.done["a"].progress.drafted_tokens == 0
    assert bench.worker.forwarded_tokens == 3 + 3


class Broken:
    """A drafter that keeps none of its promises."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def promising(self, row: DraftRow) -> bool:
        return True

    def propose(self, rows: Sequence[DraftRow]) -> list[Any]:
        if isinstance(self.tree, Exception):
            raise self.tree
        return [self.tree for _ in rows]

    def finished(self, request_id: str) -> None:
        pass


@pytest.mark.parametrize(
    "tree",
    [
        RuntimeError("no"),
        chain([VOCAB]),
        chain([-1, 4]),
        chain(range(40)),
        DraftTree(*(np.array(part, dtype=np.int32) for part in ([4, 5], [1, -1], [1, 0]))),
        DraftTree(*(np.array(part, dtype=np.int32) for part in ([4, 5], [-1, 0], [0, 0]))),
        DraftTree(*(np.array(part, dtype=np.int32) for part in ([4, 5], [-2, 0], [0, 1]))),
        DraftTree(*(np.array(part, dtype=np.int32) for part in ([4, 5], [-1], [0, 1]))),
        chain([]),
        "no tree",
    ],
)
def test_a_drafter_that_breaks_its_word_costs_nothing(tree: Any) -> None:
    bench = Bench(drafter=Broken(tree))
    bench.submit("a", [1, 2], 9)
    bench.run()
    assert bench.output("a") == expected_output([1, 2], 9)
    assert bench.scheduler.stats.drafted_tokens == 0


def test_rows_that_promise_nothing_are_not_waited_for() -> None:
    drafter = OracleDrafter({}, VOCAB, silent=1.0)
    drafter.propose = lambda rows: pytest.fail("asked")  # type: ignore[method-assign]
    bench = Bench(drafter=drafter)
    bench.submit("a", [1, 2], 9)
    bench.scheduler.step()
    bench.scheduler.step()
    assert bench.out.scheduler is not None
    assert bench.scheduler._requests["a"].output_len == 1, "a step is on its way meanwhile"
    assert len(bench.scheduler._inflight) == 1
    bench.run()
    assert bench.output("a") == expected_output([1, 2], 9)


def test_beside_a_drafter_that_does_not_pay_steps_overlap_and_rows_are_left_alone() -> None:
    asked = 0

    class Wrong(Chains):
        def promising(self, row: DraftRow) -> bool:
            nonlocal asked
            asked += 1
            return True

    names = [str(i) for i in range(8)]
    bench = Bench(drafter=Wrong({name: [0] * 400 for name in names}), pace=True, max_nodes=4)
    scheduler, forward, overlapped = bench.scheduler, bench.worker.forward, []
    drafts = scheduler._drafts
    assert drafts is not None
    stepped = drafts.stepped

    def timed(rows: int, guesses: int, seconds: float, **kind: Any) -> None:
        stepped(rows, guesses, 5e-3 if guesses else 1e-3, **kind)

    def watched(plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        overlapped.append(len(scheduler._inflight))
        return forward(plan, awaited=awaited)

    drafts.stepped = timed  # type: ignore[method-assign]
    bench.worker.forward = watched  # type: ignore[method-assign]
    for i, name in enumerate(names):
        bench.submit(name, [1, 2, i], 400)
    bench.run()
    assert scheduler.stats.drafted_tokens > 0
    assert sum(overlapped) > 0.95 * len(overlapped)
    assert asked < 0.05 * len(overlapped) * len(names)


def test_rows_that_promise_nothing_and_are_long_asked_cost_hardly_a_step() -> None:
    """To ask takes thirty times as long as a step: then it is done once in a while, and the steps
    it has held up are not taken for plain ones."""
    asked, told = 0, list[int]()

    class Slow(Chains):
        def promising(self, row: DraftRow) -> bool:
            nonlocal asked
            asked += 1
            time.sleep(0.003)
            return False

    bench = Bench(drafter=Slow({}), pace=True, max_nodes=4)
    drafts = bench.scheduler._drafts
    assert drafts is not None and drafts._pace is not None
    stepped = drafts.stepped

    def timed(rows: int, guesses: int, seconds: float, **kind: Any) -> None:
        asks = asked - sum(told)
        told.append(asks)
        stepped(rows, guesses, 1e-4 + 3e-3 * asks, **kind)

    drafts.stepped = timed  # type: ignore[method-assign]
    bench.submit("a", [1, 2], 400)
    bench.run()
    assert bench.output("a") == expected_output([1, 2], 400)
    assert 1 <= asked <= 4
    assert drafts._pace._costs.plain(1) == pytest.approx(1e-4)


def test_a_drafter_hears_of_every_end_once() -> None:
    drafter = OracleDrafter({}, VOCAB)
    bench = Bench(drafter=drafter)
    for i in range(4):
        bench.submit(str(i), [1, 2, i], 12, n=2)
    bench.scheduler.step()
    bench.scheduler.step()
    bench.scheduler.abort("2")
    bench.run()
    assert sorted(drafter.ended) == sorted(bench.out.done)
    assert len(drafter.ended) == 8


def test_a_failed_step_ends_its_requests_alone() -> None:
    prompt = [1, 2]
    bench = Bench(drafter=knowing(prompt, 30, width=3), fail_steps=frozenset({2}), page_size=4)
    bench.submit("a", prompt, 30)
    bench.run()
    assert bench.out.done["a"].finish == "error"
    bench.submit("b", prompt, 12)
    bench.run()
    assert bench.output("b") == expected_output(prompt, 12)


def test_an_abort_frees_the_guesses_within_a_step() -> None:
    prompt = [1, 2, 3]
    bench = Bench(drafter=knowing(prompt, 90, width=3))
    bench.submit("a", prompt, 80)
    for _ in range(4):
        bench.scheduler.step()
    assert bench.scheduler.stats.drafted_tokens > 0
    bench.scheduler.abort("a")
    bench.scheduler.step()
    assert bench.cache.running_tokens == 0
    bench.run()


def test_a_deadline_ends_a_row_with_guesses_and_leaves_the_others() -> None:
    prompt = [1, 2, 3]
    scripts = {"a": expected_output(prompt, 400), "b": expected_output(prompt, 60)}
    bench = Bench(drafter=Chains(scripts), max_depth=3)
    bench.submit("a", prompt, 400, deadline=time.monotonic() + 0.05)
    bench.submit("b", prompt, 60)
    while "a" not in bench.out.done:
        bench.scheduler.step()
        time.sleep(0.002)
    assert bench.out.done["a"].finish == "deadline"
    bench.run()
    said = bench.output("a")
    assert said == expected_output(prompt, 400)[: len(said)]
    assert bench.output("b") == expected_output(prompt, 60)


def test_a_tree_is_cut_where_nothing_of_it_can_be_output() -> None:
    tree = DraftTree(
        np.array([4, 9, 5, 6, 7], dtype=np.int32),
        np.array([-1, -1, 0, 1, 2], dtype=np.int32),
        np.array([0, 0, 1, 1, 2], dtype=np.int32),
    )
    check_tree(tree, 5, 10)
    assert pruned(tree, frozenset({8}), 3) is tree
    assert pruned(tree, frozenset({9}), 9).token_ids.tolist() == [4, 5, 7]
    assert pruned(tree, frozenset({9}), 9).parents.tolist() == [-1, 0, 1]
    assert pruned(tree, frozenset(), 1).token_ids.tolist() == [4, 9]
    assert len(pruned(tree, frozenset({4, 9}), 3)) == 0
    assert len(pruned(tree, frozenset(), 0)) == 0


def test_masks_of_trees_are_paths() -> None:
    r = random.Random(3)
    for n in (1, 5, 63, 64, 65, 150):
        parents = [r.randint(-1, i - 1) for i in range(n)]
        tree = DraftTree(np.zeros(n, np.int32), np.array(parents, np.int32), np.zeros(n, np.int32))
        words = tree.mask_words().reshape(n, -1)
        for node in range(n):
            seen = [i for i in range(n) if int(words[node, i >> 6]) >> (i & 63) & 1]
            assert seen == tree.path(node)
            assert seen[-1] == node
