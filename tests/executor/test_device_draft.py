"""The device's way to guess, on a CPU: fixed sizes, padding and queueing, with reference ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from branchline.kernels.beam import Check
from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.kernels.reference import ReferenceOps
from branchline.runtime.core.batch import (
    DraftedRows,
    ForwardMode,
    ScheduleBatch,
    TreeMask,
    TreeSamples,
)
from branchline.runtime.core.tree import NOBODY, DraftTree
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_draft import (
    DeviceDraft,
    draft_sizes,
    recordings_bytes,
)
from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.device_worker import trees_of
from branchline.runtime.executor.draft_load import load_head
from branchline.runtime.executor.drafting import DraftSeed, best_tree
from branchline.runtime.executor.host_draft import HostDraft, scratch_slots
from branchline.runtime.executor.plan_buffers import PlanBuffers, StepShape
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.executor.torch_threads import torch_threads
from branchline.runtime.loading.eagle_checkpoint import EagleCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel
from tests.support.eagle_oracle import write_head
from tests.support.model_driver import CONTEXT, Driver, Part, load_tiny, tiny_llama
from tests.support.queued import Queued

WIDTH, DEPTH, VOCAB, NODES = 3, 5, 101, 10
IDS = [1, 17, 5, 99, 42, 42, 8, 63, 12, 30, 3, 55, 20, 7]
CPU = torch.device("cpu")
SCRATCH = scratch_slots(WIDTH, DEPTH)


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("reference")


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny_llama(tmp_path_factory.mktemp("target"), num_hidden_layers=6)
    return load_tiny(folder, ops)


@pytest.fixture(scope="module", params=["1", "3", "3, mapped"])
def head(
    request: pytest.FixtureRequest, model: Model, ops: Ops, tmp_path_factory: pytest.TempPathFactory
) -> DraftModel:
    folder: Path = tmp_path_factory.mktemp("head")
    version, mapped = int(request.param[0]), "mapped" in request.param
    write_head(folder, version, VOCAB, draft_vocab=40 if mapped else None)
    return load_head(EagleCheckpoint(folder), model, ops, dtype="float32", device=CPU)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


class Rounds:
    """A device's rounds for rows of a driver, and the trees that they make of them."""

    def __init__(self, driver: Driver, ops: Ops) -> None:
        draft = driver.runner.draft
        assert draft is not None
        self._driver, stream = driver, DeviceStream(CPU)
        rows, width = driver.slots.shape
        tables = DeviceTables(rows, width + NODES, CONTEXT, CPU)
        sizes = {"tokens": 512, "rows": 24, "samples": 512, "tree_words": 512}
        self._buffers = PlanBuffers(tables, stream=stream, **sizes)
        self._tensors = self._buffers.views(StepShape(512, 24, 512, tree=True))
        tables.slots[:rows, :width] = torch.from_numpy(driver.slots)
        self.device = DeviceDraft(
            draft,
            ops,
            stream,
            Recorder(stream),
            tables,
            max_context=CONTEXT,
            width=WIDTH,
            max_depth=DEPTH,
            most=NODES,
            vocab_size=VOCAB,
            check=self._tensors.check(),
        )

    def loaded(self, seeds: Sequence[Seed]) -> tuple[ScheduleBatch, Check]:
        """A step with as many places for candidates behind each row as there may be."""
        known = [len(seed.pending) for seed in seeds]
        lens = np.array(known, dtype=np.int32) + np.int32(NODES)
        before = np.array([self._driver.lengths[seed.row] for seed in seeds], dtype=np.int32)
        tokens, places, count = int(lens.sum()), len(seeds) * (NODES + 1), len(seeds)
        ids = [np.array([*seed.pending, *[0] * NODES], dtype=np.int32) for seed in seeds]
        none, every = np.zeros(tokens, dtype=np.int32), np.arange(places, dtype=np.int32)
        samples = TreeSamples(np.zeros(places, dtype=np.int64), {})
        plan = ScheduleBatch(
            mode=ForwardMode.VERIFY,
            rows=np.array([seed.row for seed in seeds], dtype=np.int32),
            seq_lens=before + lens,
            extend_lens=lens,
            input_ids=np.concatenate(ids),
            positions=none.astype(np.int64),
            out_slots=none,
            logit_idx=every,
            sample_idx=every,
            sample_rows=np.repeat(np.arange(count, dtype=np.int32), NODES + 1),
            tree=TreeMask(
                np.full(count, NODES, dtype=np.int32),
                np.arange(count, dtype=np.int32) * np.int32(NODES),
                np.zeros(count * NODES, dtype=np.uint64),
                samples,
                drafted=DraftedRows(
                    rows=np.arange(count, dtype=np.int32),
                    levels=np.array([s.depth + len(s.pending) - 1 for s in seeds], dtype=np.int32),
                    follows=np.zeros(count, dtype=np.bool_),
                    allowed=[seed.allowed for seed in seeds],
                    accepts=True,
                ),
            ),
        )
        self._buffers.load(plan, self._tensors)
        return plan, self._tensors.check()

    def trees(self, seeds: Sequence[Seed]) -> list[DraftTree]:
        plan, check = self.loaded(seeds)
        self.device.guess(plan, check)
        return trees_of(plan, check.nodes.numpy())


