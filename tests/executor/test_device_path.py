"""The device path on a CPU: the same buffers, sizes, padding and queueing, with reference ops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, OpsPlan, Support
from branchline.runtime.attention.cpu import CpuAttention
from branchline.runtime.attention.registry import BACKENDS
from branchline.runtime.core.batch import RowInit, ScheduleBatch, ScoreRead, SlotWrites
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError
from branchline.runtime.executor.build import build_worker
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_graphs import (
    decode_sizes,
    extend_shapes,
    idle_step,
    verify_shapes,
)
from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.device_worker import DeviceWorker
from branchline.runtime.executor.plan_buffers import TABLE_WRITES, PlanBuffers, StepShape
from branchline.runtime.models.base import Model
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch
from tests.support.model_driver import CONTEXT, Driver, Part

CPU = torch.device("cpu")
ROWS = 8


@pytest.fixture
def driver(model: Model, ops: Ops) -> Driver:
    return Driver(model, ops, max_rows=ROWS, graph=False)


def device_worker(model: Model, ops: Ops, driver: Driver, *, graphs: bool) -> DeviceWorker:
    """A device worker whose tables hold the driver's slots."""
    builder = DeviceBuilder(
        model,
        ops,
        DeviceSettings(
            page_size=1,
            max_step_tokens=256,
            max_rows=ROWS,
            slot_width=driver.slots.shape[1],
            kv_dtype=torch.float32,
            attention="cpu",
            graphs=graphs,
        ),
        CPU,
    )
    worker = builder.worker(ROWS * CONTEXT, overlap=True)
    worker.runner.tables.slots[:ROWS] = torch.from_numpy(driver.slots)
    return worker


class Asked(CpuAttention):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.needs: list[AttentionNeeds] = []

    def supports(self, needs: AttentionNeeds) -> Support:
        self.needs.append(needs)
        return super().supports(needs)


