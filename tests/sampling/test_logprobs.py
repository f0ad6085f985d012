"""Log-probabilities against torch.log_softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.sampling.logprobs import read_top_logprobs
from branchline.runtime.sampling.sampler import Sampler
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch


@pytest.mark.parametrize("vocab", [5, 64, 1000, 49_152, 50_257])
@pytest.mark.parametrize("k", [0, 1, 5, 50])
def test_readings_equal_log_softmax(vocab: int, k: int) -> None:
    generator = torch.Generator().manual_seed(vocab + k)
    logits = torch.randn((19, vocab), generator=generator) * 4
    before = logits.clone()
    ids = torch.randint(0, vocab, (19,), generator=generator, dtype=torch.int32)
    got = read_top_logprobs(logits, ids, k)
    want = torch.log_softmax(logits.double(), dim=-1)
    assert torch.equal(logits, before)
    np.testing.assert_allclose(
        got.chosen, want.gather(1, ids.long()[:, None])[:, 0].numpy(), atol=2e-5
    )
    k = min(k, vocab)
    assert got.top_ids.shape == got.top_values.shape == (19, k)
    assert got.top_ids.dtype == np.int32
    np.testing.assert_allclose(got.top_values, want.topk(k).values.numpy(), atol=2e-5)
    np.testing.assert_allclose(
        got.top_values, np.take_along_axis(want.numpy(), got.top_ids.astype(np.int64), 1), atol=2e-5
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reading_does_not_depend_on_its_batch(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = torch.randn((21, 50_257), generator=torch.Generator().manual_seed(0)) * 3
        ids = torch.arange(21)
        whole = read_top_logprobs(logits, ids, 5)
        for i in (0, 7, 8, 20):
            one = read_top_logprobs(logits[i : i + 1], ids[i : i + 1], 5)
            assert one.chosen[0] == whole.chosen[i]
            assert one.top_ids[0].tolist() == whole.top_ids[i].tolist()
            assert one.top_values[0].tolist() == whole.top_values[i].tolist()
    finally:
        torch.set_num_threads(before)


def test_no_rows_give_empty_arrays() -> None:
    got = read_top_logprobs(torch.empty((0, 100)), torch.empty(0, dtype=torch.int32), 3)
    assert got.chosen.shape == (0,) and got.top_ids.shape == (0, 3)


def test_sampled_readings_are_of_the_untouched_distribution() -> None:
    """Neither temperature, bias, penalties nor a mask shows in them; other rows hold NaN."""
    vocab = 200
    logits = torch.randn((3, vocab), generator=torch.Generator().manual_seed(5))
    want = torch.log_softmax(logits.double(), dim=-1).numpy()
    params = SamplingParams(
        temperature=0.3, logprobs=2, logit_bias={7: 3.0}, repetition_penalty=1.5, top_k=20
    )
    rows = [
        RowSampling(params, 0, 1),
        RowSampling(SamplingParams(), 0, 1),
        RowSampling(SamplingParams(temperature=0.0, logprobs=0), 0, 1),
    ]
    bitmask = np.full((3, 7), 0x0F0F0F0F, dtype=np.int32)
    table = torch.arange(30, dtype=torch.int32).reshape(3, 10)
    got = Sampler(vocab).sample(
        logits.clone(),
        SamplingBatch.build(rows),
        np.full(3, 4, dtype=np.int64),
        np.arange(3, dtype=np.int32),
        table,
        bitmask,
    )
    assert got.logprobs is not None
    for row in (0, 2):
        assert got.logprobs.chosen[row] == pytest.approx(want[row, got.ids[row]], abs=1e-5)
        np.testing.assert_allclose(
            got.logprobs.top_values[row], np.sort(want[row])[:-3:-1], atol=1e-5
        )
    assert np.isnan(got.logprobs.chosen[1])
    assert (got.logprobs.top_ids[1] == -1).all()
