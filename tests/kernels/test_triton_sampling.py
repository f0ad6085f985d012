"""The GPU's sampler keeps and draws what the reference does, and what the CPU's sampler does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from branchline.kernels.reference import ReferenceOps
from branchline.kernels.reference.sampling import kept_tokens
from branchline.kernels.sampling import Draws
from branchline.kernels.triton import TritonOps
from branchline.kernels.triton.sampling import kept_by, mask_of
from branchline.kernels.triton.tuning import Device
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.sampling.numerics import mix_seeds
from branchline.runtime.sampling.sampler import Sampler
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch


def draws_of(
    rows: list[tuple[float, int, float, float]], device: torch.device, seed: int = 0
) -> Draws:
    """Rows of (temperature, top_k, top_p, min_p), seeded one after the other."""
    table = torch.tensor(rows, dtype=torch.float64)
    inverse = torch.where(table[:, 0] > 0, 1.0 / table[:, 0], 0.0)
    seeds = mix_seeds(list(range(seed, seed + len(rows)))).view(np.int64)
    return Draws(
        inverse.float().to(device),
        table[:, 1].int().to(device),
        table[:, 2].float().to(device),
        table[:, 3].float().to(device),
        torch.from_numpy(seeds).to(device),
        torch.arange(len(rows), device=device),
    )


ROWS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.9, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.9, 12, 0.8, 0.05),
    (1.0, 3, 0.99, 0.0),
    (2.0, 10**6, 0.5, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 1e-9, 0.0),
]


def kept_from(logits: torch.Tensor, draws: Draws, device: torch.device) -> torch.Tensor:
    """The set that the cuts of the kernel describe, read as its docstring says."""
    gpu = Device(device)
    cuts, limits, floors = kept_by(gpu, logits, draws, mask_of(gpu, logits))
    bits = (logits + 0.0).view(torch.int32)
    order = bits ^ ((bits >> 31) & (2**31 - 1))
    ids = torch.arange(logits.shape[1], device=device)[None, :]
    at = (order == cuts[:, None]) & (ids < limits[:, None])
    return ((order > cuts[:, None]) | at) & (logits >= floors[:, None])


@pytest.mark.parametrize("decimals", [0, 6], ids=["many equal logits", "few"])
def test_cuts_equal_the_sorted_ones(
    kernel_device: torch.device, decimals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over rows of several blocks, which on a GPU are read by programs that wait for each other."""
    monkeypatch.setattr("branchline.kernels.triton.sampling._CUT_BLOCK", 128)
    torch.manual_seed(decimals)
    logits = (torch.randn(len(ROWS), 300) * 3).round(decimals=decimals).to(kernel_device)
    draws = draws_of(ROWS, kernel_device)
    got = kept_from(logits, draws, kernel_device)[1:]
    want = kept_tokens(logits, draws)[1:]
    assert torch.equal(got, want), (got != want).nonzero()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 5, 40, 140])
def test_cuts_of_a_large_vocabulary_are_the_same_in_any_company(
    kernel_device: torch.device, count: int
) -> None:
    """As sorting cuts, up to the rounding of a sum; and bit for bit what the row has alone."""
    torch.manual_seed(count)
    logits = (torch.randn(count, 151936) * 3).round(decimals=4).to(kernel_device)
    draws = draws_of((ROWS * 14)[:count], kernel_device)
    gpu = Device(kernel_device)
    cuts = kept_by(gpu, logits, draws, mask_of(gpu, logits))
    for row in range(0, count, 3):
        one = draws_of([(ROWS * 14)[row]], kernel_device)
        alone = kept_by(gpu, logits[row : row + 1], one, mask_of(gpu, logits[row : row + 1]))
        for found, wanted in zip(cuts, alone, strict=True):
            assert torch.equal(found[row : row + 1], wanted)
    assert not gpu.counters.any()
    wrong = kept_from(logits, draws, kernel_device) != kept_tokens(logits, draws)
    wrong &= (draws.inv_temperature > 0)[:, None]
    share = torch.softmax(logits.double() * draws.inv_temperature.double()[:, None], dim=-1)
    assert (share * wrong).sum(-1).max() < 1e-5


