"""Recorded choices against `DeviceSampler`: the same ids, in the same places of the token table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.dispatch import make_ops
from branchline.kernels.sampling import SamplingOps
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.executor import recorded_choice
from branchline.runtime.executor.device_stream import DeviceStream, to_device
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.plan_buffers import PlanBuffers, StepShape, StepTensors
from branchline.runtime.executor.recorded_choice import RecordedChoice, choice_sizes
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.sampling.device_sampler import DeviceSampler
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch

ROWS, CONTEXT = 12, 40
VOCABS = (97, 4100)
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=9),
    SamplingParams(top_p=0.6, temperature=0.8),
    SamplingParams(min_p=0.05, temperature=0.9),
]


class Parts:
    """A choice with all its recordings, the tables that it writes and what it reads."""

    def __init__(self, device: torch.device, ops: SamplingOps, vocab: int) -> None:
        self.device, self.ops, self.vocab = device, ops, vocab
        self.stream = DeviceStream(device)
        self.tables = DeviceTables(ROWS, CONTEXT, CONTEXT, device)
        buffers = PlanBuffers(
            self.tables, tokens=16, rows=ROWS, samples=ROWS + 4, tree_words=4, stream=self.stream
        )
        self.tensors: StepTensors = buffers.views(StepShape(1, 1, 1))
        self.choice = RecordedChoice(
            ops,
            self.tables,
            self.tensors,
            self.stream,
            Recorder(self.stream),
            vocab_size=vocab,
            max_rows=ROWS,
        )
        for kind in self.choice.kinds:
            self.choice.record(*kind)

    def load(self, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Place and position of each row, as a step has them."""
        count = len(positions)
        rows = np.arange(count, dtype=np.int32)
        places = np.full(ROWS + 4, self.tables.padding_place)
        places[:count] = self.tables.token_places(rows, positions)
        self.tensors.sample_places.copy_(torch.from_numpy(places))
        self.tensors.sample_positions.zero_()
        self.tensors.sample_positions[:count] = torch.from_numpy(positions)


@pytest.fixture(scope="module")
def parts() -> Callable[[int], Parts]:
    made = {vocab: Parts(torch.device("cpu"), make_ops("reference"), vocab) for vocab in VOCABS}
    return made.__getitem__


def choices(
    parts: Parts, r: np.random.Generator, kinds: list[int], *, masked: bool
) -> tuple[list[int], list[int], list[int]]:
    """Of rows of these kinds: ids by the sampler, ids as recorded, and what the table has then."""
    count = len(kinds)
    rows = [RowSampling(PARAMS[kind], int(r.integers(1 << 40)), 1) for kind in kinds]
    batch = SamplingBatch.build(rows)
    positions = r.integers(1, CONTEXT, count)
    logits = torch.from_numpy(r.normal(size=(count, parts.vocab)) * 3).to(torch.bfloat16)
    if r.random() < 0.3:
        logits[int(r.integers(count)), 5] = torch.nan
    logits = logits.to(parts.device)
    mask = None
    if masked:
        mask = r.integers(-(1 << 31), 1 << 31, (count, -(-parts.vocab // 32))).astype(np.int32)
        mask[r.random(count) < 0.2] = 0
    with parts.stream:
        sampler = DeviceSampler(parts.ops, lambda array: to_device(array, parts.device))
        wanted = sampler.sample(logits, batch, positions, lambda _: logits, mask).ids.cpu()
        parts.load(positions)
        found = parts.choice.choose(logits, batch, mask)
    parts.stream.drain()
    assert found is not None, "all of these are recorded"
    written = parts.tables.tokens.cpu()[np.arange(count), positions]
    return wanted.tolist(), found.tolist(), written.tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    vocab=st.sampled_from(VOCABS),
    kinds=st.lists(st.integers(0, len(PARAMS) - 1), min_size=1, max_size=ROWS),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_the_choice_is_that_of_the_sampler(
    parts: Callable[[int], Parts], vocab: int, kinds: list[int], seed: int, masked: bool
) -> None:
    r = np.random.default_rng(seed)
    for count in (len(kinds), 1):  # few rows behind more find what these have left
        wanted, found, written = choices(parts(vocab), r, kinds[:count], masked=masked)
        assert found == wanted
        assert written == [max(token, 0) for token in wanted]


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [97, 49_152, 151_936])
def test_on_a_device_the_choice_is_that_of_the_sampler(vocab: int) -> None:
    device = torch.device("cuda")
    parts, r = Parts(device, make_ops("triton", device=device), vocab), np.random.default_rng(7)
    for number in range(40):
        kinds = [int(kind) for kind in r.integers(0, len(PARAMS), r.integers(1, ROWS + 1))]
        kinds = kinds if number % 2 else [kinds[0]] * len(kinds)
        wanted, found, written = choices(parts, r, kinds, masked=number % 3 > 0)
        assert found == wanted
        assert written == [max(token, 0) for token in wanted]


def test_what_is_not_recorded_is_left_to_the_sampler(
    parts: Callable[[int], Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, vocab = parts(97).choice, 97
    logits = torch.zeros(2, vocab)
    for params in (
        SamplingParams(temperature=0.0, logprobs=1),
        SamplingParams(temperature=0.0, repetition_penalty=1.2),
        SamplingParams(temperature=0.0, logit_bias={3: 1.0}),
    ):
        batch = SamplingBatch.build([RowSampling(params, 0, 1)] * 2)
        assert choice.choose(logits, batch, None) is None
    many = SamplingBatch.greedy(ROWS + 1)
    assert choice.choose(torch.zeros(ROWS + 1, vocab), many, None) is None
    monkeypatch.setattr(recorded_choice, "LOGITS_BYTES", 4 * 97 * 5)
    small = Parts(torch.device("cpu"), make_ops("reference"), vocab).choice
    assert small.choose(torch.zeros(6, vocab), SamplingBatch.greedy(6), None) is None
    assert small.choose(torch.zeros(5, vocab), SamplingBatch.greedy(5), None) is not None


def test_sizes_are_ascending_and_end_with_the_most() -> None:
    assert choice_sizes(1) == [1]
    assert choice_sizes(8) == [1, 2, 4, 8]
    assert choice_sizes(12) == [1, 2, 4, 8, 12]
