"""What may not happen while work is recorded, and what it waits for."""

from __future__ import annotations

import gc

import pytest
import torch

from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.recorder import no_collection


def test_nothing_is_collected_while_a_recording_is_made() -> None:
    seen = []
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(KeyError), no_collection():
                seen.append(gc.isenabled())
                raise KeyError
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
    assert seen == [False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("adopts", [False, True])
def test_a_queue_begins_behind_what_its_thread_has_queued_elsewhere(adopts: bool) -> None:
    device = torch.device("cuda")
    other, stream = torch.cuda.Stream(device), DeviceStream(device)
    try:
        with torch.cuda.stream(other):
            value = torch.zeros(1 << 20, device=device)
            torch.cuda._sleep(200_000_000)
            value.fill_(7.0)
            if adopts:
                stream.adopt()
            with stream:
                seen = value + 1.0
            stream.drain()
        assert seen.min().item() == 8.0
    finally:
        torch.cuda.set_stream(torch.cuda.default_stream(device))
