"""The scheduler over the device path, on a CPU: same outputs as over the host path (law 2)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.batch import ForwardMode, ScheduleBatch
from branchline.runtime.core.messages import EmbedRequest, GenerateRequest, Pooling, ScoreRequest
from branchline.runtime.core.outputs import EmbedResult
from branchline.runtime.core.protocols import Worker
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.sequence import reading_of
from branchline.runtime.executor import device_runner
from branchline.runtime.executor.build import (
    RunnerSettings,
    build_runner,
    build_worker,
    load_model,
)
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_runner import QueuedForward
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.models.base import Model
from branchline.runtime.scheduler.intake import Bounds, Intake
from branchline.runtime.scheduler.scheduler import Scheduler
from tests.scheduler.harness import TableGrammars
from tests.support.model_driver import CONTEXT, tiny_llama

VOCAB = 101
ROWS = 6
STEP_TOKENS = 48


@dataclass
class Outbox:
    done: dict[str, Request] = field(default_factory=dict)
    scheduler: Scheduler | None = None

    def started(self, request: Request) -> None:
        pass

    def push(self, request: Request) -> bool:
        return False

    def quiet(self, request: Request) -> bool:
        return True

    def finish(self, request: Request) -> None:
        self.done[request.id] = request
        assert self.scheduler is not None
        self.scheduler.forget(request)


def device_worker(
    model: Model, ops: Ops, cache: CacheManager, tokens: int, device: torch.device
) -> Worker:
    cache.slot_table.record_changes()
    settings = DeviceSettings(
        page_size=1,
        max_step_tokens=STEP_TOKENS,
        max_rows=ROWS,
        slot_width=CONTEXT,
        kv_dtype=torch.float32,
    )
    return DeviceBuilder(model, ops, settings, device).worker(tokens, overlap=True)


def outputs(
    model: Model, ops: Ops, *, device: torch.device | None, tokens: int, seed: int
) -> dict[str, Any]:
    """Ids, scores or vectors of a random load; over the host path where no device is named."""
    cache = CacheManager(tokens, 1, ROWS, CONTEXT)
    if device is not None:
        worker = device_worker(model, ops, cache, tokens, device)
    else:
        settings = RunnerSettings(num_pages=tokens, kv_dtype=torch.float32, graph=False)
        worker = build_worker(
            build_runner(model, ops, settings, cache.slot_table.array), overlap=False
        )
    out = Outbox()
    scheduler = Scheduler(
        SchedulerSection(),
        cache,
        worker,
        out,
        Intake(
            Bounds(VOCAB, min(CONTEXT, tokens - 1), STEP_TOKENS // 2, model.spec.hidden), seed=1
        ),
        max_step_tokens=STEP_TOKENS,
        max_running=ROWS,
        eos_ids=frozenset({2}),
        grammars=TableGrammars(forcing=True),
        call_soon=lambda fn: fn(),
        grow_ahead=1 if device is None else 4,
    )
    out.scheduler = scheduler
    r = random.Random(seed)
    trunk = [r.randrange(3, VOCAB) for _ in range(30)]
    forced = "[[5], [7], [9], null, [11, 12], [13], [14]]"
    for i in range(14):
        prompt = trunk[: r.randint(1, 30)] + [r.randrange(3, VOCAB) for _ in range(r.randint(0, 9))]
        if i % 5 == 4:
            choices = [[4, 5, 6], [4, 7], [8]]
            scheduler.submit(ScoreRequest(id=str(i), prompt_ids=prompt, choices=choices))
            continue
        if i % 5 == 2:
            pooling: Pooling = "last" if i % 2 else "mean"
            scheduler.submit(EmbedRequest(id=str(i), prompt_ids=prompt, pooling=pooling))
            continue
        constraint = Constraint(kind="regex", text=forced) if i % 4 == 1 else None
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=r.randint(1, 20),
            constraint=constraint,
            logprobs=2 if i % 3 == 0 else None,
        )
        scheduler.submit(GenerateRequest(id=str(i), prompt_ids=prompt, sampling=sampling))
        for _ in range(r.randint(0, 2)):
            scheduler.step()
    while scheduler.step() or scheduler.num_unfinished:
        pass
    assert cache.audit() == []
    worker.close()
    return {name: _result(request) for name, request in out.done.items()}


def _result(request: Request) -> Any:
    if request.generates:
        return request.output_ids()
    reading = reading_of(request, "tiny")
    return reading.embedding if isinstance(reading, EmbedResult) else reading.token_logprobs


def assert_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal ids, and equal scores and vectors up to rounding."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value and isinstance(value[0], list):
            for one, other in zip(found[name], value, strict=True):
                assert one == pytest.approx(other, abs=1e-3)
        elif value and isinstance(value[0], float):
            assert found[name] == pytest.approx(value, abs=1e-4)
        else:
            assert found[name] == value


@pytest.mark.parametrize("tokens", [120, 600], ids=["retracting", "roomy"])
@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_are_those_of_the_host_path(model: Model, ops: Ops, tokens: int, seed: int) -> None:
    wanted = outputs(model, ops, device=None, tokens=tokens, seed=seed)
    found = outputs(model, ops, device=torch.device("cpu"), tokens=tokens, seed=seed)
    assert_alike(found, wanted)


@pytest.mark.parametrize("places", [2, 4])
def test_mixed_steps_that_sample_more_than_their_recording_chooses_for(
    model: Model, ops: Ops, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[bool] = []
    run = device_runner.DeviceRunner.run

    def noted(self: device_runner.DeviceRunner, plan: ScheduleBatch) -> QueuedForward:
        found, count = run(self, plan), len(plan.sample_rows)
        if plan.mode is ForwardMode.EXTEND and count and self.graphs.find(plan) is not None:
            chosen.append(found.greedy is not None)
            assert chosen[-1] == (count <= places)
        return found

    monkeypatch.setattr(device_runner, "MIXED_SAMPLES", places)
    monkeypatch.setattr(device_runner.DeviceRunner, "run", noted)
    wanted = outputs(model, ops, device=None, tokens=600, seed=1)
    found = outputs(model, ops, device=torch.device("cpu"), tokens=600, seed=1)
    assert_alike(found, wanted)
    assert (places == 4) == any(chosen) and not all(chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [120, 600], ids=["retracting", "roomy"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_outputs_on_cuda_are_those_of_the_host_path(
    model: Model, ops: Ops, tmp_path: Path, tokens: int, deterministic: bool
) -> None:
    device = torch.device("cuda")
    cuda_ops = make_ops(dtype=torch.float32, device=device, deterministic=deterministic)
    checkpoint = SafetensorsCheckpoint(tiny_llama(tmp_path))
    cuda_model = load_model(checkpoint, cuda_ops, dtype="float32", device=device)
    for seed in range(3):
        wanted = outputs(model, ops, device=None, tokens=tokens, seed=seed)
        found = outputs(cuda_model, cuda_ops, device=device, tokens=tokens, seed=seed)
        assert_alike(found, wanted)