def test_draws_equal_the_reference(kernel_device: torch.device) -> None:
    torch.manual_seed(1)
    rows = ROWS * 3
    logits = (torch.randn(len(rows), 1100) * 2).to(kernel_device)
    words = torch.randint(-(2**31), 2**31, (len(rows), 35)).to(torch.int32).to(kernel_device)
    need = (torch.arange(len(rows)) % 3 > 0).to(kernel_device)
    draws = draws_of(rows, kernel_device)
    before = logits.clone()
    ids, bad = TritonOps(kernel_device).sample_rows(logits, draws, words, need)
    want, none = ReferenceOps().sample_rows(logits, draws, words, need)
    assert torch.equal(logits, before) and not bad.any() and not none.any()
    assert (ids != want).sum() <= 1, "the same tokens, but for two scores equal in float32"
    alone = TritonOps(kernel_device)
    for i in (1, 12, 25):
        one = Draws(*(getattr(draws, name)[i : i + 1] for name in list(vars(draws))[:6]))
        assert (
            alone.sample_rows(logits[i : i + 1], one, words[i : i + 1], need[i : i + 1])[0]
            == (ids[i])
        )


def test_rows_that_cannot_be_sampled_are_named(kernel_device: torch.device) -> None:
    logits = torch.randn(5, 70, device=kernel_device)
    logits[1, 3], logits[2, 69], logits[3] = torch.nan, torch.inf, -torch.inf
    for rows in ([(1.0, 0, 1.0, 0.0)] * 5, [(0.0, 0, 1.0, 0.0)] * 5, [(1.0, 4, 0.9, 0.1)] * 5):
        ids, bad = TritonOps(kernel_device).sample_rows(logits, draws_of(rows, kernel_device))
        assert bad.tolist() == [False, True, True, True, False]
        assert ids[1:4].tolist() == [0, 0, 0]
        same, none = ReferenceOps().sample_rows(logits, draws_of(rows, kernel_device))
        assert torch.equal(none, bad) and torch.equal(same, ids)


# The interpreter takes half a minute for the searches of the second.
@pytest.mark.parametrize(
    "kind",
    [(1.0, 0, 1.0, 0.0), pytest.param((0.8, 6, 0.95, 0.02), marks=pytest.mark.gpu)],
    ids=str,
)
def test_frequencies_are_those_of_the_cpu_sampler(
    kernel_device: torch.device, kind: tuple[float, int, float, float]
) -> None:
    """Chi-square of the draws against the distribution that the CPU's sampler draws from."""
    torch.manual_seed(3)
    count, vocabulary = 8000 if kernel_device.type == "cuda" else 120, 12
    one = torch.randn(1, vocabulary) * 1.5
    draws = draws_of([kind] * count, kernel_device, seed=11)
    draws = replace(draws, positions=torch.arange(count, device=kernel_device) % 7)
    logits = one.expand(count, -1).contiguous().to(kernel_device)
    ids, _ = TritonOps(kernel_device).sample_rows(logits, draws)
    mass = torch.softmax(one[0].double() / kind[0], dim=0) * kept_tokens(logits, draws)[0].cpu()
    mass = mass / mass.sum()
    seen, expected = Counter(ids.tolist()), (mass * count).tolist()
    assert all(seen[i] == 0 for i, share in enumerate(expected) if share == 0)
    chi = sum((seen[i] - e) ** 2 / e for i, e in enumerate(expected) if e > 0)
    assert chi < 31.3, "0.1 % point of chi-square with 11 degrees"
    temperature, top_k, top_p, min_p = kind
    params = SamplingParams(
        temperature=temperature, top_k=top_k or -1, top_p=top_p, min_p=min_p, max_tokens=1
    )
    batch = SamplingBatch.build([RowSampling(params, i, 0) for i in range(count)])
    table = torch.zeros(count, 2, dtype=torch.int32)
    where = np.arange(count, dtype=np.int32)
    cpu = Sampler(vocabulary).sample(
        logits.cpu().clone(), batch, np.zeros(count, dtype=np.int64), where, table
    )
    other = Counter(cpu.ids.tolist())
    both = sum((seen[i] - other[i]) ** 2 / (seen[i] + other[i]) for i in seen)
    assert both < 31.3
