"""The pool's views, its zeros and its copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchline.runtime.memory.kv_pool import KVPool

CPU = torch.device("cpu")


@pytest.mark.parametrize("page_size", [1, 4])
def test_layers_are_contiguous_views_of_one_buffer(page_size: int) -> None:
    pool = KVPool(3, 10, page_size, 2, 8, dtype=torch.float32, device=CPU)
    keys, values = pool.layer(1)
    assert keys.shape == values.shape == (11 * page_size, 2, 8)
    assert keys.is_contiguous() and values.is_contiguous()
    keys[5] = 7.0
    assert (pool.buffer[0, 1, 5] == 7.0).all()
    assert pool.num_slots == 11 * page_size


def test_the_padding_page_is_zero() -> None:
    pool = KVPool(2, 4, 16, 1, 4, dtype=torch.bfloat16, device=CPU)
    assert (pool.buffer[:, :, :16] == 0).all()


def test_bytes_per_token_is_what_the_buffer_takes() -> None:
    pool = KVPool(3, 9, 2, 4, 8, dtype=torch.bfloat16, device=CPU)
    per_token = KVPool.bytes_per_token(3, 4, 8, torch.bfloat16)
    assert pool.nbytes == per_token * (9 + 1) * 2


def test_copy_slots_reads_all_sources_first_and_copies_every_layer() -> None:
    pool = KVPool(2, 8, 1, 1, 2, dtype=torch.float32, device=CPU)
    pool.buffer[:] = torch.arange(pool.num_slots, dtype=torch.float32)[:, None, None]
    pool.copy_slots(np.array([2, 3, 4], dtype=np.int32), np.array([1, 2, 3], dtype=np.int32))
    for layer in range(2):
        for part in pool.layer(layer):
            assert part[:, 0, 0].tolist() == [0, 2, 3, 4, 4, 5, 6, 7, 8]
    pool.copy_slots(torch.tensor([], dtype=torch.int32), torch.tensor([], dtype=torch.int32))
