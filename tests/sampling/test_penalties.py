"""Penalties against a loop over tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.sampling.penalties import penalize
from branchline.runtime.sampling.sampling_batch import Penalty


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 19), max_size=40),
    prompt_len=st.integers(0, 20),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    frequency=st.sampled_from([-0.5, 0.0, 0.7]),
    presence=st.sampled_from([-1.0, 0.0, 0.4]),
    seed=st.integers(0, 100),
)
def test_penalties_equal_brute_force(
    tokens: list[int],
    prompt_len: int,
    repetition: float,
    frequency: float,
    presence: float,
    seed: int,
) -> None:
    logits = torch.randn((3, 20), generator=torch.Generator().manual_seed(seed)) * 2
    want = logits.numpy().copy()
    for token in range(20):
        if token in tokens:
            old = want[1, token]
            want[1, token] = old / repetition if old > 0 else old * repetition
        count = tokens[prompt_len:].count(token)
        want[1, token] -= frequency * count + presence * (count > 0)
    penalize(
        logits,
        Penalty(1, prompt_len, repetition, frequency, presence),
        torch.tensor(tokens, dtype=torch.int32),
    )
    np.testing.assert_allclose(logits.numpy(), want, rtol=1e-5, atol=1e-6)
