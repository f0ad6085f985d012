"""The head of a safetensors file is believed in nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.tensor_file import parse_head


def file_of(dtype: str, shape: list[int], start: int, end: int, data: bytes = bytes(16)) -> bytes:
    entry: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps({"x": entry}).encode()
    return len(head).to_bytes(8, "little") + head + data


@pytest.mark.parametrize(
    ("dtype", "shape", "start", "end", "what"),
    [
        ("F32", [2], 0, 16, "16 bytes instead of 8"),
        ("BF16", [3, 3], 0, 16, "16 bytes instead of 18"),
        ("I64", [3], 0, 16, "16 bytes instead of 24"),
        ("F32", [2**32, 2**32], 0, 0, "0 bytes instead of 73786976294838206464"),
        ("F32", [-2, -2], 0, 16, "bad range or shape"),
        ("F32", [4], 16, 0, "bad range or shape"),
        ("F32", [4], 16, 32, "ends 16 bytes past its end"),
    ],
)
def test_what_does_not_fit_is_refused(
    dtype: str, shape: list[int], start: int, end: int, what: str
) -> None:
    data = file_of(dtype, shape, start, end)
    with pytest.raises(ModelLoadError, match=what):
        parse_head(data, len(data), "x.safetensors")
