"""A pooled vector does not know into which steps its states were cut."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.core.pooling import HiddenStates, PoolState


def states_of(seed: int, count: int, hidden: int = 5) -> HiddenStates:
    """States of such different sizes that the order of a sum shows in its bits."""
    random = np.random.default_rng(seed)
    sizes = np.exp2(random.integers(-60, 60, (count, hidden)))
    return (random.standard_normal((count, hidden)) * sizes).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    restart=st.booleans(),
)
def test_every_cut_gives_the_same_bits(seed: int, parts: list[int], restart: bool) -> None:
    states = states_of(seed, sum(parts))
    whole, cut = PoolState("mean"), PoolState("mean")
    whole.add(states)
    if restart:
        cut.add(states[: parts[0]])
        cut.restart()
    for end, count in zip(np.cumsum(parts), parts, strict=True):
        cut.add(states[end - count : end])
    for normalize in (False, True):
        one = whole.vector(dimensions=None, normalize=normalize)
        assert one.tobytes() == cut.vector(dimensions=None, normalize=normalize).tobytes()


def test_the_mean_is_the_mean_and_last_is_one_state() -> None:
    states = np.array([[1.0, 2.0], [3.0, -6.0], [5.0, 7.0]], dtype=np.float32)
    mean, last = PoolState("mean"), PoolState("last")
    assert [mean.wanted(3, last=False), mean.wanted(3, last=True)] == [3, 3]
    assert [last.wanted(3, last=False), last.wanted(3, last=True)] == [0, 1]
    mean.add(states)
    last.add(states[-1:])
    assert mean.vector(dimensions=None, normalize=False).tolist() == [3.0, 1.0]
    assert last.vector(dimensions=None, normalize=False).tolist() == [5.0, 7.0]


def test_dimensions_are_the_first_ones_scaled_anew() -> None:
    pool = PoolState("last")
    pool.add(np.array([[3.0, 4.0, 12.0]], dtype=np.float32))
    scaled = pool.vector(dimensions=None, normalize=True).tolist()
    assert scaled == [np.float32(value / 13.0) for value in (3.0, 4.0, 12.0)]
    assert pool.vector(dimensions=2, normalize=False).tolist() == [3.0, 4.0]
    first = pool.vector(dimensions=2, normalize=True).tolist()
    assert first == [float(np.float32(0.6)), float(np.float32(0.8))]
    assert math.isclose(math.hypot(*first), 1.0, rel_tol=1e-6)


def test_zeros_stay_zeros() -> None:
    pool = PoolState("mean")
    pool.add(np.zeros((2, 3), dtype=np.float32))
    assert pool.vector(dimensions=None, normalize=True).tolist() == [0.0, 0.0, 0.0]
