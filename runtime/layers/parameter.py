"""Where a layer's weights come from: named slots that a loader fills, one tensor at a time.

Invariant: nothing is allocated before it is filled, and a slot is filled once. Quantised blocks are
kept as the file holds them unless a dtype is asked for. Knows nothing of files or of whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from branchline.kernels.weights import (
    BLOCK,
    DenseWeight,
    PanelWeight,
    Q4_1Weight,
    Q8_0Weight,
    Weight,
)

WeightDtype = Literal["auto", "float32", "bfloat16"]
"""How matrices are kept. "auto": 4-bit and 8-bit blocks as in the file, bfloat16 as bfloat16,
float32 and float16 as float32."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class StoredTensor(Protocol):
    """A tensor as a file holds it (`loading.RawTensor` is one); `to_torch` decides where it goes.

    Attributes:
        kind: "f32", "f16", "bf16", "q4_0", "q4_1" or "q8_0".
        shape: logical shape.
        data: values of `shape`, or uint8 [N, bytes of a row] for the quantised kinds.
    """

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def data(self) -> np.ndarray[Any, Any]: ...

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """Place for one tensor of a file.

    Attributes:
        name: canonical tensor name.
        shape: the shape it must have.
        put: takes the tensor; the layer may keep a reference until all its parts are there.
    """

    name: str
    shape: tuple[int, ...]
    put: Callable[[StoredTensor], None]


class Layer(Protocol):
    """Anything that owns weights."""

    def slots(self) -> Iterator[Slot]:
        """One slot for each tensor it needs."""

    def memory(self) -> int:
        """Bytes of weights held now, each buffer counted where it is owned."""


def make_weight(parts: Sequence[StoredTensor], dtype: WeightDtype) -> Weight:
    """One matrix with the rows of all parts, in order.

    Parts that are quantised alike stay quantised under "auto"; parts stored in different ways
    become one dense matrix, float32 if any part was stored with more than bfloat16 holds.
    """
    kinds = {part.kind for part in parts}
    if dtype == "auto" and len(kinds) == 1:
        columns = parts[0].shape[1]
        match parts[0].kind:
            case "q4_1":
                return Q4_1Weight(_blocks(parts), columns)
            case "q4_0":
                return Q4_1Weight(_with_minimum(_blocks(parts)), columns)
            case "q8_0":
                return Q8_0Weight(_blocks(parts), columns)
            case _:
                pass
    to = _dense_dtype(kinds) if dtype == "auto" else _DTYPES[dtype]
    first = parts[0].to_torch(to)
    if len(parts) == 1:
        return DenseWeight(first)
    # on the device that the parts come to
    out = first.new_empty((sum(part.shape[0] for part in parts), parts[0].shape[1]))
    out[: parts[0].shape[0]] = first
    start = parts[0].shape[0]
    for part in parts[1:]:
        out[start : start + part.shape[0]] = part.to_torch(to)
        start += part.shape[0]
    return DenseWeight(out)


def make_vector(parts: Sequence[StoredTensor]) -> torch.Tensor:
    """Norm weights and biases: one float32 tensor of its own memory, the parts end to end."""
    return torch.cat([part.to_torch(torch.float32) for part in parts])


def _dense_dtype(kinds: set[str]) -> torch.dtype:
    return torch.float32 if kinds & {"f32", "f16"} else torch.bfloat16


def _blocks(parts: Sequence[StoredTensor]) -> torch.Tensor:
    """Raw bytes of quantised parts, end to end; no copy of a single part."""
    blocks = [torch.from_numpy(part.data) for part in parts]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _with_minimum(blocks: torch.Tensor) -> torch.Tensor:
    """Q4_0 blocks (d, codes: d * (code - 8)) as Q4_1 blocks (d, m = -8 d, codes), exact.

    Multiplying by a power of two changes no mantissa bit of a float16; a scale so large that
    -8 d overflows would give weights past the float16 range, which no quantiser writes.
    """
    raw = blocks.reshape(-1, 2 + BLOCK // 2)
    scale = raw[:, :2].contiguous().view(torch.float16)
    return torch.cat([raw[:, :2], (scale * -8.0).view(torch.uint8), raw[:, 2:]], dim=1)


def stored_as(weight: Weight) -> str:
    """How a matrix is kept, for reports: "float32", "bfloat16", "Q4_1" or "Q8_0"."""
    if isinstance(weight, DenseWeight):
        return str(weight.tensor.dtype).removeprefix("torch.")
    if isinstance(weight, PanelWeight):
        return str(weight.panels.dtype).removeprefix("torch.")
    return type(weight).__name__.removesuffix("Weight")
