"""The device's way to guess, on a CPU: fixed sizes, padding and queueing, with reference ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.kernels.reference import ReferenceOps
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_draft import (
    DeviceDraft,
    draft_sizes,
    recordings_bytes,
)
from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.draft_load import load_head
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.drafting import DraftSeed, Guesses
from branchline.runtime.executor.host_draft import HostDraft, scratch_slots
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.loading.eagle_checkpoint import EagleCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel
from tests.support.eagle_oracle import write_head
from tests.support.model_driver import CONTEXT, Driver, Part, load_tiny, tiny_llama
from tests.support.queued import Queued

WIDTH, DEPTH, VOCAB = 3, 5, 101
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


def made(draft: Draft, ops: Ops) -> DeviceDraft:
    stream = DeviceStream(CPU)
    return DeviceDraft(
        draft,
        ops,
        stream,
        Recorder(stream),
        max_context=CONTEXT,
        width=WIDTH,
        max_depth=DEPTH,
        vocab_size=VOCAB,
    )


def check(ours: Guesses, theirs: Guesses) -> None:
    """The same guesses with the same scores; the order within a level is the device's own."""
    assert best(ours) == best(theirs)


def best(guesses: Guesses) -> dict[tuple[int, ...], float]:
    """Paths that have a chance, with their rounded scores."""
    paths: list[tuple[int, ...]] = []
    found: dict[tuple[int, ...], float] = {}
    for token, parent, score in zip(
        guesses.ids.tolist(), guesses.parents.tolist(), guesses.scores.tolist(), strict=True
    ):
        before = paths[parent] if parent >= 0 else ()
        paths.append((*before, token))
        if np.isfinite(score):
            found[paths[-1]] = round(score, 2)
    return found


def test_guesses_equal_the_hosts(model: Model, head: DraftModel, ops: Ops) -> None:
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH)
    for row in range(5):
        driver.run(Part(row, IDS[row : row + 6 + row]))
    draft = driver.runner.draft
    assert draft is not None
    sizes = {"max_context": CONTEXT, "width": WIDTH, "max_depth": DEPTH}
    host = HostDraft(draft, ops, **sizes)
    device = made(draft, ops)
    for size in draft_sizes(DEPTH)[1::2]:  # the others are run op by op
        device.record(*size)
    even = np.full(4, 0x55555555, dtype=np.int32)

    def seed(row: int, pending: list[int], depth: int, allowed: object = None) -> DraftSeed:
        slots = driver.slots[row, : driver.lengths[row]].copy()
        return DraftSeed(slots, np.array(pending, dtype=np.int32), depth, allowed)  # type: ignore[arg-type]

    seeds = [
        seed(0, [9], DEPTH),
        seed(1, [4, 70, 8], 2),
        seed(2, [33], 1, even),
        seed(3, [3, 4, 5, 6, 7], 3),
        seed(4, [11, 12], DEPTH),
    ]
    for group in ([seeds[0]], seeds[1:3], seeds, [seeds[3]] * 18):
        for ours, theirs in zip(device.guess(group), host.guess(group), strict=True):
            check(ours, theirs)
    (masked,) = device.guess([seeds[2]])
    assert (masked.ids[np.isfinite(masked.scores)] % 2 == 0).all()
    assert np.isfinite(masked.scores).any()


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
        draft = driver.runner.draft
        assert draft is not None
        slots = driver.slots[0, : len(IDS)].copy()
        seed = DraftSeed(slots, np.array([9], dtype=np.int32), DEPTH)
        found.append(made(draft, used).guess([seed])[0])
    check(*found)


def test_at_the_end_of_the_context_fewer_levels_are_tried(
    model: Model, head: DraftModel, ops: Ops
) -> None:
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH)
    driver.run(Part(0, [i % VOCAB for i in range(CONTEXT - 2)]))
    draft = driver.runner.draft
    assert draft is not None
    sizes = {"max_context": CONTEXT, "width": WIDTH, "max_depth": DEPTH}
    seeds = [DraftSeed(driver.slots[0, : CONTEXT - 2], np.array([5], dtype=np.int32), DEPTH)]
    (host,) = HostDraft(draft, ops, **sizes).guess(seeds)
    (device,) = made(draft, ops).guess(seeds)
    assert len(host.ids) == len(device.ids) == WIDTH + WIDTH**2
    check(device, host)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_recorded_round_is_one_launch_between_copies(
    model: Model, head: DraftModel, ops: Ops, rows: int, masked: bool
) -> None:
    """There: what the rows are, and masks where there are some. Back: all guesses."""
    driver = Driver(model, ops, draft_model=head, draft_scratch=SCRATCH)
    draft = driver.runner.draft
    assert draft is not None
    device = made(draft, ops)
    queued = Queued()
    for size in draft_sizes(DEPTH):
        device.record(*size)
        device._graphs[size] = queued.one_launch(device._graphs[size])
    ids = np.array([3], dtype=np.int32)
    allowed = np.full(4, -1, dtype=np.int32) if masked else None
    seeds = [DraftSeed(np.array([1, 2], dtype=np.int32), ids, 2, allowed)] * rows
    with queued:
        device.guess(seeds)
    assert queued.names == [*["copy_"] * (1 + masked), "replay", "copy_"]


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
    )
    return DeviceBuilder(model, ops, settings, CPU, head)


def test_where_memory_ends_the_other_sizes_are_run_op_by_op(
    model: Model, head: DraftModel, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = built(model, head, ops, graphs=False)
    worker = builder.worker(4 * CONTEXT, overlap=True)
    recorder, record = worker.runner.recorder, worker.runner.recorder.record

    def ending(run: Callable[[], object]) -> Callable[[], object]:
        if len(recorded) == 3:
            raise torch.OutOfMemoryError("no more")
        recorded.append(run)
        return record(run)

    recorded: list[object] = []
    monkeypatch.setattr(recorder, "record", ending)
    device = builder.guesser()
    notes = {name: (value, why) for name, value, why in builder.notes}
    value, why = notes["draft_graphs"]
    assert value == "3" and f"of {len(draft_sizes(DEPTH))} sizes: no memory" in why
    seed = DraftSeed(np.array([1, 2], dtype=np.int32), np.array([5], dtype=np.int32), 2)
    for rows in (1, 3):
        for guesses in device.guess([seed] * rows):
            assert len(guesses.ids) == WIDTH + WIDTH**2
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
