"""Laws 1, 2, 4 and 6 over a model whose output depends on every key-value entry it reads."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.core.sequence import reading_of
from branchline.runtime.errors import BackendError, InvalidRequest, QueueFull
from tests.scheduler.harness import Bench, Overlapped
from tests.support.hash_model import VOCAB, best, checksum, expected_output, expected_scores


def prompts(count: int, lo: int, hi: int, seed: int = 0) -> list[list[int]]:
    r = random.Random(seed)
    return [[r.randrange(VOCAB) for _ in range(r.randint(lo, hi))] for _ in range(count)]


def test_one_request_gives_the_models_own_continuation() -> None:
    bench = Bench()
    bench.submit("a", [1, 2, 3], 12)
    bench.run()
    assert bench.output("a") == expected_output([1, 2, 3], 12)
    assert bench.out.done["a"].finish == "length"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("policy", ["lpm", "fcfs", "priority"])
def test_output_does_not_depend_on_how_steps_are_made(
    overlap: bool, lazy: bool, page_size: int, policy: str
) -> None:
    shared = prompts(1, 70, 70, seed=5)[0]
    work = prompts(12, 1, 150, seed=1) + [shared + p for p in prompts(12, 1, 30, seed=2)]
    bench = Bench(overlap=overlap, lazy=lazy, page_size=page_size, policy=policy)
    for i, prompt in enumerate(work):
        bench.submit(str(i), prompt, 1 + i % 9)
    bench.run()
    for i, prompt in enumerate(work):
        assert bench.output(str(i)) == expected_output(prompt, 1 + i % 9)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
def test_random_loads_under_memory_pressure_keep_every_output(data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from([1, 4]))
    bench = Bench(
        tokens=data.draw(st.sampled_from([96, 160, 400])),
        page_size=page_size,
        rows=data.draw(st.sampled_from([2, 6, 32])),
        context=88,
        step_tokens=data.draw(st.sampled_from([16, 40])),
        overlap=data.draw(st.booleans()),
        lazy=data.draw(st.booleans()),
        prefix_cache=data.draw(st.booleans()),
        max_running_requests=data.draw(st.sampled_from([2, 6])),
        mirror=data.draw(st.booleans()),
        grow_ahead=data.draw(st.sampled_from([1, 5])),
    )
    r = random.Random(data.draw(st.integers(0, 10_000)))
    trunk = [r.randrange(VOCAB) for _ in range(30)]
    work = []
    for i in range(data.draw(st.integers(1, 14))):
        prompt = trunk[: r.randint(1, 30)] + [r.randrange(VOCAB) for _ in range(r.randint(0, 25))]
        count = r.randint(1, 25)
        work.append((prompt, count))
        bench.submit(str(i), prompt, count)
        for _ in range(r.randint(0, 3)):
            bench.scheduler.step()
    bench.run()
    for i, (prompt, count) in enumerate(work):
        assert bench.output(str(i)) == expected_output(prompt, count)


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_copy_of_the_slot_table_follows_the_plans(page_size: int) -> None:
    # the hash model asserts that every slot it reads is the right one
    shared = prompts(1, 40, 40, seed=5)[0]
    work = [shared + prompt for prompt in prompts(20, 1, 30, seed=2)]
    bench = Bench(page_size=page_size, mirror=True, grow_ahead=8)
    for round_ in range(2):  # the second finds everything in the cache
        for i, prompt in enumerate(work):
            bench.submit(f"{round_}.{i}", prompt, 20)
        bench.score(f"{round_}.score", shared, [[5, 6, 7], [5, 8]])
        bench.run()
        for i, prompt in enumerate(work):
            assert bench.output(f"{round_}.{i}") == expected_output(prompt, 20)
        scores = bench.out.done[f"{round_}.score"].score
        assert scores is not None
        for found, choice in zip(scores.results, ([5, 6, 7], [5, 8]), strict=True):
            assert found == pytest.approx(expected_scores(shared, choice))


def test_a_retracted_request_resumes_with_the_same_output() -> None:
    bench = Bench(tokens=120, context=110, step_tokens=32)
    work = prompts(6, 20, 20, seed=3)
    for i, prompt in enumerate(work):
        bench.submit(str(i), prompt, 60)
    bench.run()
    assert bench.scheduler.stats.retractions > 0
    for i, prompt in enumerate(work):
        assert bench.output(str(i)) == expected_output(prompt, 60)


def test_long_prompts_are_computed_in_chunks_beside_decoding_rows() -> None:
    bench = Bench(step_tokens=32, overlap=False)
    bench.submit("short", [1, 2], 40)
    for _ in range(3):
        bench.scheduler.step()
    bench.submit("long", prompts(1, 300, 300)[0], 2)
    before = bench.scheduler.stats.steps
    while "long" not in bench.out.done:
        bench.scheduler.step()
    steps = bench.scheduler.stats.steps - before
    assert 10 <= steps <= 13
    assert "short" not in bench.out.done
    grown = bench.scheduler._requests["short"].output_len
    assert grown >= steps, "decoding stalled behind a long prompt"
    bench.run()


def test_a_second_identical_prompt_computes_one_token_only() -> None:
    bench = Bench()
    prompt = prompts(1, 100, 100)[0]
    bench.submit("a", prompt, 4)
    bench.run()
    before = bench.worker.forwarded_tokens
    bench.submit("b", prompt, 1)
    bench.run()
    assert bench.worker.forwarded_tokens - before == 1
    assert bench.out.done["b"].progress.cached_tokens == 99


def test_generated_tokens_are_reused_by_a_follow_up() -> None:
    bench = Bench()
    prompt = prompts(1, 50, 50)[0]
    bench.submit("a", prompt, 20)
    bench.run()
    follow = prompt + bench.output("a") + [5, 6, 7]
    bench.submit("b", follow, 5)
    bench.run()
    assert bench.out.done["b"].progress.cached_tokens == 50 + 20 - 1
    assert bench.output("b") == expected_output(follow, 5)


def test_requests_that_arrive_together_compute_their_shared_prefix_once() -> None:
    bench = Bench(step_tokens=64, rows=32)
    trunk = prompts(1, 200, 200)[0]
    for i in range(20):
        bench.submit(str(i), [*trunk, i, i + 1], 3)
    bench.run()
    ideal = 200 + 20 * 2 + 20 * 3
    assert bench.worker.forwarded_tokens <= ideal + 10
    for i in range(20):
        assert bench.output(str(i)) == expected_output([*trunk, i, i + 1], 3)


@pytest.mark.parametrize("overlap", [True, False])
def test_end_of_sequence_ends_and_is_not_part_of_the_output(overlap: bool) -> None:
    prompt = [4, 8]
    eos = frozenset({expected_output(prompt, 6)[5]})
    bench = Bench(eos=eos, overlap=overlap)
    bench.submit("a", prompt, 50)
    bench.submit("b", prompt, 9, ignore_eos=True)
    bench.run()
    assert bench.output("a") == expected_output(prompt, 50, eos)
    assert bench.out.done["a"].finish == "stop"
    assert bench.output("b") == expected_output(prompt, 9)
    assert bench.out.done["b"].finish == "length"


def test_stop_token_ids_end_the_output() -> None:
    prompt = [9, 9, 1]
    expected = expected_output(prompt, 8)
    bench = Bench()
    bench.submit("a", prompt, 50, stop_token_ids=(expected[3],))
    bench.run()
    assert bench.output("a") == expected[: expected.index(expected[3])]


def test_a_stop_by_text_ends_within_the_step() -> None:
    bench = Bench()
    bench.out.stop_after["a"] = 4
    bench.submit("a", [1], 50)
    bench.run()
    assert bench.output("a") == expected_output([1], 4)
    assert bench.out.done["a"].finish == "stop"


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    choices=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=30),
    prompt_len=st.integers(1, 90),
    overlap=st.booleans(),
)
def test_scores_equal_brute_force_in_one_forward(
    choices: list[list[int]], prompt_len: int, overlap: bool
) -> None:
    prompt = prompts(1, prompt_len, prompt_len, seed=prompt_len)[0]
    bench = Bench(overlap=overlap, step_tokens=128)
    bench.submit("mate", [*prompt[:3], 1], 12)
    bench.score("s", prompt, choices)
    bench.run()
    score = bench.out.done["s"].score
    assert score is not None
    for result, choice in zip(score.results, choices, strict=True):
        assert result == pytest.approx(expected_scores(prompt, choice), abs=1e-4)
    assert bench.output("mate") == expected_output([*prompt[:3], 1], 12)


def test_scores_that_were_aborted_on_their_way_are_an_error() -> None:
    bench = Bench(step_tokens=16)
    bench.score("s", prompts(1, 100, 100)[0], [[1, 2], [3]])
    bench.scheduler.step()
    bench.scheduler.abort("s")
    bench.run()
    result = reading_of(bench.out.done["s"], "hash")
    assert result.error is not None and result.error["code"] == "Cancelled"


def test_choices_over_the_step_budget_take_several_forwards() -> None:
    bench = Bench(step_tokens=40, context=300)
    prompt = prompts(1, 120, 120)[0]
    choices = prompts(30, 5, 20, seed=9)
    bench.score("s", prompt, choices)
    bench.run()
    score = bench.out.done["s"].score
    assert score is not None
    for result, choice in zip(score.results, choices, strict=True):
        assert result == pytest.approx(expected_scores(prompt, choice), abs=1e-4)


def test_prompt_logprobs_are_read_for_every_token_even_when_cached() -> None:
    bench = Bench(step_tokens=48)
    prompt = prompts(1, 150, 150)[0]
    bench.submit("warm", prompt, 1)
    bench.run()
    bench.submit("a", prompt, 2, prompt_logprobs=0, logprobs=0)
    bench.run()
    done = bench.out.done["a"]
    assert [entry.token_id for entry in done.progress.prompt_logprobs] == prompt[1:]
    expected = expected_scores(prompt[:1], prompt[1:])
    assert [e.logprob for e in done.progress.prompt_logprobs] == pytest.approx(expected, abs=1e-4)
    assert [e.token_id for e in done.progress.logprobs] == done.output_ids()


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    bench = Bench(fail_steps=frozenset({3}), overlap=False)
    bench.submit("a", [1, 2, 3], 30)
    for _ in range(6):
        bench.scheduler.step()
    bench.submit("b", [1, 2, 3], 10)
    bench.run()
    failed = bench.out.done["a"]
    assert failed.finish == "error"
    assert isinstance(failed.progress.error, BackendError) and failed.progress.error.retryable
    assert bench.output("b") == expected_output([1, 2, 3], 10)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 10_000), overlap=st.booleans())
def test_aborts_free_memory_within_a_step_and_leave_the_others_alone(
    seed: int, overlap: bool
) -> None:
    r = random.Random(seed)
    bench = Bench(tokens=600, step_tokens=32, overlap=overlap)
    work = prompts(16, 1, 60, seed=seed)
    for i, prompt in enumerate(work):
        bench.submit(str(i), prompt, 10)
    doomed = set(r.sample(range(16), 8))
    for i in doomed:
        for _ in range(r.randint(0, 3)):
            bench.scheduler.step()
        request = bench.scheduler._requests.get(str(i))
        bench.scheduler.abort(str(i))
        assert request is None or request.finish is not None
        bench.scheduler.step()
        assert request is None or request.row == -1, "memory was kept for longer than one step"
    bench.run()
    for i, prompt in enumerate(work):
        if i not in doomed:
            assert bench.output(str(i)) == expected_output(prompt, 10)
        else:
            assert bench.out.done[str(i)].finish in ("abort", "length")


def test_an_abort_reaches_siblings_behind_one_that_has_ended() -> None:
    bench = Bench()
    bench.out.stop_after["a#1"] = 2
    bench.submit("a", [1, 2, 3], 400, n=4)
    while "a#1" not in bench.out.done:
        bench.scheduler.step()
    bench.scheduler.abort("a")
    bench.run()
    reasons = {name: request.finish for name, request in bench.out.done.items()}
    assert reasons == {"a": "abort", "a#1": "stop", "a#2": "abort", "a#3": "abort"}


def test_one_sequence_can_be_ended_alone() -> None:
    bench = Bench()
    bench.submit("a", [1, 2, 3], 8, n=2)
    bench.scheduler.step()
    bench.scheduler.end_one("a", "stop")
    bench.scheduler.end_one("b", "stop")
    bench.run()
    assert (bench.out.done["a"].finish, bench.out.done["a#1"].finish) == ("stop", "length")


def test_ten_thousand_random_aborts_leak_nothing() -> None:
    r = random.Random(11)
    bench = Bench(tokens=256, step_tokens=64, context=64, rows=16, max_running_requests=16)
    for i in range(10_000):
        bench.submit(str(i), [r.randrange(VOCAB) for _ in range(r.randint(1, 12))], 6)
        if r.random() < 0.7:
            bench.scheduler.step()
        bench.scheduler.abort(str(r.randint(max(0, i - 4), i)))
    bench.run()
    assert len(bench.out.done) == 10_000
    assert bench.scheduler.stats.aborted > 5_000
    bench.cache.flush()
    assert bench.cache.free_tokens == bench.cache.capacity_tokens


def test_a_deadline_ends_a_waiting_and_a_running_request() -> None:
    bench = Bench(max_running_requests=1)
    bench.submit("a", [1], 400, deadline=time.monotonic() + 0.05)
    bench.submit("b", [2], 400, deadline=time.monotonic() + 0.02)
    deadline = time.monotonic() + 5
    while bench.scheduler.num_unfinished and time.monotonic() < deadline:
        bench.scheduler.step()
    assert {bench.out.done[n].finish for n in "ab"} <= {"deadline", "length"}
    assert bench.out.done["b"].finish == "deadline"
    bench.run()


def test_n_outputs_share_the_prompt_and_end_separately() -> None:
    bench = Bench()
    prompt = prompts(1, 100, 100)[0]
    bench.submit("a", prompt, 5, n=4)
    bench.run()
    names = ["a", "a#1", "a#2", "a#3"]
    assert sorted(bench.out.done) == names
    assert len({bench.out.done[name].seed for name in names}) == 4
    assert bench.worker.forwarded_tokens <= 100 + 4 * 6 + 4


def test_bad_requests_are_refused_by_name() -> None:
    bench = Bench(context=64)
    for prompt, needle in (([], "empty"), ([1] * 64, "64"), ([VOCAB], "vocabulary")):
        with pytest.raises(InvalidRequest, match=needle):
            bench.submit("x", prompt)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        bench.submit("x", [1], 0)
    wrong: tuple[tuple[str, Any], ...] = (
        *(("priority", value) for value in ("1", 1.5, 2**40)),
        *(("deadline", value) for value in ("1", math.inf, math.nan)),
    )
    for name, value in wrong:
        with pytest.raises(InvalidRequest, match=name):
            bench.submit("x", [1], **{name: value})
    with pytest.raises(InvalidRequest, match="no choices"):
        bench.score("x", [1], [])
    with pytest.raises(InvalidRequest, match="choice is empty"):
        bench.score("x", [1], [[]])
    full = Bench(max_queued_requests=2)
    full.submit("a", [1])
    full.submit("b", [1])
    with pytest.raises(QueueFull):
        full.submit("c", [1])
    full.run()
    assert full.output("a") == expected_output([1], 8)


def test_output_is_cut_at_the_context_with_reason_length() -> None:
    bench = Bench(context=32)
    bench.submit("a", [1] * 20, 500)
    bench.run()
    assert bench.out.done["a"].finish == "length"
    assert len(bench.output("a")) == 12
    assert bench.output("a")[0] == best(checksum([1] * 20))


def test_every_request_that_runs_is_told_of_once_before_its_end() -> None:
    bench = Bench(tokens=96, rows=4, step_tokens=32)
    for i in range(6):
        bench.submit(f"r{i}", [i + 1] * 12, max_tokens=24)
    bench.score("s", [1, 2, 3], [[4], [5, 6]])
    bench.run()
    assert bench.scheduler.stats.retractions > 0
    assert sorted(bench.out.begun) == sorted(bench.out.done)


def test_grammars_are_prepared_when_there_is_nothing_to_do_and_not_before() -> None:
    bench = Bench()
    bench.submit("a", [1, 2, 3])
    bench.run()
    assert bench.grammars.prepared == 0
    assert bench.scheduler.audit() == 0
    assert bench.grammars.prepared == 1


@pytest.mark.parametrize("overlap", [True, False, "constrained"])
def test_masks_fill_while_the_forward_runs_and_only_where_they_are_needed(
    overlap: bool | str,
) -> None:
    """Between a step's forward and its sampling; one row for each sampled one, None = no mask."""
    constrained = Overlapped() if overlap == "constrained" else None
    bench = Bench(overlap=bool(overlap), constrained_overlap=constrained)
    events: list[object] = []
    worker, grammars = bench.worker, bench.grammars
    forward, sample, fill = worker.forward, worker.sample, grammars.fill

    def forwarding(plan: Any, *, awaited: bool = False) -> Any:
        events.append("forward")
        return forward(plan, awaited=awaited)

    def sampling(pending: Any, bitmask: Any) -> None:
        events.append("sample")
        sample(pending, bitmask)

    def filling(matchers: Any, count: int) -> Any:
        events.append([matcher is not None for matcher in matchers])
        return fill(matchers, count)

    worker.forward, worker.sample = forwarding, sampling  # type: ignore[method-assign]
    grammars.fill = filling  # type: ignore[method-assign]
    bench.submit("free", [1, 2, 3], 6)
    bench.run()
    assert not [event for event in events if isinstance(event, list)]
    events.clear()
    bench.submit("free again", [4, 5, 6], 6)
    bench.submit(
        "bound", [7, 8], 3, constraint=Constraint(kind="regex", text="[[1,2],[3,4],[5,6]]")
    )
    bench.run()
    fills = [at for at, event in enumerate(events) if isinstance(event, list)]
    assert len(fills) == 3
    for at in fills:
        assert (events[at - 1], events[at + 1]) == ("forward", "sample")
        assert sorted(events[at]) == [False, True]  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [True, False])
