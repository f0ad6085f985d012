"""A thread's own number of torch threads leaves everybody else's alone."""

from __future__ import annotations

import threading

import pytest
import torch

from branchline.runtime.executor.torch_threads import start_with_torch_threads, torch_threads


@pytest.fixture(autouse=True)
def three_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_block_ends_as_it_began() -> None:
    with pytest.raises(KeyError), torch_threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3


def test_only_the_started_thread_is_changed() -> None:
    seen: dict[str, int] = {}
    go = threading.Event()

    def main() -> None:
        go.wait()
        torch.ones(4).sum()
        seen["worker"] = torch.get_num_threads()

    thread = start_with_torch_threads(main, "test", 1)
    later = threading.Thread(target=lambda: seen.update(later=torch.get_num_threads()))
    later.start()
    later.join()
    go.set()
    thread.join()
    assert thread.daemon
    assert seen == {"worker": 1, "later": 3}
    assert torch.get_num_threads() == 3