class Seed(NamedTuple):
    """A row with ids behind what is computed of it, and what is wanted."""

    row: int
    pending: list[int]
    depth: int
    allowed: Any = None

    def on_host(self, driver: Driver) -> DraftSeed:
        slots = driver.slots[self.row, : driver.lengths[self.row]].copy()
        pending = np.array(self.pending, dtype=np.int32)
        return DraftSeed(slots, pending, self.depth, self.allowed)


def paths(tree: DraftTree | None) -> set[tuple[int, ...]]:
    """Of every candidate, the ids up to it."""
    assert tree is not None
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        if parent == NOBODY:
            break
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)


def test_guesses_equal_the_hosts(model: Model, head: DraftModel, ops: Ops) -> None:
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH)
    for row in range(5):
        driver.run(Part(row, IDS[row : row + 6 + row]))
    rounds, draft = Rounds(driver, ops), driver.runner.draft
    assert draft is not None
    host = HostDraft(draft, ops, max_context=CONTEXT, width=WIDTH, max_depth=DEPTH)
    for size in draft_sizes(DEPTH)[1::2]:  # the others are run op by op
        rounds.device.record(*size)
    even = np.full(4, 0x55555555, dtype=np.int32)
    seeds = [
        Seed(0, [9], DEPTH),
        Seed(1, [4, 70, 8], 2),
        Seed(2, [33], 1, even),
        Seed(3, [3, 4, 5, 6, 7], 1),
        Seed(4, [11, 12], DEPTH - 1),
    ]
    for group in ([seeds[0]], seeds[1:3], seeds, [seeds[3]] * 18):
        theirs = host.guess([seed.on_host(driver) for seed in group])
        for ours, guesses in zip(rounds.trees(group), theirs, strict=True):
            assert paths(ours) == paths(best_tree(guesses, NODES))
    (masked,) = paths_of = [paths(tree) for tree in rounds.trees([seeds[2]])]
    assert masked and all(path[0] % 2 == 0 for path in paths_of[0])


class Joining(ReferenceOps):
    """One product for inputs that lie side by side, as a GPU has it."""

    joins_inputs = True


@pytest.mark.parametrize("version", [1, 3])
def test_inputs_side_by_side_give_the_same_guesses(
    model: Model, ops: Ops, tmp_path: Path, version: int
) -> None:
    write_head(tmp_path, version, VOCAB)
    found = []
    for used in (ops, Joining()):
        checkpoint = EagleCheckpoint(tmp_path)
        head = load_head(checkpoint, model, used, dtype="float32", device=CPU)
        driver = Driver(model, used, draft_model=head, draft_scratch=SCRATCH)
        driver.run(Part(0, IDS))
        found.append(paths(Rounds(driver, used).trees([Seed(0, [9], DEPTH)])[0]))
    assert found[0] == found[1]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_recorded_round_is_one_launch_behind_a_copy(
    model: Model, head: DraftModel, ops: Ops, rows: int, masked: bool
) -> None:
    """What the rows are goes there, and masks where there are some; nothing comes back."""
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH)
    for row in range(rows):
        driver.run(Part(row, IDS[:2]))
    rounds, queued = Rounds(driver, ops), Queued()
    for size in draft_sizes(DEPTH):
        rounds.device.record(*size)
        rounds.device._graphs[size] = queued.one_launch(rounds.device._graphs[size])
    allowed = np.full(4, -1, dtype=np.int32) if masked else None
    plan, check = rounds.loaded([Seed(row, [3], 2, allowed) for row in range(rows)])
    with queued:
        rounds.device.guess(plan, check)
    assert queued.names == [*["copy_"] * (1 + masked), "replay"]


