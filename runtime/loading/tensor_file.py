"""The head of a safetensors file: names, types, shapes and places of its tensors, checked.

Invariant: every byte range that is handed out lies inside the file and has the size that its type
and shape say, whatever the file claims. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.raw_tensor import Kind, RawTensor

DTYPES: dict[str, tuple[Kind, Any]] = {
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
}
"""Types that can be read: how their values are stored, and the numpy type that holds them."""

INTEGERS: dict[str, Any] = {"I64": np.int64, "I32": np.int32}
"""Types of whole numbers, which are no weights."""

_SIZES = {name: np.dtype(kind).itemsize for name, (_, kind) in DTYPES.items()} | {
    name: np.dtype(kind).itemsize for name, kind in INTEGERS.items()
}
"""Bytes of a value."""

_MAX_HEADER = 100 << 20


class TensorEntry(msgspec.Struct):
    """One tensor of a file.

    Attributes:
        data_offsets: of its first byte and the one behind its last, from where the data begins.
    """

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_head(path: Path) -> tuple[int, dict[str, TensorEntry]]:
    """`parse_head` of a file of which nothing else is read.

    Raises:
        ModelLoadError: as there, or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            head = first + (file.read(length) if length <= min(_MAX_HEADER, size) else b"")
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_head(head, size, path)


def parse_head(data: Any, size: int, path: object) -> tuple[int, dict[str, TensorEntry]]:
    """Where the data begins, and the tensors by name, in the file's order.

    Args:
        data: the file, or its beginning; bytes, or a mapping of them.
        size: of the whole file.
        path: for messages.

    Raises:
        ModelLoadError: it is no safetensors file, damaged, or cut short.
    """
    if size == 0:
        raise ModelLoadError(f"{path} is empty.", hint="Fetch it again.")
    length = int.from_bytes(data[:8], "little")
    base = 8 + length
    if length > min(_MAX_HEADER, size - 8):
        raise ModelLoadError(
            f"{path} is no safetensors file, or cut short: its head claims {length} bytes, "
            f"the file has {size}.",
            hint="Fetch it again.",
        )
    try:
        raw = msgspec.json.decode(data[8:base], type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(text, type=TensorEntry) for name, text in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} is damaged: {error}.", hint="Fetch it again.") from error
    for name, entry in entries.items():
        _check_range(path, name, entry, size - base)
    return base, entries


def tensor_at(data: Any, base: int, entry: TensorEntry) -> RawTensor:
    """A tensor as stored: kind "f32", "f16" or "bf16"; a view of `data` where its place allows.

    Args:
        data: the whole file, bytes or a mapping of them.
        base: where the file's data begins.
        entry: of a type in `DTYPES`.
    """
    kind, dtype = DTYPES[entry.dtype]
    return RawTensor(kind, tuple(entry.shape), _values(data, base, entry, dtype))


def integers_at(
    data: Any, base: int, entry: TensorEntry, name: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A tensor of whole numbers, a copy.

    Raises:
        ModelLoadError: it holds others; `name` says which it is.
    """
    if entry.dtype not in INTEGERS:
        raise ModelLoadError(f"{name} is stored as {entry.dtype}, not as whole numbers.")
    return _values(data, base, entry, INTEGERS[entry.dtype]).astype(np.int64)


def _values(data: Any, base: int, entry: TensorEntry, dtype: Any) -> np.ndarray[Any, Any]:
    start, end = (base + offset for offset in entry.data_offsets)
    raw = np.frombuffer(data, np.uint8, end - start, start)
    if start % np.dtype(dtype).itemsize:
        raw = raw.copy()
    values: np.ndarray[Any, Any] = raw.view(dtype).reshape(entry.shape)
    return values


def unreadable(entries: Mapping[str, TensorEntry]) -> tuple[str, str] | None:
    """The first tensor (name, type) whose type cannot be read, if any."""
    return next(((n, e.dtype) for n, e in entries.items() if e.dtype not in DTYPES), None)


def _check_range(path: object, name: str, entry: TensorEntry, available: int) -> None:
    start, end = entry.data_offsets
    if not 0 <= start <= end or min(entry.shape, default=0) < 0:
        raise ModelLoadError(f"{path} is damaged: tensor {name!r} has a bad range or shape.")
    if end > available:
        raise ModelLoadError(
            f"{path} is cut short: tensor {name!r} ends {end - available} bytes past its end.",
            hint="The download is incomplete; delete the file and fetch it again.",
        )
    if entry.dtype in _SIZES:
        need = math.prod(entry.shape) * _SIZES[entry.dtype]
        if need != end - start:
            raise ModelLoadError(
                f"{path} is damaged: tensor {name!r} of {entry.dtype} {entry.shape} "
                f"has {end - start} bytes instead of {need}."
            )