@pytest.mark.parametrize("deterministic", [False, True])
def test_attention_is_as_deterministic_as_the_ops(
    model: Model, driver: Driver, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """A backend that sums in another order for other batch mates must hear that it may not."""
    ops, asked = make_ops("reference"), Asked()
    ops.deterministic = deterministic
    monkeypatch.setitem(BACKENDS, "cpu", lambda needs: asked)
    device_worker(model, ops, driver, graphs=False)
    assert [needs.deterministic for needs in asked.needs] == [deterministic]


def sampled(driver: Driver, *parts: Part, **params: object) -> ScheduleBatch:
    plan = driver.plan([Part(p.row, p.ids, p.tree, p.every, sample=True) for p in parts])
    wanted = SamplingParams(**({"temperature": 0.0} | params))  # type: ignore[arg-type]
    plan.sampling = SamplingBatch.build([RowSampling(wanted, i, 0) for i in range(len(parts))])
    return plan


def test_sizes_hold_every_step_and_are_ascending() -> None:
    for most in (1, 2, 3, 8, 9, 31, 256):
        sizes = decode_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] >= most
        assert all(size < most for size in sizes[:-1])
    shapes = extend_shapes(512, 256)
    assert shapes == sorted(shapes, key=lambda s: (s.tree, s.tokens, s.rows))
    for tokens in range(1, 513):
        for rows in range(1, min(tokens, 256) + 1):
            for tree in (False, True):
                assert any(s.tokens >= tokens and s.rows > rows and s.tree == tree for s in shapes)
    for most in (1, 3, 256):
        shapes = verify_shapes(512, most)
        assert shapes == sorted(shapes, key=lambda s: (s.tokens, s.rows))
        assert all(s.tree and s.verify and s.logits == s.tokens for s in shapes)
        for rows in range(1, min(16, most) + 1):
            for tokens in range(2 * rows, 129):
                assert any(s.tokens >= tokens and s.rows > rows for s in shapes), (rows, tokens)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_padding_leaves_a_plan_as_it_is_and_stays_in_its_own_row(data: st.DataObject) -> None:
    tables = DeviceTables(ROWS, 64, 64, CPU)
    buffers = PlanBuffers(
        tables, tokens=64, rows=16, samples=16, tree_words=0, stream=DeviceStream(CPU)
    )
    decode = data.draw(st.booleans())
    lens = data.draw(st.lists(st.integers(1, 1 if decode else 5), min_size=0, max_size=ROWS))
    plan = idle_step(StepShape(0, 0, 0))
    tokens = sum(lens)
    plan.rows = np.arange(len(lens), dtype=np.int32)
    plan.extend_lens = np.array(lens, dtype=np.int32)
    plan.seq_lens = plan.extend_lens + np.int32(3)
    plan.input_ids = np.arange(1, tokens + 1, dtype=np.int32)
    plan.out_slots = plan.input_ids + np.int32(100)
    plan.previous = plan.out_slots - np.int32(50)
    plan.positions = plan.input_ids.astype(np.int64) % 60
    plan.logit_idx = (np.cumsum(lens) - 1).astype(np.int32)
    plan.sample_idx = plan.sample_rows = np.arange(len(lens), dtype=np.int32)
    extra = data.draw(st.integers(0, 8))
    rows = len(lens) + (extra if decode else max(1, extra))
    total = rows if decode else tokens + extra
    shape = StepShape(total, rows, total, decode=decode)
    # a larger step before must not show through
    buffers.load(idle_step(shape), buffers.views(StepShape(64, 16, 64)))
    views = buffers.views(shape)
    meta = buffers.load(plan, views)
    b = len(lens)
    assert views.input_ids[:tokens].tolist() == plan.input_ids.tolist()
    assert views.positions[:tokens].tolist() == plan.positions.tolist()
    assert views.out_slots[:tokens].tolist() == plan.out_slots.tolist()
    assert views.logit_idx[:b].tolist() == plan.logit_idx.tolist()
    assert views.meta.seq_lens[:b].tolist() == plan.seq_lens.tolist()
    assert views.previous.tolist() == [*plan.previous.tolist(), *[0] * (total - tokens)]
    assert views.input_ids[tokens:].tolist() == [0] * (total - tokens)
    assert views.out_slots[tokens:].tolist() == [0] * (total - tokens)
    assert views.meta.rows[b:].tolist() == [tables.padding_row] * (rows - b)
    assert views.meta.extend_start.tolist() == [0, *np.cumsum(views.meta.extend_lens.tolist())]
    assert int(views.meta.extend_start[-1]) == total
    for row in range(b, rows):
        start, end = views.meta.extend_start[row], views.meta.extend_start[row + 1]
        assert views.positions[start:end].tolist() == list(range(int(end - start)))
        assert views.meta.seq_lens[row] == end - start
    assert views.logit_idx.max() < max(total, 1) if total else True
    places = views.sample_places.tolist()
    assert places[:b] == [row * 65 + int(plan.seq_lens[row]) for row in range(b)]
    assert places[b:] == [tables.padding_place] * (16 - b)
    assert meta.host_seq_lens is not None
    assert meta.host_seq_lens.tolist() == views.meta.seq_lens.tolist()


def test_tables_follow_the_plans_changes() -> None:
    tables = DeviceTables(3, 4, 4, CPU)
    plan = idle_step(StepShape(0, 0, 0))
    plan.slot_writes = SlotWrites(np.array([5, 6, 8]), np.array([9, 8, 7], dtype=np.int32))
    plan.inits = [RowInit(2, 1, np.array([4, 5], dtype=np.int32))]
    changes = tables.changes(plan)
    tables.write(tables.upload(changes))
    assert tables.slots.tolist() == [[0] * 4, [0, 9, 8, 0], [7, 0, 0, 0], [0] * 4]
    assert tables.tokens[2].tolist() == [0, 4, 5, 0, 0]
    assert tables.tokens[3].tolist() == [0] * 5


