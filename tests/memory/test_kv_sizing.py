"""The size of the pool and the errors that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from branchline.runtime.errors import InvalidRequest, OutOfMemory
from branchline.runtime.memory.sizing import _control_group_free, decide_pages, free_memory

MIB = 1 << 20


def decide(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "bytes_per_token": 1024,
        "page_size": 1,
        "max_context": 2048,
        "free_bytes": 100 * MIB,
        "memory_fraction": 0.5,
    }
    return decide_pages(**{**settings, **changes})


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_pool_takes_its_fraction_padding_included(page_size: int) -> None:
    decision = decide(page_size=page_size)
    assert decision.num_bytes <= 50 * MIB < decision.num_bytes + page_size * 1024
    assert decision.num_bytes == (decision.num_pages + 1) * page_size * 1024
    assert decision.num_tokens == decision.num_pages * page_size
    assert "50% of 100.0 MiB" in decision.why and "1024 bytes per token" in decision.why


def test_an_explicit_size_is_rounded_up_to_pages() -> None:
    decision = decide(kv_tokens=5001, page_size=16)
    assert (decision.num_pages, decision.num_tokens) == (313, 5008)
    assert "5001" in decision.why


def test_one_context_must_fit() -> None:
    with pytest.raises(OutOfMemory, match="less than one context of 90000") as caught:
        decide(max_context=90_000)
    for setting in ("context_length", "memory_fraction", "dtype"):
        assert setting in caught.value.hint
    with pytest.raises(OutOfMemory) as caught:
        decide(kv_tokens=100)
    assert "kv_tokens" in caught.value.hint and "context_length" in caught.value.hint
    with pytest.raises(OutOfMemory):
        decide(free_bytes=0)


def test_an_explicit_size_over_the_free_memory_is_refused() -> None:
    with pytest.raises(OutOfMemory, match=r"need 976\.6 MiB, but only 100\.0 MiB are free"):
        decide(kv_tokens=1_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("page_size", 0), ("max_context", 0), ("kv_tokens", 0), ("memory_fraction", 1.5)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        decide(**{name: value})
    assert caught.value.value == str(value)


def test_free_memory_of_the_cpu_is_within_the_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_the_control_groups_limit_counts(tmp_path: Path) -> None:
    assert _control_group_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert _control_group_free(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _control_group_free(tmp_path) is None


def test_the_older_control_group_layout_counts_too(tmp_path: Path) -> None:
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("1000")
    (old / "memory.usage_in_bytes").write_text("1200")
    (old / "memory.stat").write_text("cache 5\ntotal_inactive_file 50")
    assert _control_group_free(tmp_path) == 0
