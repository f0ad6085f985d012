"""Forced tokens change how many forwards an output takes, and nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.batch import ForwardOutput
from branchline.runtime.core.sampling_params import Constraint
from tests.scheduler.harness import Bench, Overlapped
from tests.support.hash_model import VOCAB, allowed_ids, best, checksum, expected_output

Table = list[list[int] | None]
OVERLAPS: list[tuple[bool, ...]] = [(), (True,), (True, False), (False, True, True)]


def make_overlap(answers: tuple[bool, ...]) -> Overlapped | None:
    return Overlapped(answers) if answers else None


def constraint(table: Table) -> Constraint:
    return Constraint(kind="lark", text=json.dumps(table))


def expected(prompt: list[int], table: Table) -> list[int]:
    ids = list(prompt)
    for options in table:
        ids.append(best(checksum(ids), options))
    return ids[len(prompt) :]


def make_table(r: random.Random, length: int) -> Table:
    kinds = [None, [r.randrange(VOCAB)], [r.randrange(VOCAB)], [r.randrange(VOCAB) for _ in "abc"]]
    return [r.choice(kinds) for _ in range(length)]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_output_is_that_of_constrained_decoding_without_forcing(data: st.DataObject) -> None:
    r = random.Random(data.draw(st.integers(0, 10_000)))
    bench = Bench(
        tokens=data.draw(st.sampled_from([120, 600])),
        context=110,
        step_tokens=data.draw(st.sampled_from([8, 40])),
        max_running_requests=data.draw(st.sampled_from([2, 4])),
        overlap=data.draw(st.booleans()),
        lazy=data.draw(st.booleans()),
        forcing=data.draw(st.booleans()),
        mirror=data.draw(st.booleans()),
        constrained_overlap=make_overlap(data.draw(st.sampled_from(OVERLAPS))),
    )
    work: list[tuple[list[int], Table | None]] = []
    for i in range(data.draw(st.integers(1, 8))):
        prompt = [r.randrange(VOCAB) for _ in range(r.randint(1, 40))]
        table = make_table(r, r.randint(1, 30)) if r.random() < 0.7 else None
        work.append((prompt, table))
        options = {} if table is None else {"constraint": constraint(table)}
        bench.submit(str(i), prompt, 60 if table is not None else 9, **options)
        for _ in range(r.randint(0, 3)):
            bench.scheduler.step()
    bench.run()
    for i, (prompt, table) in enumerate(work):
        done = bench.out.done[str(i)]
        if table is None:
            assert done.output_ids() == expected_output(prompt, 9)
        else:
            assert done.output_ids() == expected(prompt, table)
            assert done.finish == "constraint"


@pytest.mark.parametrize("overlap", [True, False])
def test_forced_runs_join_the_next_forward(overlap: bool) -> None:
    table: Table = [[5], [6], [7], [1, 2], [8], [9], [10], [11], [3, 4], [12]]
    bench = Bench(overlap=overlap)
    bench.submit("a", [1, 2, 3], 50, constraint=constraint(table))
    bench.run()
    done = bench.out.done["a"]
    assert done.output_ids() == expected([1, 2, 3], table)
    assert done.progress.forced_tokens == 8
    assert done.progress.forced == [0, 1, 2, 4, 5, 6, 7, 9]
    assert done.progress.forwards == 2, "one forward for each decision"
    slow = Bench(overlap=overlap, forcing=False)
    slow.submit("a", [1, 2, 3], 50, constraint=constraint(table))
    slow.run()
    assert slow.output("a") == done.output_ids()
    assert slow.out.done["a"].progress.forwards >= 10


def test_where_steps_overlap_a_forced_run_takes_one_forward_more() -> None:
    table: Table = [[5], [6], [1, 2], [8], [9], [10], [3, 4], [7], [1, 2], [3, 4]]
    counts = []
    for overlap in (None, Overlapped()):
        bench = Bench(constrained_overlap=overlap, mirror=True)
        bench.submit("a", [1, 2, 3], 50, constraint=constraint(table))
        bench.run()
        done = bench.out.done["a"]
        assert done.output_ids() == expected([1, 2, 3], table)
        assert done.progress.forced == [0, 1, 3, 4, 5, 7]
        counts.append(bench.worker.steps)
    assert counts == [4, 4 + 2 + 1], "two runs, and the step that was begun when the output ended"


def test_a_forced_id_whose_logits_are_unusable_ends_its_request_alone() -> None:
    bench = Bench(constrained_overlap=Overlapped())
    run = bench.worker._run

    def broken(plan: Any, bitmask: Any) -> ForwardOutput:
        output = run(plan, bitmask)
        words = [] if bitmask is None else list(bitmask)
        bad = tuple(place for place, row in enumerate(words) if allowed_ids(row) == [9])
        return replace(output, bad_rows=bad)

    bench.worker._run = broken  # type: ignore[method-assign]
    bench.submit("a", [1, 2], 20, constraint=constraint([[5, 6], [9], [8], [1, 2], [3]]))
    bench.submit("b", [1, 2], 20, constraint=constraint([[5, 6], [7], [8], [1, 2], [3]]))
    bench.run()
    assert bench.out.done["a"].finish == "error"
    assert bench.output("b") == expected([1, 2], [[5, 6], [7], [8], [1, 2], [3]])


def test_an_output_that_is_wholly_forced_needs_no_forward() -> None:
    bench = Bench()
    bench.submit("a", [1, 2, 3], 50, constraint=constraint([[5], [6]]))
    bench.run()
    assert bench.output("a") == [5, 6]
    assert bench.out.done["a"].finish == "constraint"
    assert bench.worker.steps == 0


def test_max_tokens_and_stops_cut_forced_runs() -> None:
    table: Table = [[5], [6], [7], [8], [1, 2], [9]]
    bench = Bench()
    bench.out.stop_after["stopped"] = 2
    bench.submit("cut", [1], 3, constraint=constraint(table))
    bench.submit("stopped", [1], 30, constraint=constraint(table))
    bench.run()
    assert bench.output("cut") == [5, 6, 7]
    assert bench.out.done["cut"].finish == "length"
    assert bench.out.done["stopped"].finish == "stop"


def test_a_forced_run_longer_than_a_step_is_computed_in_chunks() -> None:
    r = random.Random(1)
    run = [[r.randrange(VOCAB)] for _ in range(50)]
    table: Table = [[1, 2], *run, [3, 4]]
    bench = Bench(step_tokens=16)
    bench.submit("a", [1, 2], 90, constraint=constraint(table))
    bench.run()
    assert bench.output("a") == expected([1, 2], table)


def test_logprobs_of_every_token_turn_forcing_off() -> None:
    table: Table = [[5], [6], [1, 2], [9]]
    bench = Bench()
    bench.submit("a", [1], 30, constraint=constraint(table), logprobs=0)
    bench.run()
    done = bench.out.done["a"]
    assert done.output_ids() == expected([1], table)
    assert [e.token_id for e in done.progress.logprobs] == done.output_ids()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_complete_output_ends_where_the_model_would_not_go_on_with_it(overlap: bool) -> None:
    prompt = [1, 2, 3]
    first = expected(prompt, [[5, 6]])
    wanted = best(checksum(prompt + first))
    for options, count in (([wanted, (wanted + 1) % VOCAB], 2), ([(wanted + 1) % VOCAB], 1)):
        text = json.dumps({"rows": [[5, 6], options], "enough": 1})
        bench = Bench(overlap=overlap)
        bench.submit("a", prompt, 20, constraint=Constraint(kind="lark", text=text))
        bench.run()
        assert bench.output("a") == [*first, wanted][:count]
        assert bench.out.done["a"].finish == "constraint"
        held = Bench(overlap=overlap)
        held.submit("a", prompt, 20, constraint=Constraint(kind="lark", text=text), min_tokens=2)
        held.run()
        assert len(held.output("a")) == 2, "min_tokens keeps the mask on"