def test_an_outbox_that_need_not_hear_is_told_of_the_first_id_and_of_the_end(overlap: bool) -> None:
    heard: list[str] = []
    outputs = []
    for quiet in (True, False):
        bench = Bench(overlap=overlap, eos=frozenset({best(checksum([5, 6]))}))
        heard.clear()
        push = bench.out.push

        def pushed(request: Request, push: Any = push) -> bool:
            heard.append(request.id)
            return bool(push(request))

        bench.out.push = pushed  # type: ignore[method-assign]
        bench.out.quiet = lambda request, quiet=quiet: quiet  # type: ignore[method-assign, misc]
        for name, prompt in (("long", [1, 2, 3]), ("ends", [5, 6]), ("also", [9, 9])):
            bench.submit(name, prompt, 30, ignore_eos=name != "ends")
        bench.run()
        names = ("long", "ends", "also")
        outputs.append([(bench.output(n), bench.out.done[n].finish) for n in names])
        # The first id, those that find no room in the array of ids, and the last one.
        assert (heard.count("long") < 10) == quiet
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == ([], "stop")


def test_rows_that_began_together_do_not_all_grow_in_one_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots are given several at once; the step in which a row gets some takes the host longer."""
    bench = Bench(grow_ahead=8)
    grown: list[int] = []
    extend = bench.cache.extend

    def counted(row: int, old_len: int, new_len: int) -> bool:
        grown[-1] += 1
        return extend(row, old_len, new_len)

    monkeypatch.setattr(bench.cache, "extend", counted)
    for i in range(16):
        bench.submit(str(i), [5, 6, 7, 8 + i], 40)
    while len(bench.out.done) < 16:
        grown.append(0)
        bench.scheduler.step()
    decoding = grown[grown.index(max(grown)) + 1 :]  # behind the prompts
    assert sum(decoding) <= 16 * (40 / 8 + 1)
    assert max(decoding) <= 3
