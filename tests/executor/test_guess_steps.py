"""Guesses that the worker makes and keeps within its steps: outputs are those of plain decoding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.core.drafting import MAX_GUESSES, StepDrafter
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.protocols import Pending
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.executor.build import load_model
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_worker import DevicePending, DeviceWorker
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import StandaloneDraft
from branchline.runtime.scheduler import drafts as drafts_module
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.pace import Pace
from branchline.runtime.scheduler.scheduler import Scheduler
from tests.executor.test_device_scheduler import Outbox
from tests.executor.test_verify import (
    CONTEXT,
    EOS,
    ROWS,
    STEP_TOKENS,
    VOCAB,
    assert_alike,
    finish,
    outcome,
    scheduler_over,
    work,
)
from tests.support.model_driver import load_tiny, tiny_llama

CPU = torch.device("cpu")
WIDTH, DEPTH, LEVELS, NODES = 3, 4, 6, 7

pytestmark = pytest.mark.usefixtures("swift")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ops, Model, Model]:
    """Ops, a model, and one that is often of its opinion."""
    ops = make_ops("reference")
    folder = tiny_llama(tmp_path_factory.mktemp("tiny"))
    return ops, load_tiny(folder, ops), doubtful(load_tiny(folder, ops))


def doubtful(model: Model) -> Model:
    """The model with another final norm."""
    norm = model.norm.weight  # type: ignore[attr-defined]
    with torch.inference_mode():
        noise = np.random.default_rng(1).standard_normal(norm.shape[0])
        norm.add_(torch.from_numpy(0.15 * noise).to(norm))
    return model


class Watched:
    """A worker whose plans are counted by how their candidates come about."""

    def __init__(self, worker: DeviceWorker) -> None:
        self._worker = worker
        self.follows = self.host_reads = self.accepts = self.repeats = 0
        self.sent_again = 0  # steps that follow one that followed, and are no repeats of it
        self._followed = False

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        drafted = plan.drafted
        follows = drafted is not None and bool(drafted.follows.any())
        self.sent_again += follows and self._followed and not plan.repeats
        self._followed = follows
        if drafted is not None:
            self.follows += follows
            self.accepts += drafted.accepts
            self.host_reads += drafted.host_reads
            self.repeats += plan.repeats
        return self._worker.forward(plan, awaited=awaited)

    def sample(self, pending: Pending, bitmask: Any) -> None:
        self._worker.sample(pending, bitmask)

    def close(self) -> None:
        self._worker.close()


def watched_scheduler(
    ops: Ops,
    model: Model,
    drafts: Drafts | None,
    draft: StandaloneDraft | None = None,
    *,
    page_size: int = 1,
    tokens: int = 960,
    rows: int = ROWS,
    device: torch.device = CPU,
    **settings: Any,
) -> tuple[Scheduler, Outbox, Watched]:
    """A scheduler over a device's worker of these `DeviceSettings`."""
    cache = CacheManager(tokens // page_size, page_size, rows, CONTEXT)
    cache.slot_table.record_changes()
    sizes = DeviceSettings(
        page_size=page_size,
        max_step_tokens=STEP_TOKENS,
        max_rows=rows,
        slot_width=CONTEXT,
        kv_dtype=torch.float32,
        **settings,
    )
    builder = DeviceBuilder(model, ops, sizes, device, draft)
    worker = Watched(builder.worker(tokens // page_size, overlap=True))
    scheduler, out = scheduler_over(cache, worker, model, drafts, rows=rows, device=True)
    return scheduler, out, worker


def scheduler_for(
    ops: Ops, model: Model, guesser: Model | None, *, pace: Pace | None = None, **sizes: Any
) -> tuple[Scheduler, Outbox, Watched]:
    """With a draft model, or none."""
    drafts, draft = None, None
    if guesser is not None:
        limits = {"vocab_size": VOCAB, "max_nodes": NODES, "max_depth": DEPTH}
        drafts = Drafts(StepDrafter(LEVELS), eos_ids=EOS, pace=pace, **limits)
        draft = StandaloneDraft(guesser)
    beam = {"draft_width": WIDTH, "draft_levels": LEVELS, "draft_nodes": NODES}
    return watched_scheduler(ops, model, drafts, draft, guesses=draft is not None, **beam, **sizes)


def run(scheduler: Scheduler, out: Outbox, requests: list[dict[str, Any]]) -> dict[str, Any]:
    for i, one in enumerate(requests):
        scheduler.submit(
            GenerateRequest(id=str(i), prompt_ids=one["prompt"], sampling=one["params"])
        )
    finish(scheduler)
    return {name: outcome(request) for name, request in out.done.items()}


def free_work(r: random.Random, count: int) -> list[dict[str, Any]]:
    """What a worker can keep guesses of by itself."""
    drawn = {"temperature": 0.8, "seed": r.randrange(999), "top_p": 0.9}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        drawn,
        {"temperature": 0.0, "ignore_eos": True, "logprobs": 2},
        {"temperature": 0.0, "stop_token_ids": tuple(range(3, 9))},
        drawn | {"logit_bias": {r.randrange(VOCAB): 2.0}},
    ]
    return [
        {
            "prompt": [r.randrange(3, VOCAB) for _ in range(r.randint(2, 20))],
            "params": SamplingParams(max_tokens=r.randint(30, 70), **kinds[i % len(kinds)]),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("page_size", "graphs", "count"), [(1, False, 1), (16, False, 8), (1, True, 4)]
)
def test_steps_follow_each_other_without_a_look_between(
    models: tuple[Ops, Model, Model], page_size: int, graphs: bool, count: int
) -> None:
    ops, model, guesser = models
    requests = free_work(random.Random(count), count)
    scheduler, out, _ = scheduler_for(ops, model, None, graphs=False)
    wanted = run(scheduler, out, requests)
    sizes: dict[str, Any] = {"page_size": page_size, "graphs": graphs}
    scheduler, out, worker = scheduler_for(ops, model, guesser, **sizes)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert 0 < scheduler.stats.accepted_tokens < scheduler.stats.drafted_tokens
    assert worker.follows > 0 and worker.host_reads == 0
    assert worker.follows > worker.repeats > 0


def test_guesses_begin_while_the_prompt_is_computed(
    models: tuple[Ops, Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no step is waited for before the next one is queued, until the output is about to end."""
    ops, model, guesser = models
    scheduler, out, worker = scheduler_for(ops, model, guesser, graphs=False)
    log: list[str] = []
    for owner, name in ((DeviceWorker, "forward"), (DevicePending, "result")):
        call = getattr(owner, name)

        def logged(*args: Any, call: Any = call, name: str = name, **kwargs: Any) -> Any:
            log.append(name)
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, logged)
    sampling = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    run(scheduler, out, [{"prompt": list(range(3, 20)), "params": sampling}])
    assert worker.accepts > 8
    assert log[:14] == ["forward"] + ["forward", "result"] * 6 + ["forward"]


@pytest.mark.parametrize("page_size", [1, 16])
def test_what_lies_between_is_known_where_it_counts(
    models: tuple[Ops, Model, Model], page_size: int
) -> None:
    """Penalties, bounds from below and all the rest beside each other."""
    ops, model, guesser = models
    requests = work(random.Random(page_size))
    scheduler, out, _ = scheduler_for(ops, model, None, graphs=False)
    wanted = run(scheduler, out, requests)
    scheduler, out, worker = scheduler_for(ops, model, guesser, page_size=page_size, graphs=False)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.host_reads > 0


def constrained_work(r: random.Random) -> list[dict[str, Any]]:
    """Masks, forced ids, ids forced where others are allowed, and an end that may come early."""

    def some(count: int) -> list[int]:
        return sorted(r.sample(range(3, VOCAB), count))

    tables: list[list[Any]] = [
        [some(30) for _ in range(20)],
        [[some(40), some(1), some(1), some(1), None][i % 5] for i in range(25)],
        [{"run": some(1)} if i % 4 == 2 else None for i in range(20)],
    ]
    requests = []
    for table in tables:
        for text in (json.dumps(table), json.dumps({"rows": table, "enough": 6})):
            constraint = Constraint(kind="json_schema", text=text)
            drawn = {"temperature": 0.8, "seed": r.randrange(99)} if len(requests) % 3 else {}
            sampling = SamplingParams(
                **{"temperature": 0.0} | drawn, max_tokens=30, constraint=constraint
            )
            requests.append({"prompt": some(9), "params": sampling})
    return requests


@pytest.mark.parametrize(
    ("page_size", "graphs", "at_once", "seed"),
    [(1, False, 6, 5), (16, False, 1, 6), (1, True, 1, 7), (1, True, 3, 8)],
)
def test_constraints_are_asked_of_every_candidate(
    models: tuple[Ops, Model, Model], page_size: int, graphs: bool, at_once: int, seed: int
) -> None:
    """While one step runs the next is queued."""
    ops, model, guesser = models
    requests = constrained_work(random.Random(seed))
    scheduler, out, _ = scheduler_for(ops, model, None, graphs=False)
    wanted = run(scheduler, out, requests)
    sizes: dict[str, Any] = {"page_size": page_size, "graphs": graphs}
    scheduler, out, worker = scheduler_for(ops, model, guesser, **sizes)
    found: dict[str, Any] = {}
    for first in range(0, len(requests), at_once):
        some_of = run(scheduler, out, requests[first : first + at_once])
        found |= {str(first + int(name)): got for name, got in some_of.items()}
        out.done.clear()
    assert_alike(found, wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.host_reads > 0
    if at_once == 1:
        assert worker.follows > worker.repeats > 0 and worker.accepts == worker.host_reads
        assert not worker.sent_again, "an id that is forced changes nothing of a plan"


def test_who_takes_long_over_a_tree_is_guessed_for_no_more(
    models: tuple[Ops, Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts_module, "SLOW_WALK_S", -1.0)
    ops, model, guesser = models
    requests = constrained_work(random.Random(6))
    scheduler, out, _ = scheduler_for(ops, model, None, graphs=False)
    wanted = run(scheduler, out, requests)
    scheduler, out, _ = scheduler_for(ops, model, guesser, graphs=False)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert 0 < scheduler.stats.drafts <= 2 * len(requests)  # one may be queued by then


@pytest.mark.parametrize("paced", [False, True])
def test_more_rows_than_a_round_has_take_turns(
    models: tuple[Ops, Model, Model], paced: bool
) -> None:
    """With and without a pace, which gives some rows guesses and others none."""
    ops, model, guesser = models
    requests = free_work(random.Random(7), 24)
    sizes: dict[str, Any] = {"graphs": False, "rows": 18, "tokens": 2000}
    wanted = run(*scheduler_for(ops, model, None, **sizes)[:2], requests)
    pace = Pace(NODES, MAX_GUESSES) if paced else None
    scheduler, out, worker = scheduler_for(ops, model, guesser, pace=pace, **sizes)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.accepts > 0


def test_guesses_end_with_the_context(models: tuple[Ops, Model, Model]) -> None:
    ops, model, guesser = models
    sampling = SamplingParams(temperature=0.0, max_tokens=CONTEXT - 40, ignore_eos=True)
    requests = [{"prompt": [5 + i % 50 for i in range(40)], "params": sampling}]
    wanted = run(*scheduler_for(ops, model, None, graphs=False)[:2], requests)
    scheduler, out, worker = scheduler_for(ops, model, guesser, graphs=False)
    assert run(scheduler, out, requests) == wanted
    assert worker.follows > 0 and len(wanted["0"][0]) == CONTEXT - 40


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [1, 16])
def test_on_cuda_too(tmp_path: Path, page_size: int) -> None:
    device = torch.device("cuda")
    ops = make_ops(dtype=torch.float32, device=device)

    def loaded() -> Model:
        checkpoint = SafetensorsCheckpoint(tiny_llama(tmp_path))
        return load_model(checkpoint, ops, dtype="float32", device=device)

    model, guesser = loaded(), doubtful(loaded())
    for name, make in (
        ("free", lambda r: free_work(r, 9)),
        ("constrained", constrained_work),
        ("all", work),
    ):
        for seed in range(2):
            requests = make(random.Random(seed))
            wanted = run(*scheduler_for(ops, model, None, device=device)[:2], requests)
            scheduler, out, worker = scheduler_for(
                ops, model, guesser, page_size=page_size, device=device
            )
            assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
            assert scheduler.stats.accepted_tokens > 0
            assert (worker.follows if name == "free" else worker.host_reads) > 0
