"""Workers: order, overlap, failures, masks, scores; both kinds behave alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import ScheduleBatch, ScoreRead
from branchline.runtime.core.protocols import Worker
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError
from branchline.runtime.executor import scores
from branchline.runtime.executor.build import build_worker
from branchline.runtime.executor.model_runner import ModelRunner
from branchline.runtime.executor.step import Forwarded, StepExecutor
from branchline.runtime.executor.worker import CpuWorker
from branchline.runtime.models.base import Model
from branchline.runtime.sampling.sampler import Sampler
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch
from tests.support.model_driver import Driver, Part

PROMPTS = {0: [1, 5, 9, 30], 1: [1, 88], 2: [1, 7, 7, 7, 7, 41, 3]}


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("native", threads=2)


@pytest.fixture
def driver(model: Model, ops: Ops) -> Driver:
    return Driver(model, ops)


@pytest.fixture(params=[True, False], ids=["thread", "caller"])
def worker(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Worker]:
    made = build_worker(driver.runner, overlap=request.param)
    yield made
    made.close()


def sampled(driver: Driver, *parts: Part, **params: Any) -> ScheduleBatch:
    """A plan whose parts are all sampled, greedily unless `params` say otherwise."""
    plan = driver.plan([Part(p.row, p.ids, p.tree, p.every, sample=True) for p in parts])
    rows = [RowSampling(SamplingParams(**({"temperature": 0.0} | params)), 0, 0) for _ in parts]
    plan.sampling = SamplingBatch.build(rows)
    return plan


def greedy_alone(model: Model, ops: Ops, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation, one request, one step at a time, logits on the host."""
    driver = Driver(model, ops, graph=False)
    logits = driver.run(Part(0, prompt))
    ids = [int(logits[-1].argmax())]
    while len(ids) < count:
        ids.append(int(driver.run(Part(0, ids[-1:]))[-1].argmax()))
    return ids


def test_steps_queued_ahead_read_the_ids_sampled_before_them(
    model: Model, ops: Ops, driver: Driver, worker: Worker
) -> None:
    """All of a generation is planned before its first token is known."""
    plans = [sampled(driver, *(Part(row, ids) for row, ids in PROMPTS.items()))]
    plans += [sampled(driver, *(Part(row, [-1]) for row in PROMPTS)) for _ in range(20)]
    steps = []
    for plan in plans:
        steps.append(worker.forward(plan))
        worker.sample(steps[-1], None)
    outputs = [step.result() for step in steps]
    for i, (row, prompt) in enumerate(PROMPTS.items()):
        got = [int(output.token_ids[i, 0]) for output in outputs]
        assert got == greedy_alone(model, ops, prompt, len(got))
        start = len(prompt)
        assert driver.runner.token_table[row, start : start + len(got)].tolist() == got
    assert all(output.num_new.tolist() == [1, 1, 1] for output in outputs)


def test_the_mask_named_for_a_step_is_applied_to_it(driver: Driver, worker: Worker) -> None:
    plan = sampled(driver, Part(0, PROMPTS[0]), Part(1, PROMPTS[1]))
    step = worker.forward(plan)
    mask = np.zeros((2, 4), dtype=np.int32)
    mask[0, 1], mask[1] = 1 << 5, -1
    worker.sample(step, mask)
    ids = step.result().token_ids[:, 0]
    assert ids[0] == 37
    free = driver.run(Part(5, PROMPTS[1]))
    assert ids[1] == int(free.argmax())


