"""How many threads torch uses for one op, here and now.

With native ops, what is left for torch is small copies and reductions: a second thread brings
little, and where cores are shared its barriers cost a multiple of the work (loading the default
model beside two busy processes: 0.5 s with one thread, 2 to 11 s with two).

Torch keeps one number for threads to come and one for each thread that is there; what is set here
is taken back for all but the thread that asked. Knows nothing of the native ops' own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """The calling thread's torch ops use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start_with_torch_threads(
    thread_main: Callable[[], None], name: str, count: int
) -> threading.Thread:
    """A started daemon thread whose torch ops use `count` threads; others keep theirs."""
    ready = threading.Event()

    def main() -> None:
        torch.set_num_threads(count)
        # the first look makes the number this thread's own, whatever is set elsewhere after
        torch.get_num_threads()
        ready.set()
        thread_main()

    before = torch.get_num_threads()
    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    ready.wait()
    torch.set_num_threads(before)
    return thread
