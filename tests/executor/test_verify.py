"""Guesses over a real model: outputs are those of plain decoding, drawn ones too; on the native
path bit for bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.batch import ForwardMode, ScheduleBatch
from branchline.runtime.core.drafting import Drafter, DraftRow
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import TokenLogprob
from branchline.runtime.core.protocols import Pending, Worker
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.executor.build import (
    RunnerSettings,
    build_runner,
    build_worker,
    load_model,
)
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_worker import DevicePending, DeviceWorker
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.models.base import Model
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.intake import Bounds, Intake
from branchline.runtime.scheduler.scheduler import Scheduler
from tests.executor.test_device_scheduler import Outbox
from tests.scheduler.harness import TableGrammars
from tests.support.model_driver import (
    CONTEXT,
    load_tiny,
    reference_logprobs,
    reference_model,
    tiny_llama,
)
from tests.support.oracle_drafter import OracleDrafter
from tests.support.queued import Queued

VOCAB = 101
ROWS = 6
STEP_TOKENS = 64
EOS = frozenset({2})
CPU = torch.device("cpu")

Kind = str
"""Which path a step takes: "reference", "native" or "device"."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[Model, Ops]]:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny"))
    kinds = {"reference": make_ops("reference"), "native": make_ops(threads=1)}
    found = {kind: (load_tiny(folder, ops), ops) for kind, ops in kinds.items()}
    return found | {"device": found["reference"]}


