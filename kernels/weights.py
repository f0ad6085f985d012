"""Weights of linear and embedding ops: dense, or quantized in blocks of 32 as GGUF files hold them.

Invariant: a quantized weight holds exactly the numbers of the file; packing only moves bytes. The
packed layout serves 16 output columns at once: per group of 16 rows of the weight, first the codes
as [K/32 blocks][k-quads][16 rows][4 codes], then the float16 scales (and minima) as
[K/32 blocks][16 rows]. Rows are padded with zeros to a multiple of 16. In Q4_1 one byte holds the
code of k-quad i in its low and of k-quad i + 4 in its high half; Q8_0 codes are stored plus 128.

The module knows layouts only: neither files nor kernels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self

import torch

from branchline.kernels.errors import KernelInputError

__all__ = [
    "BLOCK",
    "LANES",
    "PANEL",
    "DenseWeight",
    "PanelWeight",
    "Q4_1Weight",
    "Q8_0Weight",
    "Weight",
    "concat",
    "pick_rows",
    "quantize_q4_1",
]

BLOCK = 32
"""Elements of K that share a scale in Q4_1 and Q8_0."""
LANES = 16
"""Rows of a weight that one packed group holds."""


PANEL = 64
"""Rows of a weight that one dense panel holds."""


class Weight(ABC):
    """A matrix [N, K] that a linear op multiplies by, or whose rows an embedding looks up."""

    rows: int
    """N, the number of output features (or of tokens)."""
    columns: int
    """K, the number of input features (or the hidden size)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows, self.columns

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held."""

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """The matrix as a new float32 tensor [N, K], exact."""

    @abstractmethod
    def placed(self, place: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """This weight with its bytes where `place` copies a tensor to."""

    @cached_property
    def dense(self) -> torch.Tensor:
        """[N, K] float32 (a DenseWeight's own tensor), kept once made: for the reference ops."""
        return self.dequantize()


class DenseWeight(Weight):
    """A float32 or bfloat16 tensor [N, K], kept as it is (not copied)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.dim() != 2 or tensor.dtype not in (torch.float32, torch.bfloat16):
            raise KernelInputError(
                f"a dense weight is a float32 or bfloat16 matrix, got {tensor.dtype} with shape "
                f"{tuple(tensor.shape)}; convert it first"
            )
        self.tensor = tensor
        self.rows, self.columns = tensor.shape

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.tensor.nbytes

    def placed(self, place: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """This weight with its bytes where `place` copies a tensor to."""
        weight = copy.copy(self)
        weight.tensor = place(self.tensor)
        return weight

    def dequantize(self) -> torch.Tensor:
        """A float32 copy [N, K]."""
        return self.tensor.to(torch.float32, copy=True)

    @cached_property
    def dense(self) -> torch.Tensor:
        """The tensor itself."""
        return self.tensor


class PanelWeight(Weight):
    """A dense weight copied into panels of 64 rows for the native CPU backend (see `Ops.prepare`).

    Attributes:
        panels: float32 [ceil(N/64), K, 64], or bfloat16 [ceil(N/64), ceil(K/2), 64, 2]; padding is
            zero.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        """tensor: [N, K] float32 or bfloat16; not kept."""
        n, k = DenseWeight(tensor).shape
        self.rows, self.columns = n, k
        pair = 2 if tensor.dtype == torch.bfloat16 else 1
        count, depth = (n + PANEL - 1) // PANEL, (k + pair - 1) // pair
        self.panels = torch.zeros(count, depth, PANEL, pair, dtype=tensor.dtype)
        wide = self.panels.permute(0, 2, 1, 3)
        for p in range(count):
            part = tensor[p * PANEL : (p + 1) * PANEL]
            if k % pair:
                part = torch.nn.functional.pad(part, (0, pair - k % pair))
            wide[p, : part.shape[0]] = part.reshape(-1, depth, pair)
        if pair == 1:
            self.panels = self.panels.squeeze(-1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.panels.nbytes

    def placed(self, place: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """This weight with its bytes where `place` copies a tensor to."""
        weight = copy.copy(self)
        weight.panels = place(self.panels)
        return weight

    def dequantize(self) -> torch.Tensor:
        """The matrix as a new float32 tensor [N, K]."""
        count, depth = self.panels.shape[:2]
        wide = self.panels.reshape(count, depth, PANEL, -1).permute(0, 2, 1, 3)
        return wide.reshape(count * PANEL, -1)[: self.rows, : self.columns].float().contiguous()


class _PackedWeight(Weight):
    """A quantized weight in the packed layout; subclasses give the block format.

    Attributes:
        packed: [groups, bytes of a group] uint8, 64-byte aligned rows.
    """

    block_bytes: int
    code_bytes: int
    scale_bytes: int

    def __init__(self, blocks: torch.Tensor, columns: int) -> None:
        """Pack the raw bytes of a file.

        Args:
            blocks: uint8 with N * (K / 32) * block_bytes elements, any shape, row after row.
            columns: K, a multiple of 32.
        """
        row_bytes = columns // BLOCK * self.block_bytes
        if columns % BLOCK or columns <= 0 or blocks.dtype != torch.uint8:
            raise KernelInputError(
                f"{type(self).__name__} takes uint8 blocks of a matrix whose rows are a multiple "
                f"of {BLOCK} long, got {blocks.dtype} and rows of {columns}"
            )
        if blocks.numel() == 0 or blocks.numel() % row_bytes:
            raise KernelInputError(
                f"{blocks.numel()} bytes are not whole rows of {row_bytes} bytes "
                f"({type(self).__name__}, {columns} columns): the tensor is cut short or its shape "
                "is wrong"
            )
        self.columns = columns
        self.rows = blocks.numel() // row_bytes
        self.packed = self._pack(blocks.reshape(self.rows, columns // BLOCK, self.block_bytes))

    @classmethod
    def group_bytes(cls, columns: int) -> int:
        """Bytes of one packed group of 16 rows, rounded up to 64."""
        size = columns // BLOCK * LANES * (cls.code_bytes + cls.scale_bytes)
        return (size + 63) // 64 * 64

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.packed.nbytes

    def picked(self, index: torch.Tensor) -> "_PackedWeight":
        """The rows `index` (int64 [n]) alone, bit for bit."""
        nb = self.columns // BLOCK
        codes, scales = nb * LANES * self.code_bytes, nb * LANES * self.scale_bytes
        group, lane = index // LANES, index % LANES
        short = -len(index) % LANES
        if short:  # rows past the end are never read as results
            group = torch.cat([group, group.new_zeros(short)])
            lane = torch.cat([lane, lane.new_zeros(short)])
        count = len(group) // LANES
        out = torch.zeros(count, self.group_bytes(self.columns), dtype=torch.uint8)
        # of one lane: [nb, quads, 4] bytes of codes, [nb, numbers] two-byte scales
        four = self.packed[:, :codes].view(-1, nb, self.code_bytes // 4, LANES, 4)
        two = self.packed[:, codes : codes + scales]
        two = two.reshape(-1, nb, self.scale_bytes // 2, LANES, 2)
        for first in range(0, count, 1 << 12):
            part = slice(first * LANES, min(first + (1 << 12), count) * LANES)
            g, x = group[part], lane[part]
            view = out[first : first + (1 << 12)]
            taken = four[g, :, :, x].view(-1, LANES, nb, self.code_bytes // 4, 4)
            view[:, :codes] = taken.permute(0, 2, 3, 1, 4).reshape(-1, codes)
            taken = two[g, :, :, x].view(-1, LANES, nb, self.scale_bytes // 2, 2)
            view[:, codes : codes + scales] = taken.permute(0, 2, 3, 1, 4).reshape(-1, scales)
        return type(self).from_packed(out, len(index), self.columns)

    @classmethod
    def from_packed(cls, packed: torch.Tensor, rows: int, columns: int) -> "_PackedWeight":
        """Wrap bytes that are in the packed layout already."""
        weight = cls.__new__(cls)
        weight.packed, weight.rows, weight.columns = packed, rows, columns
        return weight

    def _pack(self, blocks: torch.Tensor) -> torch.Tensor:
        """blocks [N, K/32, block_bytes] -> [ceil(N/16), group_bytes]."""
        n, nb, _ = blocks.shape
        groups = (n + LANES - 1) // LANES
        out = torch.zeros(groups, self.group_bytes(self.columns), dtype=torch.uint8)
        step = max(1, 2**24 // (LANES * nb * self.block_bytes))
        for first in range(0, groups, step):
            part = blocks[first * LANES : (first + step) * LANES]
            short = -part.shape[0] % LANES
            if short:
                part = torch.cat([part, part.new_zeros(short, nb, self.block_bytes)])
            part = part.reshape(-1, LANES, nb, self.block_bytes)
            g = part.shape[0]
            codes = nb * LANES * self.code_bytes
            scales = nb * LANES * self.scale_bytes
            view = out[first : first + g]
            view[:, :codes] = self._pack_codes(part[..., self.scale_bytes :]).reshape(g, codes)
            view[:, codes : codes + scales] = (
                part[..., : self.scale_bytes]
                .reshape(g, LANES, nb, self.scale_bytes // 2, 2)
                .permute(0, 2, 3, 1, 4)
                .reshape(g, scales)
            )
        return out

    def placed(self, place: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """This weight with its bytes where `place` copies a tensor to."""
        weight = copy.copy(self)
        weight.packed = place(self.packed)
        return weight

    def dequantize(self) -> torch.Tensor:
        """The matrix as a new float32 tensor [N, K], exact."""
        nb = self.columns // BLOCK
        groups = self.packed.shape[0]
        codes = nb * LANES * self.code_bytes
        scales = nb * LANES * self.scale_bytes
        q = self._unpack_codes(self.packed[:, :codes].reshape(groups, nb, -1, LANES, 4))
        s = self.packed[:, codes : codes + scales].contiguous().view(torch.float16).float()
        s = s.reshape(groups, nb, self.scale_bytes // 2, LANES).permute(2, 0, 3, 1)[..., None]
        # [groups, blocks, quads, lanes, 4] -> [groups, lanes, blocks, 32]
        q = q.permute(0, 3, 1, 2, 4).reshape(groups, LANES, nb, BLOCK)
        return self._scale(q, s).reshape(groups * LANES, self.columns)[: self.rows].contiguous()

    @staticmethod
    @abstractmethod
    def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
        """[g, 16, nb, code_bytes] of the file -> [g, nb, quads, 16, 4] packed."""

    @staticmethod
    @abstractmethod
    def _unpack_codes(packed: torch.Tensor) -> torch.Tensor:
        """[g, nb, quads, 16, 4] packed -> the same with 8 quads of float32 codes."""

    @staticmethod
    @abstractmethod
    def _scale(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """codes [g, 16, nb, 32] and scales [1 or 2, g, 16, nb, 1] -> values."""


class Q4_1Weight(_PackedWeight):
    """GGUF Q4_1: blocks of 32 with float16 scale d and minimum m, value = d * code + m."""

    block_bytes = 20
    code_bytes = 16
    scale_bytes = 4

    @staticmethod
    def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
        # Byte i of the file holds elements i (low) and i + 16 (high), which is the packed pairing.
        g, lanes, nb, _ = codes.shape
        return codes.reshape(g, lanes, nb, 4, 4).permute(0, 2, 3, 1, 4)

    @staticmethod
    def _unpack_codes(packed: torch.Tensor) -> torch.Tensor:
        return torch.cat([packed & 15, packed >> 4], dim=2).float()

    @staticmethod
    def _scale(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return codes * scales[0] + scales[1]


class Q8_0Weight(_PackedWeight):
    """GGUF Q8_0: blocks of 32 signed codes with one float16 scale d, value = d * code."""

    block_bytes = 34
    code_bytes = 32
    scale_bytes = 2

    @staticmethod
    def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
        g, lanes, nb, _ = codes.shape
        # Flipping the top bit adds 128 to a two's complement byte.
        return (codes ^ 128).reshape(g, lanes, nb, 8, 4).permute(0, 2, 3, 1, 4)

    @staticmethod
    def _unpack_codes(packed: torch.Tensor) -> torch.Tensor:
        return packed.float() - 128.0

    @staticmethod
    def _scale(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return codes * scales[0]


def concat(weights: Sequence[Weight]) -> Weight:
    """One weight with the rows of all, in order: fuses linears that read the same input.

    Args:
        weights: of one class and one K; quantized ones need N to be a multiple of 16, except the
            last one. Dense ones need one dtype.

    Raises:
        KernelInputError: when they differ or a quantized part does not end on a group.
    """
    if not weights:
        raise KernelInputError("concat needs at least one weight")
    first = weights[0]
    kinds = {(type(w).__name__, w.columns) for w in weights}
    if len(kinds) > 1:
        raise KernelInputError(f"cannot fuse weights of different kinds: {sorted(kinds)}")
    if isinstance(first, DenseWeight):
        tensors = [w.tensor for w in weights if isinstance(w, DenseWeight)]
        if len({t.dtype for t in tensors}) > 1:
            raise KernelInputError(
                f"cannot fuse dense weights of different dtypes: {[t.dtype for t in tensors]}"
            )
        return DenseWeight(torch.cat(tensors))
    parts = [w for w in weights if isinstance(w, _PackedWeight)]
    ragged = [w.rows for w in parts[:-1] if w.rows % LANES]
    if ragged or not parts:
        raise KernelInputError(
            f"a quantized weight fused before another needs a multiple of {LANES} rows, "
            f"got {ragged}"
        )
    packed = torch.cat([w.packed for w in parts])
    return type(parts[0]).from_packed(packed, sum(w.rows for w in parts), parts[0].columns)


def pick_rows(weight: Weight, index: torch.Tensor) -> Weight:
    """The rows `index` (int64 [n], in host memory) of a weight, in that order, bit for bit.

    A dense weight gives a dense one, which is a view where the rows follow each other; a weight in
    panels gives a dense one, to be prepared again.
    """
    if isinstance(weight, _PackedWeight):
        return weight.picked(index)
    if isinstance(weight, PanelWeight):
        return DenseWeight(weight.dequantize()[index].to(weight.panels.dtype))
    if not isinstance(weight, DenseWeight):
        raise KernelInputError(f"rows of a {type(weight).__name__} cannot be picked")
    first, count = (int(index[0]), len(index)) if len(index) else (0, 0)
    if torch.equal(index, torch.arange(first, first + count)):
        return DenseWeight(weight.tensor[first : first + count])
    return DenseWeight(weight.tensor[index.to(weight.tensor.device)])


def quantize_q4_1(tensor: torch.Tensor) -> Q4_1Weight:
    """A dense matrix [N, K] rounded to blocks of 4-bit codes, K a multiple of 32: of a few ranges
    within a block's smallest and largest number the one with the least squared error."""
    n, k = tensor.shape
    blocks = tensor.float().reshape(n, k // BLOCK, BLOCK)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    middle = (low + high) / 2
    best: list[torch.Tensor] = []  # error, scale, minimum, codes
    for part in (1.0, 0.95, 0.9, 0.85, 0.8):
        half = (high - low) * (part / 2)
        scale, least = (half / 7.5).to(torch.float16), (middle - half).to(torch.float16)
        wide = scale.float()
        codes = torch.where(wide > 0, (blocks - least.float()) / wide.clamp(min=1e-30), 0.0)
        codes = codes.round().clamp(0, 15)
        error = (codes * wide + least.float() - blocks).square().sum(-1, keepdim=True)
        found = [error, scale, least, codes]
        if best:
            found = [torch.where(error < best[0], x, y) for x, y in zip(found, best, strict=True)]
        best = found
    _, scale, least, codes = best
    whole = codes.to(torch.uint8)
    pairs = whole[..., : BLOCK // 2] | whole[..., BLOCK // 2 :] << 4
    raw = torch.cat([scale.view(torch.uint8), least.view(torch.uint8), pairs], dim=-1)
    return Q4_1Weight(raw, k)
