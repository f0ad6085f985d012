"""Guesses that a device looks up within its steps: outputs are those of plain decoding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.drafting import MAX_GUESSES
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.executor.build import load_model
from branchline.runtime.executor.device_runner import DeviceRunner
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.pace import Pace
from branchline.runtime.scheduler.scheduler import Scheduler
from branchline.runtime.speculative.ngram import NgramDrafter
from tests.executor.test_device_scheduler import Outbox
from tests.executor.test_guess_steps import Watched, free_work, run, watched_scheduler
from tests.executor.test_verify import (
    CONTEXT,
    EOS,
    VOCAB,
    assert_alike,
    work,
)
from tests.support.model_driver import load_tiny, tiny_llama

CPU = torch.device("cpu")
NODES = 7

pytestmark = pytest.mark.usefixtures("swift")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ops, Model]:
    ops = make_ops("reference")
    return ops, load_tiny(repetitive(tmp_path_factory.mktemp("tiny")), ops)


def repetitive(folder: Path) -> Path:
    """A model of few words, whose next depends little on more than the last one: it goes round."""
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_llama(folder / "usual"))
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "o_proj" in name:
                parameter.mul_(0.05)
            if "down_proj" in name:
                parameter.mul_(4.0)
        model.get_input_embeddings().weight[40:60] *= 3.0
    model.save_pretrained(folder / "repetitive")
    return folder / "repetitive"


def scheduler_for(
    ops: Ops, model: Model, nodes: int, *, pace: Pace | None = None, **sizes: Any
) -> tuple[Scheduler, Outbox, Watched]:
    """A scheduler over a device whose rows have up to so many guesses, 0 = none."""
    drafts = None
    if nodes:
        limits = {"vocab_size": VOCAB, "max_nodes": nodes, "max_depth": nodes}
        drafts = Drafts(
            NgramDrafter(), eos_ids=EOS, pace=pace, linked=False, looked_up=True, **limits
        )
    return watched_scheduler(ops, model, drafts, guesses=nodes > 0, lookup_nodes=nodes, **sizes)


def quoting(r: random.Random, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with prompts that repeat themselves, so that there is something to quote."""
    for one in requests:
        text = [r.randrange(3, VOCAB) for _ in range(6)]
        one["prompt"] = [*text, *one["prompt"][:6], *text, *text]
    return requests


@pytest.mark.parametrize(
    ("page_size", "graphs", "count"), [(1, False, 1), (16, False, 8), (1, True, 5)]
)
def test_steps_follow_each_other_without_a_look_between(
    made: tuple[Ops, Model], page_size: int, graphs: bool, count: int
) -> None:
    r = random.Random(count)
    requests = quoting(r, free_work(r, count))
    scheduler, out, _ = scheduler_for(*made, 0, graphs=False)
    wanted = run(scheduler, out, requests)
    scheduler, out, worker = scheduler_for(*made, NODES, page_size=page_size, graphs=graphs)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert 0 < scheduler.stats.accepted_tokens < scheduler.stats.drafted_tokens
    assert worker.follows > 0 and worker.host_reads == 0


@pytest.mark.parametrize("page_size", [1, 16])
def test_rows_whose_choice_depends_on_guesses_are_looked_up_by_the_host(
    made: tuple[Ops, Model], page_size: int
) -> None:
    """Penalties, bounds from below and all the rest beside each other."""
    r = random.Random(page_size)
    requests = quoting(r, work(r))
    scheduler, out, _ = scheduler_for(*made, 0, graphs=False)
    wanted = run(scheduler, out, requests)
    scheduler, out, worker = scheduler_for(*made, NODES, page_size=page_size, graphs=False)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.accepts > 0 and worker.host_reads == 0


def test_constrained_rows_run_beside_rows_that_quote(made: tuple[Ops, Model]) -> None:
    r = random.Random(5)
    allowed = sorted(r.sample(range(3, VOCAB), 40))
    table = [[allowed, allowed[:1], allowed[:1], None][i % 4] for i in range(24)]
    constraint = Constraint(kind="json_schema", text=json.dumps(table))
    requests = quoting(r, free_work(r, 4))
    sampling = SamplingParams(temperature=0.0, max_tokens=30, constraint=constraint)
    requests += [{"prompt": [*allowed[:9], *allowed[:5]], "params": sampling}]
    scheduler, out, _ = scheduler_for(*made, 0, graphs=False)
    wanted = run(scheduler, out, requests)
    scheduler, out, worker = scheduler_for(*made, NODES, graphs=False)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.accepts > 0


