"""Embeddings in the scheduler: the same bits whatever runs beside them and however they are cut."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.messages import Pooling
from branchline.runtime.core.pooling import PoolState
from branchline.runtime.core.sequence import reading_of
from branchline.runtime.errors import InvalidRequest
from tests.scheduler.harness import Bench
from tests.support.hash_model import VOCAB, HashWorker, expected_output, expected_states

POOLINGS: list[Pooling] = ["last", "mean"]


def expected_vector(prompt: list[int], pooling: Pooling, normalize: bool = True) -> list[float]:
    """By brute force: all states at once."""
    states = np.array(expected_states(prompt), dtype=np.float32)
    pool = PoolState(pooling)
    pool.add(states if pooling == "mean" else states[-1:])
    values: list[float] = pool.vector(dimensions=None, normalize=normalize).tolist()
    return values


def random_ids(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, count)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_a_prompt_in_chunks_is_the_prompt_at_once(pooling: Pooling, length: int) -> None:
    bench = Bench()
    prompt = random_ids(length, length)
    bench.embed("a", prompt, pooling=pooling)
    bench.embed("b", prompt[:1], pooling=pooling, normalize=False)
    bench.run()
    assert bench.vector("a") == expected_vector(prompt, pooling)
    assert bench.vector("b") == expected_vector(prompt[:1], pooling, normalize=False)
    meta = reading_of(bench.out.done["a"], "hash").meta
    assert (meta.finish_reason, meta.prompt_tokens, meta.output_tokens) == ("stop", length, 0)
    assert meta.seed is None


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_vectors_depend_on_their_prompt_alone(data: st.DataObject) -> None:
    """Beside generation and scores, with shared beginnings, little memory, and retraction."""
    draw = data.draw
    trunk = random_ids(draw(st.integers(0, 99)), draw(st.integers(1, 40)))
    bench = Bench(
        tokens=draw(st.sampled_from([144, 256, 4096])),
        page_size=draw(st.sampled_from([1, 4])),
        step_tokens=draw(st.sampled_from([16, 24, 64])),
        context=128,
        rows=draw(st.integers(2, 8)),
        lazy=draw(st.booleans()),
        prefix_cache=draw(st.booleans()),
        overlap=draw(st.booleans()),
    )
    wanted: dict[str, tuple[list[int], Pooling]] = {}
    texts: dict[str, tuple[list[int], int]] = {}
    for index in range(draw(st.integers(1, 8))):
        name = f"r{index}"
        prompt = trunk[: draw(st.integers(1, len(trunk)))] + random_ids(
            index, draw(st.integers(0, 40))
        )
        kind = draw(st.sampled_from(["last", "mean", "text", "score"]))
        if kind == "text":
            texts[name] = (prompt, draw(st.integers(1, 30)))
            bench.submit(name, *texts[name])
        elif kind == "score":
            bench.score(name, prompt, [[1, 2], [3]])
        else:
            wanted[name] = (prompt, "last" if kind == "last" else "mean")
            bench.embed(name, prompt, pooling=wanted[name][1])
        for _ in range(draw(st.integers(0, 2))):
            bench.scheduler.step()
    bench.run()
    for name, (prompt, pooling) in wanted.items():
        assert bench.vector(name) == expected_vector(prompt, pooling)
    for name, (prompt, count) in texts.items():
        assert bench.output(name) == expected_output(prompt, count)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_retracted_prompt_begins_again(pooling: Pooling) -> None:
    bench = Bench(tokens=256, step_tokens=16, prefix_cache=False)
    prompt = random_ids(1, 100)
    bench.embed("a", prompt, pooling=pooling)
    for _ in range(3):
        bench.scheduler.step()
    request = bench.out.scheduler and bench.scheduler._requests["a"]
    assert request is not None and 0 < request.planned_len < 100
    while request.inflight:
        bench.scheduler._commit_oldest()
    bench.scheduler._planner.retract(request)
    bench.run()
    assert request.progress.retractions == 1
    assert bench.vector("a") == expected_vector(prompt, pooling)


def test_last_uses_the_cache_and_mean_computes_all_but_leaves_it_there() -> None:
    bench = Bench()
    prompt = random_ids(2, 40)
    for name, pooling, cached in (("a", "mean", 0), ("b", "last", 39), ("c", "mean", 0)):
        bench.embed(name, prompt, pooling=pooling)
        bench.run()
        assert reading_of(bench.out.done[name], "hash").meta.cached_tokens == cached
    assert bench.worker.forwarded_tokens == 40 + 1 + 40
    bench.submit("d", prompt, 4)
    bench.run()
    assert bench.out.done["d"].progress.cached_tokens == 39


def test_means_that_share_a_beginning_do_not_wait_for_each_other() -> None:
    """Nothing of it would be taken from the cache; waiting would only put them one by one."""
    bench = Bench(step_tokens=256)
    trunk = random_ids(3, 20)
    for index in range(8):
        bench.embed(f"m{index}", [*trunk, index], pooling="mean")
    bench.run()
    assert bench.scheduler.stats.held_back == 0
    assert bench.worker.steps == 1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_end_before_the_vector_is_complete_has_none(pooling: Pooling) -> None:
    bench = Bench(step_tokens=16)
    prompt = random_ids(4, 200)
    bench.embed("abort", prompt, pooling=pooling)
    bench.embed("late", prompt[1:], pooling=pooling, deadline=time.monotonic() + 3600)
    bench.embed("past", prompt[2:], pooling=pooling, deadline=time.monotonic() - 1)
    bench.embed("whole", prompt[3:], pooling=pooling)
    bench.scheduler.step()
    bench.scheduler.step()
    bench.scheduler.abort("abort")
    bench.run()
    results = {name: reading_of(request, "hash") for name, request in bench.out.done.items()}
    assert results["abort"].meta.finish_reason == "abort"
    assert results["abort"].error is not None and results["abort"].error["code"] == "Cancelled"
    assert results["past"].meta.finish_reason == "deadline"
    assert results["past"].error is not None
    assert bench.vector("abort") == bench.vector("past") == []
    assert bench.vector("late") == expected_vector(prompt[1:], pooling)
    assert bench.vector("whole") == expected_vector(prompt[3:], pooling)


def test_a_failed_step_and_a_broken_state_end_their_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(fail_steps=frozenset({0}))
    bench.embed("failed", [1, 2, 3])
    bench.run()
    bench.embed("broken", [4, 5, 6], pooling="mean")
    bench.embed("fine", [7, 8, 9], pooling="mean")
    run = HashWorker._run

    def spoil(worker: HashWorker, plan: Any, bitmask: Any) -> Any:
        output = run(worker, plan, bitmask)
        assert output.hidden is not None
        output.hidden[1, 0] = np.nan
        return output

    monkeypatch.setattr(HashWorker, "_run", spoil)
    bench.run()
    errors = {name: request.progress.error for name, request in bench.out.done.items()}
    assert "injected" in str(errors["failed"]) and "hidden states" in str(errors["broken"])
    assert bench.vector("failed") == bench.vector("broken") == []
    assert bench.vector("fine") == expected_vector([7, 8, 9], "mean")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [VOCAB]}, "vocabulary"),
        ({"prompt": [1] * 512}, "512 tokens"),
        ({"pooling": "cls"}, "Known: last, mean"),
        ({"dimensions": 0}, "Use 1 to 3"),
        ({"dimensions": 4}, "Use 1 to 3"),
    ],
)
def test_what_cannot_be_embedded_is_refused_at_once(change: dict[str, Any], words: str) -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest, match=words):
        bench.embed("a", **{"prompt": [1], **change})
    assert bench.scheduler.num_unfinished == 0


def test_prompts_to_score_that_share_a_beginning_do_not_wait_either() -> None:
    bench = Bench(step_tokens=256)
    for index in range(4):
        bench.submit(f"p{index}", [*range(20), index + 20], 1, prompt_logprobs=0)
    bench.run()
    assert bench.scheduler.stats.held_back == 0
    assert bench.worker.steps == 1
