"""Law 4 where code breaks: what one request needs ends it alone, and no memory is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from branchline.runtime.core.drafting import DraftRow, DraftTree
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import BackendError
from tests.scheduler.harness import Bench, Overlapped, TableMatcher
from tests.scheduler.test_drafts import Chains
from tests.support.hash_model import VOCAB, expected_output


def breaking(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a bug")


def table(*rows: list[int] | None) -> Constraint:
    return Constraint(kind="choices", text=json.dumps(rows))


def error_of(bench: Bench, name: str) -> BackendError:
    request = bench.out.done[name]
    assert request.finish == "error"
    assert isinstance(request.progress.error, BackendError)
    return request.progress.error


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("overlap", [False, True, "constrained"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    "method", ["fill", "accept", "forced_tokens", "is_accepting", "is_terminated"]
)
def test_a_matcher_that_breaks_ends_its_own_request(
    method: str, after: int, overlap: bool | str, mirror: bool
) -> None:
    constrained = Overlapped() if overlap == "constrained" else None
    bench = Bench(overlap=bool(overlap), mirror=mirror, constrained_overlap=constrained)
    prepare = bench.grammars.request

    def request(constraint: Constraint, ready: Any, section: Any = None) -> None:
        def hand_over(matcher: TableMatcher) -> None:
            if matcher.table[0] == (5, 6):
                calls = iter(range(after))
                plain = getattr(matcher, method)

                def limited(*arguments: Any) -> Any:
                    return breaking() if next(calls, None) is None else plain(*arguments)

                setattr(matcher, method, limited)
            ready(matcher)

        prepare(constraint, hand_over, section)

    bench.grammars.request = request  # type: ignore[method-assign]
    bench.submit("broken", [1, 2], 9, constraint=table(*[[5, 6]] * 9))
    bench.submit("free", [3, 4], 9)
    bench.run()
    assert "a bug" in str(error_of(bench, "broken"))
    assert bench.output("free") == expected_output([3, 4], 9)
    bench.submit("next", [1, 2], 3, constraint=table([7, 8], [7], [8]))
    bench.run()
    assert bench.out.done["next"].finish == "constraint"


@pytest.mark.parametrize("overlap", [False, True])
def test_where_no_mask_can_be_made_those_that_need_one_end(overlap: bool) -> None:
    bench = Bench(overlap=overlap)
    fill = bench.grammars.fill
    bench.grammars.fill = breaking  # type: ignore[method-assign]
    bench.submit("one", [1, 2], 9, constraint=table(*[[5, 6]] * 9))
    bench.submit("two", [2, 2], 9, constraint=table(*[[5, 6]] * 9))
    bench.submit("free", [3, 4], 9)
    bench.run()
    assert all("a bug" in str(error_of(bench, name)) for name in ("one", "two"))
    assert bench.output("free") == expected_output([3, 4], 9)
    bench.grammars.fill = fill  # type: ignore[method-assign]
    bench.submit("again", [1, 2], 2, constraint=table([5, 6], [5, 6]))
    bench.run()
    assert bench.out.done["again"].finish == "constraint"


def test_an_outbox_that_breaks_ends_its_own_request() -> None:
    bench = Bench()
    push = bench.out.push

    def breaks(request: Request) -> bool:
        return breaking() if request.id == "broken" and request.output_len == 3 else push(request)

    bench.out.push = breaks  # type: ignore[method-assign]
    bench.out.quiet = lambda request: False  # type: ignore[method-assign]
    bench.submit("broken", [1, 2], 9)
    bench.submit("free", [3, 4], 9)
    bench.run()
    assert "a bug" in str(error_of(bench, "broken"))
    assert bench.output("free") == expected_output([3, 4], 9)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_a_step_that_is_planned_and_never_runs_keeps_no_memory(
    overlap: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(overlap=overlap, lazy=False)
    bench.submit("a", [1, 2], 40)
    bench.submit("b", [3, 4], 40)
    for _ in range(5):
        bench.scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(bench.scheduler._builder, "build", breaking)
        with pytest.raises(RuntimeError):
            bench.scheduler.step()
    if ended:
        bench.scheduler.abort("a")
    bench.scheduler.fail_all(BackendError("the step broke"))
    assert bench.out.done["b"].finish == "error"
    assert bench.scheduler.num_running == bench.scheduler.num_unfinished == 0
    bench.submit("c", [3, 4], 9)
    bench.run()
    assert bench.output("c") == expected_output([3, 4], 9)


class Knowing(Chains):
    """Guesses for some requests: what comes next, behind a wrong guess, so that what is kept has to
    be moved."""

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        trees: list[DraftTree | None] = []
        for row in rows:
            at = len(row.ids) - row.prompt_len
            limit = min(row.max_depth, row.max_nodes - 1)
            right = self.scripts.get(row.request_id, [])[at : at + limit]
            if not right:
                trees.append(None)
                continue
            ids = np.array([(right[0] + 1) % VOCAB, *right], dtype=np.int32)
            parents = np.array([-1, -1, *range(1, len(right))], dtype=np.int32)
            depths = np.array([0, *range(len(right))], dtype=np.int32)
            trees.append(DraftTree(ids, parents, depths))
        return trees


KNOWING = {name: expected_output(prompt, 40) for name, prompt in (("a", [3, 4]), ("b", [5, 6]))}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("drafter", [None, KNOWING])
@pytest.mark.parametrize("after", [0, 1, 4, 5])
def test_a_step_that_cannot_be_put_together_ends_whose_part_of_it_fails(
    after: int, drafter: dict[str, list[int]] | None, overlap: bool, mirror: bool
) -> None:
    guessing = None if drafter is None else Knowing(dict(drafter))
    bench = Bench(overlap=overlap, mirror=mirror, lazy=False, drafter=guessing, page_size=2)
    builder = bench.scheduler._builder
    suppress = builder._suppress_ids

    def limited(request: Request) -> tuple[int, ...]:
        if request.id == "broken":
            raise OverflowError("too large")
        return suppress(request)

    builder._suppress_ids = limited  # type: ignore[method-assign]
    bench.submit("a", [3, 4], 30)
    bench.submit("b", [5, 6], 30)
    for _ in range(after):
        bench.scheduler.step()
    bench.submit("broken", [1, 2], 30, temperature=1.0, seed=1)
    bench.score("scored", [7, 8, 9], [[1, 2], [1, 3], [4]])
    bench.embed("vector", [2, 3, 4, 5])
    bench.submit("logged", [7, 7], 9, prompt_logprobs=0, temperature=1.0, seed=5)
    bench.run()
    assert "too large" in str(error_of(bench, "broken"))
    plain = Bench(overlap=overlap, lazy=False)
    plain.submit("logged", [7, 7], 9, prompt_logprobs=0, temperature=1.0, seed=5)
    plain.score("scored", [7, 8, 9], [[1, 2], [1, 3], [4]])
    plain.embed("vector", [2, 3, 4, 5])
    plain.run()
    assert bench.output("a") == expected_output([3, 4], 30)
    assert bench.output("b") == expected_output([5, 6], 30)
    assert bench.output("logged") == plain.output("logged")
    logged, other = (it.out.done["logged"].progress for it in (bench, plain))
    assert len(logged.prompt_logprobs) == 1 and logged.prompt_logprobs == other.prompt_logprobs
    scored, alone = (it.out.done["scored"].score for it in (bench, plain))
    assert scored is not None and alone is not None and scored.results == alone.results
    assert bench.vector("vector") == plain.vector("vector")
    assert bench.scheduler.num_unfinished == 0


def test_where_nobody_is_to_blame_all_end() -> None:
    bench = Bench()
    bench.scheduler._builder._decode = breaking  # type: ignore[method-assign]
    bench.scheduler._builder._extend = breaking  # type: ignore[method-assign]
    bench.submit("a", [3, 4], 9)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.run()
