"""Steps with adapters: base rows keep their bits, and every way to run a step gives the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import ScheduleBatch, ScoreRead
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import build_groups
from branchline.runtime.executor.build import build_worker
from branchline.runtime.executor.device_build import DeviceBuilder, DeviceSettings
from branchline.runtime.executor.device_graphs import adapted_sizes, decode_sizes
from branchline.runtime.executor.device_worker import DeviceWorker
from branchline.runtime.executor.lora_inputs import logit_slots
from branchline.runtime.lora.layout import LowRank, SlotLayout
from branchline.runtime.lora.slots import Slots
from branchline.runtime.models.base import Model
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch
from tests.support.model_driver import CONTEXT, Driver, Part, load_tiny, tiny_llama

CPU = torch.device("cpu")
SLOTS = 4
ROWS = 8


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("native", threads=2)


@pytest.fixture(scope="module")
def chooser() -> Ops:
    """Ops that choose tokens, as the device path wants them."""
    return make_ops("reference")


@pytest.fixture(scope="module")
def plain(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_tiny(tiny_llama(tmp_path_factory.mktemp("plain")), ops)


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return with_adapters(tiny_llama(tmp_path_factory.mktemp("tiny")), ops)


def with_adapters(folder: Path, ops: Ops) -> Model:
    """The same model with adapters of ranks 3 and 16 in slots 1 and 2."""
    model = load_tiny(folder, ops)
    layout = SlotLayout(model.lora_sites(), 16, torch.float32)
    slots = Slots(layout, SLOTS, CPU)
    generator = torch.Generator().manual_seed(5)
    for slot, rank in ((1, 3), (2, 16)):
        matrices = {
            m.name: LowRank(
                torch.randn(rank, m.columns, generator=generator) / m.columns**0.5,
                torch.randn(m.rows, rank, generator=generator) / rank**0.5,
                0.7,
            )
            for m in layout.modules.values()
        }
        slots.write(slot, layout.pack(matrices))
    return model


def driver(model: Model, ops: Ops, *, graph: bool = True) -> Driver:
    return Driver(model, ops, max_rows=ROWS, graph=graph, adapter_slots=SLOTS)


def adapted(plan: ScheduleBatch, *slots: int) -> ScheduleBatch:
    plan.adapter_slots = np.array(slots, dtype=np.int32)
    return plan


def logits(driver: Driver, plan: ScheduleBatch) -> torch.Tensor:
    """[l, V] of a plan, by the two ways that steps take."""
    with torch.inference_mode():
        hidden = driver.runner.run(plan).clone()
        return driver.runner.logits(hidden, logit_slots(plan))


def steps(driver: Driver, slots: tuple[int, int, int]) -> list[torch.Tensor]:
    """Prompts, then a mixed step, then decoding, of three rows."""
    parts = [
        [Part(0, [1, 5, 9, 33]), Part(1, [7, 8]), Part(2, [4, 4, 4])],
        [Part(0, [11]), Part(1, [3, 2, 90, 17, 6], every=True), Part(2, [12])],
        [Part(0, [13]), Part(1, [14]), Part(2, [15])],
    ]
    return [logits(driver, adapted(driver.plan(some), *slots)) for some in parts]


def test_base_rows_keep_their_bits_beside_adapters(model: Model, plain: Model, ops: Ops) -> None:
    mixed = steps(driver(model, ops), (-1, 2, -1))
    bare = Driver(plain, ops, max_rows=ROWS)
    for got, parts in zip(
        mixed,
        [
            [Part(0, [1, 5, 9, 33]), Part(1, [7, 8]), Part(2, [4, 4, 4])],
            [Part(0, [11]), Part(1, [3, 2, 90, 17, 6], every=True), Part(2, [12])],
            [Part(0, [13]), Part(1, [14]), Part(2, [15])],
        ],
        strict=True,
    ):
        want = bare.run(*parts)
        assert torch.equal(got[0], want[0]) and torch.equal(got[-1], want[-1])
        assert not torch.allclose(got[1], want[1], atol=1e-2), "the adapter does nothing"


def test_an_adapted_row_does_not_depend_on_its_batch_mates(model: Model, ops: Ops) -> None:
    first = steps(driver(model, ops), (1, 2, 1))
    for others in ((-1, 2, -1), (2, 2, 2), (1, 2, -1)):
        again = steps(driver(model, ops), others)
        for got, want in zip(again, first, strict=True):
            assert torch.equal(got[1:-1], want[1:-1])


def test_recorded_steps_give_the_bits_of_eager_ones(model: Model, ops: Ops) -> None:
    for got, want in zip(
        steps(driver(model, ops), (1, 2, -1)),
        steps(driver(model, ops, graph=False), (1, 2, -1)),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_chunks_of_a_prompt_give_the_bits_of_the_whole(model: Model, ops: Ops) -> None:
    ids = [1, 5, 9, 33, 7, 2, 61]
    whole, cut = driver(model, ops), driver(model, ops)
    want = logits(whole, adapted(whole.plan([Part(0, ids)]), 2))
    for piece in (ids[:1], ids[1:4], ids[4:]):
        got = logits(cut, adapted(cut.plan([Part(0, piece)]), 2))
    assert torch.equal(got, want)


def sampled(driver: Driver, slots: tuple[int, ...], *parts: Part) -> ScheduleBatch:
    plan = driver.plan([Part(p.row, p.ids, p.tree, p.every, sample=True) for p in parts])
    params = [RowSampling(SamplingParams(temperature=0.0), i, 0) for i in range(len(parts))]
    plan.sampling = SamplingBatch.build(params)
    return adapted(plan, *slots)


def device_worker(model: Model, ops: Ops, driver: Driver, *, graphs: bool) -> DeviceWorker:
    settings = DeviceSettings(
        page_size=1,
        max_step_tokens=256,
        max_rows=ROWS,
        slot_width=driver.slots.shape[1],
        kv_dtype=torch.float32,
        attention="cpu",
        graphs=graphs,
        adapter_slots=SLOTS,
    )
    worker = DeviceBuilder(model, ops, settings, CPU).worker(ROWS * CONTEXT, overlap=True)
    worker.runner.tables.slots[:ROWS] = torch.from_numpy(driver.slots)
    return worker


@pytest.mark.parametrize("graphs", [True, False])
def test_the_device_path_gives_what_the_cpu_path_gives(
    tmp_path: Path, chooser: Ops, graphs: bool
) -> None:
    """Sampled ids, and scores of a tree, with the padding of every size."""
    ops, model = chooser, with_adapters(tiny_llama(tmp_path), chooser)
    first, second = driver(model, ops), driver(model, ops)
    workers = [
        build_worker(first.runner, overlap=False),
        device_worker(model, ops, second, graphs=graphs),
    ]
    (group,) = build_groups([[5, 6, 7], [5, 8]], 8)
    shapes: list[tuple[tuple[int, ...], list[Part]]] = [
        ((1, -1, 2), [Part(0, [1, 5, 9]), Part(1, [7, 8]), Part(2, [4, 4, 4])]),
        ((1, -1, 2), [Part(0, [3]), Part(1, [2]), Part(2, [6])]),
        ((-1, 2), [Part(1, [3]), Part(2, [9])]),
        ((2,), [Part(2, [3])]),
        ((-1,), [Part(1, [3])]),
        ((1, 2), [Part(0, [3]), Part(2, [1], group.tree)]),
    ]
    for slots, parts in shapes:
        outputs = []
        for one, worker in zip((first, second), workers, strict=True):
            if parts[-1].tree is None:
                plan = sampled(one, slots, *parts)
            else:
                plan = adapted(one.plan(parts), *slots)
                plan.score = ScoreRead(group.read_nodes + np.int32(2), group.read_tokens)
            pending = worker.forward(plan)
            worker.sample(pending, None)
            outputs.append(pending.result())
        assert outputs[0].token_ids.tolist() == outputs[1].token_ids.tolist()
        scores = [output.scores for output in outputs]
        if scores[0] is not None and scores[1] is not None:
            np.testing.assert_allclose(scores[0].chosen, scores[1].chosen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 8, 9, 31, 64, 100, 256])
def test_recorded_sizes_with_adapters_hold_every_step_and_are_fewer(most: int) -> None:
    sizes = adapted_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1
    assert sizes[-1] >= most and len(sizes) <= len(decode_sizes(most))
    assert all(size <= 2 * before for before, size in pairwise(sizes))


def test_scores_read_logits_of_the_rows_own_adapter(model: Model, ops: Ops) -> None:
    """A head adapter must reach the rows whose log-probabilities are read, too."""
    (group,) = build_groups([[5, 6, 7], [5, 8]], 8)
    one = driver(model, ops)
    worker = build_worker(one.runner, overlap=False)
    plan = adapted(one.plan([Part(0, [3, 9]), Part(2, [1, 4], group.tree)]), -1, 2)
    plan.score = ScoreRead(group.read_nodes + np.int32(3), group.read_tokens)
    pending = worker.forward(plan)
    worker.sample(pending, None)
    got = pending.result().scores
    assert got is not None
    for choice, reads in group.choices:
        ids = [5, 6, 7] if choice == 0 else [5, 8]
        for place, read in enumerate(reads):
            other = driver(model, ops)
            part = Part(0, [1, 4, *ids[:place]])
            row = logits(other, adapted(other.plan([part]), 2))[-1].log_softmax(-1)
            assert got.chosen[read] == pytest.approx(float(row[ids[place]]), abs=1e-4)


def test_a_model_whose_adapters_were_taken_away_is_the_plain_one(
    tmp_path: Path, plain: Model, ops: Ops
) -> None:
    model = load_tiny(tiny_llama(tmp_path), ops)
    layout = SlotLayout(model.lora_sites(), 16, torch.float32)
    Slots(layout, 1, CPU)
    layout.detach()
    with_none, bare = Driver(model, ops), Driver(plain, ops)
    part = Part(0, [1, 5, 9], every=True)
    assert torch.equal(with_none.run(part), bare.run(part))
