"""One tensor as the file holds it: typed values, or rows of quantised blocks as bytes.

Invariant: `data` is a view into the file's mapping wherever the file's layout allows, so reading
a tensor costs no memory until its values are used; a block never spans two rows, so rows of
quantised tensors can be cut, concatenated and permuted as bytes. Knows nothing of tensor names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from branchline.runtime.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

Kind = Literal["f32", "bf16", "f16", "q4_0", "q4_1", "q8_0"]
AnyArray = npt.NDArray[Any]

BLOCK_BYTES: dict[Kind, int] = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
"""Bytes of one block of 32 values. q4_0: d f16, 16 bytes; q4_1: d f16, m f16, 16 bytes; q8_0: d
f16, 32 int8. In 4-bit blocks value i is the low half of byte i for i < 16, else the high half of
byte i - 16."""
BLOCK = 32
"""Values in a quantised block, along K."""

_ROWS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as stored.

    Attributes:
        kind: how the values are stored.
        shape: logical shape; [N, K] for a matrix (N outputs), [N] for a vector.
        data: "f32" float32, "f16" float16, "bf16" uint16 (the bits), each of `shape`; quantised:
            uint8 [N, K / 32 * BLOCK_BYTES[kind]]. May be a private copy-on-write view of the file.
    """

    kind: Kind
    shape: tuple[int, ...]
    data: AnyArray

    @property
    def is_quantized(self) -> bool:
        """Whether `data` holds blocks rather than values."""
        return self.kind in BLOCK_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of `data`."""
        return int(self.data.nbytes)

    def permute_rows(self, order: npt.NDArray[np.intp]) -> RawTensor:
        """The tensor whose row i is this one's row `order[i]`; copies."""
        return replace(self, data=np.ascontiguousarray(self.data[order]))

    def to_numpy(self) -> npt.NDArray[np.float32]:
        """Values as float32, of `shape`; a new array unless stored as f32."""
        if self.kind == "f32":
            return self.data
        if self.kind == "f16":
            return self.data.astype(np.float32)
        if self.kind == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return _dequantize(self.kind, self.data).reshape(self.shape)

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        """Values as a CPU tensor of `shape` and `dtype`.

        Shares memory with the file's mapping when it is stored in `dtype` (writes stay private
        to the process); otherwise a new tensor, converted a few rows at a time.
        """
        import torch

        if self.kind == "f32":
            return torch.from_numpy(self.data).to(dtype)
        if self.kind == "f16":
            return torch.from_numpy(self.data).to(dtype)
        if self.kind == "bf16":
            return torch.from_numpy(self.data.view(np.int16)).view(torch.bfloat16).to(dtype)
        rows = self.data.shape[0]
        out = torch.empty((rows, math.prod(self.shape) // max(rows, 1)), dtype=dtype)
        step = max(1, _ROWS_AT_ONCE // max(1, out.shape[1]))
        for start in range(0, rows, step):
            part = _dequantize(self.kind, self.data[start : start + step])
            out[start : start + step] = torch.from_numpy(part)
        return out.view(self.shape)


def row_bytes(kind: Kind, columns: int) -> int:
    """Bytes of one row of `columns` values.

    Raises:
        ModelLoadError: `columns` is no whole number of blocks.
    """
    if kind in BLOCK_BYTES:
        if columns % BLOCK:
            raise ModelLoadError(f"A {kind} row must be a multiple of {BLOCK}.", value=columns)
        return columns // BLOCK * BLOCK_BYTES[kind]
    return columns * (4 if kind == "f32" else 2)


def _dequantize(kind: Kind, data: AnyArray) -> npt.NDArray[np.float32]:
    """[n, blocks * BLOCK_BYTES] uint8 to [n, blocks * 32] float32."""
    rows = data.shape[0]
    blocks = data.reshape(-1, BLOCK_BYTES[kind])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "q8_0":
        values = blocks[:, 2:].view(np.int8).astype(np.float32)
        values *= scale
        return values.reshape(rows, -1)
    packed = blocks[:, -16:]
    values = np.empty((len(blocks), BLOCK), np.float32)
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4
    if kind == "q4_0":
        values -= 8.0
        values *= scale
    else:
        values *= scale
        values += blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return values.reshape(rows, -1)