def scheduler_for(
    model: Model,
    ops: Ops,
    kind: Kind,
    *,
    page_size: int = 1,
    tokens: int = 960,
    drafter: Drafter | None = None,
    nodes: tuple[int, int] = (8, 5),
    device: torch.device = CPU,
) -> tuple[Scheduler, Outbox]:
    cache = CacheManager(tokens // page_size, page_size, ROWS, CONTEXT)
    if kind == "device":
        cache.slot_table.record_changes()
        settings = DeviceSettings(
            page_size=page_size,
            max_step_tokens=STEP_TOKENS,
            max_rows=ROWS,
            slot_width=CONTEXT,
            kv_dtype=torch.float32,
            guesses=drafter is not None,
        )
        builder = DeviceBuilder(model, ops, settings, device)
        worker = builder.worker(tokens // page_size, overlap=True)
    else:
        runner = build_runner(
            model,
            ops,
            RunnerSettings(
                num_pages=tokens // page_size, page_size=page_size, kv_dtype=torch.float32
            ),
            cache.slot_table.array,
        )
        worker = build_worker(runner, overlap=False)
    drafts = None
    if drafter is not None:
        drafts = Drafts(
            drafter, vocab_size=VOCAB, eos_ids=EOS, max_nodes=nodes[0], max_depth=nodes[1]
        )
    return scheduler_over(cache, worker, model, drafts, device=kind == "device")


def scheduler_over(
    cache: CacheManager,
    worker: Worker,
    model: Model,
    drafts: Drafts | None,
    *,
    rows: int = ROWS,
    device: bool,
) -> tuple[Scheduler, Outbox]:
    """A scheduler of tests, set as one over such a worker is."""
    out = Outbox()
    scheduler = Scheduler(
        SchedulerSection(),
        cache,
        worker,
        out,
        Intake(Bounds(VOCAB, CONTEXT, STEP_TOKENS // 2, model.spec.hidden), seed=1),
        max_step_tokens=STEP_TOKENS,
        max_running=rows,
        eos_ids=EOS,
        grammars=TableGrammars(forcing=True),
        call_soon=lambda fn: fn(),
        grow_ahead=4 if device else 1,
        drafts=drafts,
    )
    out.scheduler = scheduler
    return scheduler, out


def finish(scheduler: Scheduler) -> None:
    while scheduler.step() or scheduler.num_unfinished:
        pass
    assert scheduler.cache.audit() == []
    assert scheduler.cache.running_tokens == 0


def work(r: random.Random) -> list[dict[str, Any]]:
    """Every parameter that a choice depends on, in turn."""
    bias = {r.randrange(VOCAB): 3.0 for _ in range(4)}
    drawn = {"temperature": 0.8, "seed": r.randrange(999)}
    penalties = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.3,
    }
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        drawn,
        drawn | {"top_p": 0.8, "min_p": 0.02},
        drawn | {"top_k": 7, "logprobs": 2},
        {"temperature": 0.0, "logprobs": 3} | penalties,
        drawn | penalties,
        {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": tuple(range(3, 60))},
        drawn | {"logit_bias": bias, "n": 2},
        {"temperature": 0.0, "logit_bias": bias, "ignore_eos": True} | penalties,
    ]
    return [
        {
            "prompt": [r.randrange(3, VOCAB) for _ in range(r.randint(1, 30))],
            "params": SamplingParams(max_tokens=r.randint(9, 24), **kind),
        }
        for kind in kinds
    ]


def outcomes(scheduler: Scheduler, out: Outbox, requests: list[dict[str, Any]]) -> dict[str, Any]:
    for i, one in enumerate(requests):
        scheduler.submit(
            GenerateRequest(id=str(i), prompt_ids=one["prompt"], sampling=one["params"])
        )
    finish(scheduler)
    return {name: outcome(request) for name, request in out.done.items()}


def outcome(request: Request) -> tuple[list[int], Any, list[TokenLogprob]]:
    end = request.finish, request.progress.end_id
    return request.output_ids(), end, request.progress.logprobs


def assert_alike(found: dict[str, Any], wanted: dict[str, Any], *, bitwise: bool) -> None:
    """Equal ids and ends; log-probabilities equal, bit for bit or up to rounding."""
    assert found.keys() == wanted.keys()
    for name, (ids, end, read) in wanted.items():
        assert found[name][:2] == (ids, end)
        if bitwise:
            assert found[name][2] == read
            continue
        for one, other in zip(found[name][2], read, strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("kind", ["reference", "native", "device"])
def test_outputs_are_those_of_plain_decoding(
    models: dict[Kind, tuple[Model, Ops]], kind: Kind, page_size: int
) -> None:
    model, ops = models[kind]
    for seed in range(2):
        requests = work(random.Random(seed))
        wanted = outcomes(*scheduler_for(model, ops, kind), requests)
        scripts = {name: [*value[0], 2] for name, value in wanted.items()}
        for right, width in ((0.6, 3), (1.0, 1)):
            drafter = OracleDrafter(scripts, VOCAB, right=right, width=width, seed=seed)
            scheduler, out = scheduler_for(model, ops, kind, page_size=page_size, drafter=drafter)
            found = outcomes(scheduler, out, requests)
            assert_alike(found, wanted, bitwise=kind == "native")
            assert scheduler.stats.accepted_tokens > 0
            assert right == 1.0 or (
                scheduler.stats.accepted_tokens < scheduler.stats.drafted_tokens
            )


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("deterministic", "width"), [(False, 2), (True, 2), (True, 1)])
def test_outputs_on_cuda_are_those_of_plain_decoding(
    tmp_path: Path, page_size: int, deterministic: bool, width: int
) -> None:
    """Bit for bit where guesses are chains and results do not depend on the rest of a step."""
    device = torch.device("cuda")
    ops = make_ops(dtype=torch.float32, device=device, deterministic=deterministic)
    checkpoint = SafetensorsCheckpoint(tiny_llama(tmp_path))
    model = load_model(checkpoint, ops, dtype="float32", device=device)
    for seed in range(4):
        requests = work(random.Random(seed))
        wanted = outcomes(*scheduler_for(model, ops, "device", device=device), requests)
        scripts = {name: [*value[0], 2] for name, value in wanted.items()}
        drafter = OracleDrafter(scripts, VOCAB, right=0.7, width=width, seed=seed)
        scheduler, out = scheduler_for(
            model, ops, "device", page_size=page_size, drafter=drafter, device=device
        )
        found = outcomes(scheduler, out, requests)
        assert_alike(found, wanted, bitwise=deterministic and width == 1)
        assert scheduler.stats.accepted_tokens > 0


class Likely:
    """Proposes, always, a tree of the two likeliest ids of each place."""

    def __init__(self, likely: dict[tuple[int, ...], list[int]]) -> None:
        self._likely = likely

    def promising(self, row: DraftRow) -> bool:
        return True

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        return [self._tree(row) for row in rows]

    def finished(self, request_id: str) -> None:
        pass

    def _tree(self, row: DraftRow) -> DraftTree:
        said = tuple(row.ids[row.prompt_len :].tolist())
        tokens, parents, depths = [], [], []
        paths = [(said, -1)]
        for depth in range(row.max_depth):
            level = []
            for path, parent in paths:
                for token in self._likely[path][:2]:
                    level.append(((*path, token), len(tokens)))
                    tokens.append(token)
                    parents.append(parent)
                    depths.append(depth)
            paths = level
        return DraftTree(*(np.array(part, dtype=np.int32) for part in (tokens, parents, depths)))


def test_drawn_outputs_have_the_models_own_distribution(
    models: dict[Kind, tuple[Model, Ops]], tmp_path: Any
) -> None:
    """Chi-square over all outputs of four ids, each one of the three likeliest."""
    prompt, length, k, temperature, draws = [5, 9, 33], 4, 3, 1.5, 1500
    oracle = reference_model(tiny_llama(tmp_path))
    chance: dict[tuple[int, ...], float] = {(): 1.0}
    likely: dict[tuple[int, ...], list[int]] = {}
    for _ in range(length):
        following: dict[tuple[int, ...], float] = {}
        for path, before in chance.items():
            logits = reference_logprobs(oracle, [*prompt, *path])[-1]
            top = logits.topk(k)
            likely[path] = top.indices.tolist()
            shares = torch.softmax(top.values / temperature, dim=-1).tolist()
            for token, share in zip(likely[path], shares, strict=True):
                following[(*path, token)] = before * share
        chance = following
    model, ops = models["reference"]
    scheduler, out = scheduler_for(model, ops, "reference", drafter=Likely(likely), nodes=(6, 2))
    params = {"temperature": temperature, "top_k": k, "max_tokens": length, "ignore_eos": True}
    for i in range(draws // 100):
        sampling = SamplingParams(seed=7919 * i, n=100, **params)
        scheduler.submit(GenerateRequest(id=f"r{i}", prompt_ids=prompt, sampling=sampling))
    finish(scheduler)
    counts = dict.fromkeys(chance, 0)
    for request in out.done.values():
        counts[tuple(request.output_ids())] += 1
    statistic = sum(
        (counts[path] - share * draws) ** 2 / (share * draws) for path, share in chance.items()
    )
    freedom = len(chance) - 1  # 80; the 99.9th percentile is 124.8
    assert freedom == 80 and statistic < 124.8
    assert scheduler.stats.accepted_tokens > draws / 2
    assert scheduler.stats.accepted_tokens < scheduler.stats.drafted_tokens / 2


def test_a_recorded_check_of_guesses_is_one_launch_between_copies(
    models: dict[Kind, tuple[Model, Ops]],
) -> None:
    """There: the whole plan. Back: the ids of all places, whose head and choice are recorded."""
    model, ops = models["device"]
    drafter = OracleDrafter({"a": list(range(3, 40))}, VOCAB, width=2, silent=0.0)
    scheduler, _ = scheduler_for(model, ops, "device", drafter=drafter)
    worker = scheduler._worker
    assert isinstance(worker, DeviceWorker)
    queued, steps = Queued(), []
    for graph in worker.runner.graphs._verify.values():
        graph.replay = queued.one_launch(graph.replay)

    class Watched:
        def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
            queued.names.clear()
            with queued:
                return worker.forward(plan)

        def sample(self, pending: Pending, bitmask: Any) -> None:
            with queued:
                worker.sample(pending, bitmask)
            assert isinstance(pending, DevicePending)
            if pending.plan.mode is ForwardMode.VERIFY:
                steps.append(queued.names.copy())

        def close(self) -> None:
            worker.close()

    scheduler._worker = Watched()
    sampling = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    scheduler.submit(GenerateRequest(id="a", prompt_ids=[5, 6, 7], sampling=sampling))
    finish(scheduler)
    assert len(steps) > 5
    assert all(names == ["copy_", "replay", "clone"] for names in steps), steps
