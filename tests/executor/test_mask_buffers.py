"""Memory for masks: what is queued is what was filled, whoever owns it and however often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchline.runtime.executor import mask_buffers
from branchline.runtime.executor.device_stream import DeviceStream, Mark
from branchline.runtime.executor.mask_buffers import MaskBuffers

CPU = torch.device("cpu")


def test_what_is_filled_is_what_arrives() -> None:
    r = np.random.default_rng(3)
    buffers, target = MaskBuffers(6, 4, DeviceStream(CPU)), torch.zeros((6, 4), dtype=torch.int32)
    for number in range(30):
        count = int(r.integers(1, 7))
        wanted = r.integers(-(1 << 31), 1 << 31, (count, 4)).astype(np.int32)
        mask = buffers.take(count) if number % 3 else wanted.copy()
        assert buffers.owns(mask) == bool(number % 3)
        mask[:] = wanted
        buffers.queue(mask, target)
        assert (target[:count].numpy() == wanted).all()


def test_more_rows_than_there_are_get_memory_of_their_own() -> None:
    buffers = MaskBuffers(2, 4, DeviceStream(CPU))
    mask = buffers.take(3)
    assert mask.shape == (3, 4) and not buffers.owns(mask)


def test_memory_comes_again_only_once_its_copy_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Noted(Mark):
        def __init__(self, number: int) -> None:
            self.number = number

        def wait(self) -> None:
            waited.append(self.number)

    stream = DeviceStream(CPU)
    buffers, target = MaskBuffers(1, 1, stream), torch.zeros((1, 1), dtype=torch.int32)
    numbers = iter(range(100))
    monkeypatch.setattr(stream, "mark", lambda: Noted(next(numbers)))
    ring = mask_buffers._RING
    for turn in range(2 * ring):
        buffers.queue(buffers.take(1), target)
        assert waited == list(range(turn + 1 - ring))
