"""Memory on huge pages for what every step reads from end to end: weights and KV pools.

Invariant: pages are advice only; a system without them gives the same tensors, slower. On the
2 MB pages one table entry covers what 512 would, which matters where a step walks hundreds of MB.
"""

import ctypes
import mmap
import sys

import torch

__all__ = ["HugeArena", "huge_empty"]

_PAGE = 2 << 20
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def huge_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised CPU tensor that starts on a 2 MB boundary of huge pages where there are any.

    Pages are taken from the system only when they are first written.
    """
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.empty(nbytes + _PAGE, dtype=torch.uint8)
    offset = -raw.data_ptr() % _PAGE
    if _ADVICE is not None and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        # A refusal (no such pages here) leaves ordinary pages, which is all right.
        libc.madvise(raw.data_ptr() + offset, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE, _ADVICE)
    return raw[offset : offset + nbytes].view(dtype).view(shape)


class HugeArena:
    """Places tensors one after the other in large huge-page buffers, in the order of the calls.

    A buffer is freed when the last tensor placed in it is.

    Args:
        chunk: bytes of a buffer; a larger tensor gets one of its own.
    """

    def __init__(self, chunk: int = 32 << 20) -> None:
        self._chunk = chunk
        self._buffer: torch.Tensor | None = None
        self._used = 0

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of `tensor`, 64-byte aligned."""
        nbytes = tensor.numel() * tensor.element_size()
        if self._buffer is None or self._used + nbytes > self._buffer.numel():
            self._buffer = huge_empty((max(self._chunk, nbytes),), torch.uint8)
            self._used = 0
        part = self._buffer[self._used : self._used + nbytes]
        self._used += -(-nbytes // 64) * 64
        placed = part.view(tensor.dtype).view(tensor.shape)
        return placed.copy_(tensor)