def test_nobody_is_looked_up_where_all_rows_are_constrained(
    made: tuple[Ops, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = list(range(3, 31))
    constraint = Constraint(kind="json_schema", text=json.dumps([allowed] * 24))
    sampling = SamplingParams(temperature=0.0, max_tokens=30, constraint=constraint)
    requests = [{"prompt": [*allowed[:9], *allowed[: 5 + i]], "params": sampling} for i in range(3)]
    looked: list[int] = []
    look_up = DeviceRunner.look_up

    def counted(runner: DeviceRunner, step: Any, sampled: Any) -> None:
        looked.append(len(sampled))
        look_up(runner, step, sampled)

    monkeypatch.setattr(DeviceRunner, "look_up", counted)
    wanted = run(*scheduler_for(*made, 0, graphs=False)[:2], requests)
    scheduler, out, _ = scheduler_for(*made, NODES, graphs=False)
    assert run(scheduler, out, requests) == wanted
    assert not looked
    requests.append({"prompt": allowed[:9], "params": SamplingParams(max_tokens=9, seed=1)})
    run(*scheduler_for(*made, NODES, graphs=False)[:2], requests)
    assert looked, "but where one is free"


def test_drawn_rows_are_looked_up_now_and_then(
    made: tuple[Ops, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their look-up is launched by itself: in few steps while none quotes, in all that guess."""
    r = random.Random(11)
    sampling = SamplingParams(temperature=0.8, seed=3, max_tokens=60, ignore_eos=True)
    requests = [{"prompt": [*range(3, 40)], "params": sampling}]
    looked: list[bool] = []
    look_up = DeviceRunner.look_up

    def counted(runner: DeviceRunner, step: Any, sampled: Any) -> None:
        looked.append(len(sampled) > 1)
        look_up(runner, step, sampled)

    monkeypatch.setattr(DeviceRunner, "look_up", counted)
    never = msgspec.structs.replace(sampling, speculative=False)
    scheduler, out, _ = scheduler_for(*made, NODES, graphs=False)
    run(scheduler, out, [{"prompt": requests[0]["prompt"], "params": never}])
    assert 0 < looked.count(False) <= scheduler.stats.steps // 8 + 1
    looked.clear()
    requests = quoting(r, requests)
    wanted = run(*scheduler_for(*made, 0, graphs=False)[:2], requests)
    scheduler, out, worker = scheduler_for(*made, NODES, graphs=False)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert looked.count(True) == worker.accepts > 0


@pytest.mark.parametrize("paced", [False, True])
def test_as_many_rows_as_there_are(made: tuple[Ops, Model], paced: bool) -> None:
    """With and without a pace, which gives some rows guesses and others none."""
    r = random.Random(7)
    requests = quoting(r, free_work(r, 24))
    sizes: dict[str, Any] = {"graphs": False, "rows": 18, "tokens": 2000}
    wanted = run(*scheduler_for(*made, 0, **sizes)[:2], requests)
    pace = Pace(NODES, MAX_GUESSES) if paced else None
    scheduler, out, worker = scheduler_for(*made, NODES, pace=pace, **sizes)
    assert_alike(run(scheduler, out, requests), wanted, bitwise=False)
    assert scheduler.stats.accepted_tokens > 0 and worker.accepts > 0


def test_guesses_end_with_the_context(made: tuple[Ops, Model]) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=CONTEXT - 40, ignore_eos=True)
    requests = [{"prompt": [5 + i % 10 for i in range(40)], "params": sampling}]
    wanted = run(*scheduler_for(*made, 0, graphs=False)[:2], requests)
    scheduler, out, worker = scheduler_for(*made, NODES, graphs=False)
    assert run(scheduler, out, requests) == wanted
    assert worker.follows > 0 and len(wanted["0"][0]) == CONTEXT - 40


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_cuda_too(tmp_path: Path, page_size: int, deterministic: bool) -> None:
    """Bit for bit where results do not depend on the rest of a step: guesses are chains."""
    device = torch.device("cuda")
    ops = make_ops(dtype=torch.float32, device=device, deterministic=deterministic)
    checkpoint = SafetensorsCheckpoint(repetitive(tmp_path))
    model = load_model(checkpoint, ops, dtype="float32", device=device)
    for name, make in (("free", lambda r: free_work(r, 9)), ("all", work)):
        for seed in range(2):
            r = random.Random(seed)
            requests = quoting(r, make(r))
            wanted = run(*scheduler_for(ops, model, 0, device=device)[:2], requests)
            scheduler, out, worker = scheduler_for(
                ops, model, NODES, page_size=page_size, device=device
            )
            found = run(scheduler, out, requests)
            assert_alike(found, wanted, bitwise=deterministic)
            assert scheduler.stats.accepted_tokens > 0
            assert worker.follows > 0 or name == "all"