@pytest.mark.parametrize("count", [0, 1, TABLE_WRITES, TABLE_WRITES + 1])
def test_changes_that_travel_with_a_plan_are_those_that_go_alone(count: int) -> None:
    """Few are made by what `load` gives back, many are made by `load`; padding writes padding."""
    width = 700
    tables, alone = (DeviceTables(3, width, width, CPU) for _ in range(2))
    buffers = PlanBuffers(
        tables, tokens=8, rows=4, samples=16, tree_words=0, stream=DeviceStream(CPU)
    )
    gen = np.random.default_rng(count)
    shape = StepShape(2, 2, 2, decode=True)
    for size in (count, count // 3):
        plan = idle_step(shape)
        index = gen.permutation(3 * width)[:size].astype(np.int64)
        plan.slot_writes = SlotWrites(index, gen.integers(1, 99, size).astype(np.int32))
        ids = gen.integers(1, 99, min(size, width)).astype(np.int32)
        plan.inits = [RowInit(row, 0, ids) for row in (0, 2)]
        views = buffers.views(shape)
        buffers.load(plan, views)
        tables.write(views.writes)
        if size:
            alone.write(alone.upload(alone.changes(plan)))
        assert torch.equal(tables.slots, alone.slots)
        assert torch.equal(tables.tokens, alone.tokens)
        assert not tables.slots[3].any() and not tables.tokens[3].any()


@pytest.fixture(params=[False, True], ids=["eager", "recorded"])
def workers(
    request: pytest.FixtureRequest, model: Model, ops: Ops, driver: Driver
) -> Iterator[tuple[Driver, DeviceWorker, Driver]]:
    """A device worker, and a host runner beside it that gets the same plans."""
    twin = Driver(model, ops, max_rows=ROWS, graph=False)
    worker = device_worker(model, ops, driver, graphs=request.param)
    yield driver, worker, twin
    worker.close()


def test_steps_give_what_the_host_gives(
    workers: tuple[Driver, DeviceWorker, Driver],
) -> None:
    driver, worker, twin = workers
    host = build_worker(twin.runner, overlap=False)
    prompts = [Part(0, [1, 5, 9, 30]), Part(3, [1, 88]), Part(5, [1, 7, 7, 7, 41, 3])]
    ids: list[int] = []
    for step in range(4):
        parts = prompts if step == 0 else [Part(p.row, [-1]) for p in prompts]
        outputs = []
        for one, made in ((driver, worker), (twin, host)):
            plan = sampled(one, *parts, logprobs=3)
            pending = made.forward(plan)
            made.sample(pending, None)
            outputs.append(pending.result())
        device, reference = outputs
        assert device.token_ids.tolist() == reference.token_ids.tolist()
        assert device.logprobs is not None and reference.logprobs is not None
        np.testing.assert_allclose(device.logprobs.chosen, reference.logprobs.chosen, atol=1e-4)
        assert device.logprobs.top_ids.tolist() == reference.logprobs.top_ids.tolist()
        ids += device.token_ids[:, 0].tolist()
    assert len(set(ids)) > 1


class Planning(CpuAttention):
    """Notes the tokens of the recorded steps that it is asked to plan."""

    most_planned_keys = 1 << 20

    def __init__(self) -> None:
        self.planned: list[AttentionPlan] = []
        self.tokens: list[int] = []

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> OpsPlan:
        plan = super().init_graph(meta, trunks=trunks, planned=planned)
        if planned:
            self.planned.append(plan)
        return plan

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        super().plan_replay(plan, meta)
        if any(plan is one for one in self.planned):
            assert meta.host_extend_lens is not None
            self.tokens.append(int(meta.host_extend_lens.sum()))


def test_long_steps_are_planned_anew_and_give_what_the_host_gives(
    model: Model, ops: Ops, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among recordings that are not planned, for steps of fewer tokens or over short contexts."""
    room, attention = "branchline.runtime.executor.device_graphs.", Planning()
    for name, value in (("LONG_STEP", 8), ("SHORT_CONTEXT", 4), ("EXTEND_TOKENS", (8, 16, 32))):
        monkeypatch.setattr(room + name, value)
    monkeypatch.setitem(BACKENDS, "cpu", lambda needs: attention)
    worker = device_worker(model, ops, driver, graphs=True)
    twin = Driver(model, ops, max_rows=ROWS, graph=False)
    host = build_worker(twin.runner, overlap=False)
    attention.tokens.clear()
    steps = [
        [Part(0, [1, 5, 9, 30, 2, 8, 9]), Part(3, [1, 88, 3])],  # sees 5.8 tokens
        [Part(0, [-1]), Part(3, [4, 4]), Part(5, [1, 7])],
        [Part(1, [1, 5, 9]), Part(2, [1, 5, 8]), Part(4, [1, 2, 4])],  # sees 3
        [Part(0, [-1]), Part(3, [9] * 14), Part(5, [2, 3])],  # sees 17
    ]
    for parts in steps:
        ids = []
        for one, made in ((driver, worker), (twin, host)):
            pending = made.forward(sampled(one, *parts))
            made.sample(pending, None)
            ids.append(pending.result().token_ids.tolist())
        assert ids[0] == ids[1]
    assert attention.tokens == [16, 32]
    worker.close()


def test_a_pure_decode_step_is_replayed_and_chooses_by_itself(
    model: Model, ops: Ops, driver: Driver
) -> None:
    from branchline.runtime.core.batch import ForwardMode

    worker = device_worker(model, ops, driver, graphs=True)
    twin = Driver(model, ops, max_rows=ROWS, graph=False)
    host = build_worker(twin.runner, overlap=False)
    first = [Part(row, [1, 4 + row]) for row in range(5)]
    for step in range(3):
        parts = first if step == 0 else [Part(row, [-1]) for row in range(5)]
        outputs = []
        for one, made in ((driver, worker), (twin, host)):
            plan = sampled(one, *parts)
            plan.mode = ForwardMode.DECODE if step else ForwardMode.EXTEND
            pending = made.forward(plan)
            if made is worker and step:
                assert worker.runner.graphs.find(plan) is not None
                assert pending.forwarded is not None and pending.forwarded.greedy is not None  # type: ignore[attr-defined]
            made.sample(pending, None)
            outputs.append(pending.result())
        assert outputs[0].token_ids.tolist() == outputs[1].token_ids.tolist()


def test_masks_forbid_and_rows_without_a_choice_are_reported(
    workers: tuple[Driver, DeviceWorker, Driver],
) -> None:
    driver, worker, _ = workers
    plan = sampled(driver, Part(0, [1, 5]), Part(1, [1, 9]))
    bitmask = np.zeros((2, 4), dtype=np.int32)
    bitmask[0, 1] = 1 << 3
    pending = worker.forward(plan)
    worker.sample(pending, bitmask)
    output = pending.result()
    assert output.token_ids[0, 0] == 35
    assert output.bad_rows == (1,)


def test_scores_equal_the_hosts(workers: tuple[Driver, DeviceWorker, Driver]) -> None:
    driver, worker, twin = workers
    host = build_worker(twin.runner, overlap=False)
    found = []
    for one, made in ((driver, worker), (twin, host)):
        plan = one.plan([Part(0, [1, 5, 9, 30], every=True), Part(2, [3, 4], every=True)])
        rows, tokens = [0, 3, 0, 5, 2], [7, 8, 9, 10, 11]
        plan.score = ScoreRead(np.array(rows, np.int32), np.array(tokens, np.int32), top_k=2)
        pending = made.forward(plan)
        made.sample(pending, None)
        scores = pending.result().scores
        assert scores is not None
        found.append(scores)
    np.testing.assert_allclose(found[0].chosen, found[1].chosen, atol=1e-5)
    assert found[0].top_ids.tolist() == found[1].top_ids.tolist()
    np.testing.assert_allclose(found[0].top_values, found[1].top_values, atol=1e-5)


def test_a_failed_step_fails_alone_and_a_closed_worker_says_so(
    workers: tuple[Driver, DeviceWorker, Driver],
) -> None:
    driver, worker, _ = workers
    broken = sampled(driver, Part(0, [1, 5]))
    broken.rows = np.zeros(999, dtype=np.int32)
    pending = worker.forward(broken)
    worker.sample(pending, None)
    with pytest.raises(AssertionError, match="no more rows"):
        pending.result()
    fine = worker.forward(sampled(driver, Part(1, [1, 5])))
    worker.sample(fine, None)
    assert fine.result().token_ids.shape == (1, 1)
    worker.close()
    with pytest.raises(BackendError, match="closed"):
        worker.forward(sampled(driver, Part(2, [1])))