def built(model: Model, head: DraftModel, ops: Ops, *, graphs: bool) -> DeviceBuilder:
    settings = DeviceSettings(
        page_size=1,
        max_step_tokens=64,
        max_rows=4,
        slot_width=CONTEXT,
        kv_dtype=torch.float32,
        attention="cpu",
        graphs=graphs,
        draft_width=WIDTH,
        draft_levels=DEPTH,
        draft_nodes=NODES,
    )
    return DeviceBuilder(model, ops, settings, CPU, head)


def test_where_memory_ends_the_other_sizes_are_run_op_by_op(
    model: Model, head: DraftModel, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, record = built(model, head, ops, graphs=False), Recorder.record

    def ending(self: Recorder, run: Callable[[], object]) -> Callable[[], object]:
        if len(recorded) == 3:
            raise torch.OutOfMemoryError("no more")
        recorded.append(run)
        return record(self, run)

    recorded: list[object] = []
    monkeypatch.setattr(Recorder, "record", ending)
    worker = builder.worker(4 * CONTEXT, overlap=True)
    notes = {name: (value, why) for name, value, why in builder.notes}
    value, why = notes["draft_graphs"]
    assert value == "3" and f"of {len(draft_sizes(DEPTH))} sizes: no memory" in why
    assert worker.runner.guesser is not None and len(worker.runner.guesser._graphs) == 3
    worker.close()


def test_what_the_recordings_take_is_left_of_the_cache(
    model: Model, head: DraftModel, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, gone = built(model, head, ops, graphs=False), []
    record = DeviceDraft.record

    def taking(self: DeviceDraft, rows: int, depth: int) -> None:
        record(self, rows, depth)
        gone.append(100 if not gone else 7)  # kernels are loaded once

    monkeypatch.setattr(DeviceDraft, "record", taking)
    where = "branchline.runtime.executor.device_build"
    monkeypatch.setattr(f"{where}.free_memory", lambda device: 1000 - 50 * bool(gone) - sum(gone))
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 50 * bool(gone))
    depths = [depth for _, depth in draft_sizes(DEPTH)]
    assert builder._draft_bytes() == recordings_bytes(50, 7, depths)
    assert gone == [100, 7]
    assert recordings_bytes(50, 7, [5, 4, 1]) == 100 + 7 * 2


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_keep_what_the_hosts_keep(
    model: Model, head: DraftModel, ops: Ops, graphs: bool
) -> None:
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH, graph=False, max_rows=4)
    builder = built(model, head, ops, graphs=graphs)
    worker = builder.worker(4 * CONTEXT, overlap=True)
    worker.runner.tables.slots[:4] = torch.from_numpy(driver.slots)
    for parts in ([Part(0, IDS[:7]), Part(2, IDS[3:6])], [Part(0, IDS[7:8])], [Part(2, IDS[6:9])]):
        plan = driver.plan(parts)
        with torch.inference_mode():
            driver.runner.run(plan)
        pending = worker.forward(plan)
        worker.sample(pending, None)
        pending.result()
    ours, theirs = worker.runner.draft, driver.runner.draft
    assert ours is not None and theirs is not None
    for row, count in ((0, 8), (2, 6)):
        slots = driver.slots[row, :count]
        torch.testing.assert_close(
            ours.pool.features[slots], theirs.pool.features[slots], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            ours.pool.buffer[:, :, slots[1:]],
            theirs.pool.buffer[:, :, slots[1:]],
            rtol=1e-3,
            atol=1e-3,
        )
    worker.close()
