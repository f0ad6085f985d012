"""The queueing sampler against `Sampler`: equal greedy ids, alike distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.sampling.device_sampler import DeviceSampler, QueuedSample
from branchline.runtime.sampling.sampler import Sampler, SampleResult
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch

V = 300


def upload(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def both(
    logits: torch.Tensor,
    params: list[SamplingParams],
    *,
    bitmask: np.ndarray[Any, Any] | None = None,
    suppress: tuple[int, ...] = (),
) -> tuple[QueuedSample, SampleResult]:
    count = len(logits)
    rows = [RowSampling(params[i % len(params)], 17 * i, 3, suppress) for i in range(count)]
    batch = SamplingBatch.build(rows)
    positions = np.arange(5, 5 + count, dtype=np.int64)
    table = torch.randint(0, V, (count, 5 + count), generator=torch.Generator().manual_seed(3))
    table = table.int()
    sampler = DeviceSampler(make_ops("reference"), upload)
    found = sampler.sample(
        logits.clone(), batch, positions, lambda i: table[i, : int(positions[i])], bitmask
    )
    index = np.arange(count, dtype=np.int32)
    wanted = Sampler(V).sample(logits.clone(), batch, positions, index, table, bitmask)
    return found, wanted


def logits(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, V), generator=torch.Generator().manual_seed(seed)) * 3


KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=9),
    SamplingParams(top_p=0.6),
    SamplingParams(min_p=0.05, temperature=0.9),
    SamplingParams(top_k=40, top_p=0.8, min_p=0.01),
    SamplingParams(temperature=0.8, repetition_penalty=1.4),
    SamplingParams(temperature=0.0, frequency_penalty=0.8, presence_penalty=0.5),
    SamplingParams(temperature=0.0, logit_bias={7: 50.0}),
    SamplingParams(temperature=0.0, min_tokens=90),
]


@pytest.mark.parametrize("kind", [i for i, p in enumerate(KINDS) if p.temperature == 0.0])
def test_greedy_rows_choose_what_the_host_chooses(kind: int) -> None:
    found, wanted = both(logits(64, kind), [KINDS[kind]], suppress=(1, 2))
    assert found.ids.tolist() == wanted.ids.tolist()


@pytest.mark.parametrize("kind", [i for i, p in enumerate(KINDS) if p.temperature > 0.0])
def test_drawn_rows_follow_the_hosts_distribution(kind: int) -> None:
    # the same logits in every row: only seeds differ
    values = logits(1, kind)[:, :40].repeat(4000, 1)
    rows = [RowSampling(KINDS[kind], 17 * i, 3) for i in range(4000)]
    batch = SamplingBatch.build(rows)
    positions = np.full(4000, 5, dtype=np.int64)
    table = torch.tensor([[3, 7, 7, 9, 11]], dtype=torch.int32).repeat(4000, 1)
    sampler = DeviceSampler(make_ops("reference"), upload)
    found = sampler.sample(values.clone(), batch, positions, lambda i: table[i])
    index = np.arange(4000, dtype=np.int32)
    wanted = Sampler(40).sample(values.clone(), batch, positions, index, table, None)
    shares = [torch.bincount(ids.long(), minlength=40) / 4000 for ids in (found.ids, wanted.ids)]
    assert ((shares[0] > 0) & (shares[1] == 0)).sum() <= 2 * (shares[1] < 0.002).sum()
    assert (shares[0] - shares[1]).abs().max() < 0.05


def test_rows_of_all_kinds_share_a_batch() -> None:
    found, wanted = both(logits(70), KINDS, suppress=(1, 2))
    greedy = [i for i in range(70) if KINDS[i % len(KINDS)].temperature == 0.0]
    assert found.ids[greedy].tolist() == wanted.ids[greedy].tolist()


def test_a_rows_token_does_not_depend_on_its_batch_mates() -> None:
    values = logits(40, 5)
    together, _ = both(values, KINDS[:6])
    for row in range(40):
        batch = SamplingBatch.build([RowSampling(KINDS[row % 6], 17 * row, 3)])
        alone = DeviceSampler(make_ops("reference"), upload).sample(
            values[row : row + 1].clone(), batch, np.array([5 + row]), lambda _: torch.empty(0)
        )
        assert alone.ids.tolist() == together.ids[row : row + 1].tolist()


def test_masks_and_unusable_rows() -> None:
    values = logits(4)
    values[1, 5] = torch.nan
    bitmask = np.full((4, -(-V // 32)), -1, dtype=np.int32)
    bitmask[2] = 0
    bitmask[3] = 0
    bitmask[3, 1] = 1 << 4
    for params in (KINDS[0], KINDS[1], KINDS[3]):
        found, wanted = both(values, [params], bitmask=bitmask)
        assert [i for i, t in enumerate(found.ids.tolist()) if t < 0] == [1, 2]
        assert wanted.bad_rows == (1, 2)
        assert found.ids[3] == 36


def test_logprobs_are_those_of_the_model() -> None:
    params = [SamplingParams(temperature=0.8, logprobs=3), SamplingParams(temperature=0.0)]
    values = logits(6)
    found, wanted = both(values, params)
    assert found.logprobs is not None and wanted.logprobs is not None
    chosen, top_ids, top_values = found.logprobs
    rows = [0, 2, 4]
    of_all = torch.log_softmax(values, dim=-1)[rows]
    drawn = of_all.gather(1, found.ids[rows].long()[:, None])[:, 0]
    np.testing.assert_allclose(chosen, drawn, atol=1e-5)
    assert top_ids.tolist() == wanted.logprobs.top_ids[rows].tolist()
    np.testing.assert_allclose(top_values, wanted.logprobs.top_values[rows], atol=1e-5)