def test_logprobs_of_sampled_tokens_are_the_model_own(driver: Driver, worker: Worker) -> None:
    plan = sampled(driver, Part(0, PROMPTS[2]), logprobs=3)
    step = worker.forward(plan)
    worker.sample(step, None)
    output = step.result()
    expected = driver.logprobs(Part(1, PROMPTS[2]))[0]
    assert output.logprobs is not None
    np.testing.assert_allclose(
        output.logprobs.chosen[0], expected[output.token_ids[0, 0]], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        output.logprobs.top_values[0], expected.topk(3).values, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("chunk", [64, 2])
def test_scores_equal_log_softmax(
    driver: Driver, worker: Worker, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    parts = [Part(0, PROMPTS[0], every=True), Part(2, PROMPTS[2], every=True)]
    plan = driver.plan(parts)
    reads = rng.integers(0, len(plan.logit_idx), 23).astype(np.int32)
    tokens = rng.integers(0, driver.runner.vocab_size, 23).astype(np.int32)
    plan.score = ScoreRead(reads, tokens, top_k=4)
    step = worker.forward(plan)
    worker.sample(step, None)
    output = step.result()
    assert output.token_ids.shape == (0, 1)
    assert output.num_new.shape == (0,)
    expected = driver.logprobs(*(Part(p.row + 4, p.ids, every=True) for p in parts)).numpy()
    assert output.scores is not None
    np.testing.assert_allclose(output.scores.chosen, expected[reads, tokens], rtol=1e-4, atol=1e-4)
    best = -np.sort(-expected[reads], axis=1)[:, :4]
    np.testing.assert_allclose(output.scores.top_values, best, rtol=1e-4, atol=1e-4)
    found = np.take_along_axis(expected[reads], output.scores.top_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)


def test_a_failed_step_fails_alone(driver: Driver, worker: Worker) -> None:
    good = sampled(driver, Part(0, PROMPTS[0]))
    bad = sampled(driver, Part(1, PROMPTS[1]))
    bad.positions = bad.positions[:0]
    after = sampled(driver, Part(2, PROMPTS[2]))
    steps = [worker.forward(plan) for plan in (good, bad, after)]
    for step in steps:
        worker.sample(step, None)
    assert steps[0].result().token_ids.shape == (1, 1)
    with pytest.raises(Exception, match="broadcast"):
        steps[1].result()
    assert steps[1].done()
    with pytest.raises(Exception, match="broadcast"):
        steps[1].result()
    assert steps[2].result().token_ids.shape == (1, 1)


def test_failed_sampling_is_delivered_too(driver: Driver, worker: Worker) -> None:
    plan = sampled(driver, Part(0, PROMPTS[0]))
    step = worker.forward(plan)
    worker.sample(step, np.zeros((7, 1), dtype=np.int32))
    with pytest.raises(Exception, match=r"."):
        step.result()


def test_nan_is_reported_in_its_row_and_not_raised(
    driver: Driver, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(plan: ScheduleBatch) -> torch.Tensor:
        logits = ModelRunner.run_to_logits(driver.runner, plan)
        logits[1] = torch.nan
        return logits

    monkeypatch.setattr(driver.runner, "run_to_logits", poisoned)
    step = worker.forward(sampled(driver, *(Part(row, ids) for row, ids in PROMPTS.items())))
    worker.sample(step, None)
    output = step.result()
    assert output.bad_rows == (1,)
    monkeypatch.undo()
    for i in (0, 2):
        expected = driver.run(Part(i + 3, PROMPTS[i]))
        assert output.token_ids[i, 0] == int(expected.argmax())


class SlowExecutor(StepExecutor):
    """Logs the halves of steps; forwards wait for a gate."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner, Sampler(runner.vocab_size))
        self.log: list[str] = []
        self.gate = threading.Event()
        self.thread: threading.Thread | None = None

    def forward(self, plan: ScheduleBatch) -> Forwarded:
        self.gate.wait()
        self.thread = threading.current_thread()
        self.log.append(f"forward {plan.num_tokens}")
        return super().forward(plan)

    def finish(self, step: Forwarded, bitmask: Any) -> Any:
        self.log.append(f"sample {step.plan.num_tokens}")
        return super().finish(step, bitmask)


def test_the_caller_never_waits_and_steps_keep_their_order(driver: Driver) -> None:
    executor = SlowExecutor(driver.runner)
    worker = CpuWorker(executor)
    first = worker.forward(sampled(driver, Part(0, PROMPTS[0])))
    second = worker.forward(sampled(driver, Part(1, PROMPTS[1])))
    worker.sample(second, None)
    assert not first.done()
    executor.gate.set()
    deadline = time.monotonic() + 5
    while executor.log != ["forward 4"] and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert executor.log == ["forward 4"]  # the second waits until the first is sampled
    assert not second.done()
    worker.sample(first, None)
    assert second.result().token_ids.shape == (1, 1)
    assert executor.log == ["forward 4", "sample 4", "forward 2", "sample 2"]
    assert executor.thread is not None
    assert executor.thread.daemon
    assert executor.thread is not threading.current_thread()
    worker.close()


def test_an_awaited_step_runs_in_the_thread_that_waits(driver: Driver) -> None:
    executor = SlowExecutor(driver.runner)
    executor.gate.set()
    worker = CpuWorker(executor)
    step = worker.forward(sampled(driver, Part(0, PROMPTS[0])), awaited=True)
    worker.sample(step, None)
    assert not step.done() and executor.log == []
    threads, want = torch.get_num_threads(), int(driver.run(Part(3, PROMPTS[0]))[-1].argmax())
    assert step.result().token_ids.tolist() == [[want]] == step.result().token_ids.tolist()
    assert executor.thread is threading.current_thread()
    assert executor.log == ["forward 4", "sample 4"] and torch.get_num_threads() == threads
    worker.close()


def test_an_awaited_step_keeps_its_place_among_others(driver: Driver) -> None:
    """Behind a step on its way, and ahead of one that comes before anybody waits for it."""
    executor = SlowExecutor(driver.runner)
    worker = CpuWorker(executor)
    plans = [sampled(driver, Part(row, ids)) for row, ids in PROMPTS.items()]
    steps = [worker.forward(plan, awaited=index == 1) for index, plan in enumerate(plans)]
    executor.gate.set()
    for step in steps:
        worker.sample(step, None)
    assert steps[1].result() is not None and steps[2].result() is not None
    held = worker.forward(sampled(driver, Part(1, [-1])), awaited=True)
    after = worker.forward(sampled(driver, Part(2, [-1])))
    for step in (held, after):
        worker.sample(step, None)
    assert after.result() is not None and held.result() is not None
    assert executor.thread is not threading.current_thread()
    sizes = [int(line.split()[1]) for line in executor.log if line.startswith("forward")]
    assert sizes == [4, 2, 7, 1, 1]
    worker.close()


def test_a_failed_awaited_step_raises_where_it_is_waited_for(driver: Driver) -> None:
    worker = build_worker(driver.runner)
    plan = sampled(driver, Part(0, PROMPTS[0]))
    plan.sampling = "no parameters"  # type: ignore[assignment]
    step = worker.forward(plan, awaited=True)
    worker.sample(step, None)
    for _ in range(2):
        with pytest.raises(AttributeError):
            step.result()
    held = worker.forward(sampled(driver, Part(1, PROMPTS[1])), awaited=True)
    worker.close()
    with pytest.raises(BackendError, match="closed"):
        held.result()


def test_close_fails_what_was_not_sampled_and_refuses_more(driver: Driver) -> None:
    worker = build_worker(driver.runner)
    first = worker.forward(sampled(driver, Part(0, PROMPTS[0])))
    second = worker.forward(sampled(driver, Part(1, PROMPTS[1])))
    while driver.lengths[0] and not first.done() and not _waits(worker):
        time.sleep(0.001)
    worker.close()
    worker.close()
    for step in (first, second):
        with pytest.raises(BackendError, match="closed"):
            step.result()
    with pytest.raises(BackendError, match="closed"):
        worker.forward(sampled(driver, Part(2, PROMPTS[2])))


def _waits(worker: Worker) -> bool:
    assert isinstance(worker, CpuWorker)
    return worker._current is not None


def test_row_at_the_end_of_its_context_can_be_sampled(
    model: Model, driver: Driver, worker: Worker, tmp_path: Path
) -> None:
    ids = [5] * model.max_context
    step = worker.forward(sampled(driver, Part(0, ids)))
    worker.sample(step, None)
    got = int(step.result().token_ids[0, 0])
    assert driver.runner.token_table[0, model.max_context] == got
