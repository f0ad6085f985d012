"""How many pages the pool gets, and why.

Invariant: a decision that exists holds one whole context and the padding page. Knows nothing of
models: they come as bytes per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from branchline.runtime.errors import InvalidRequest, OutOfMemory

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SizingDecision:
    """Size of the pool.

    Attributes:
        num_pages: pages that can be used, page 0 not among them.
        page_size: tokens per page.
        num_tokens: tokens that fit.
        num_bytes: bytes of the pool, page 0 included.
        why: one sentence for the log.
    """

    num_pages: int
    page_size: int
    num_tokens: int
    num_bytes: int
    why: str


def decide_pages(
    *,
    bytes_per_token: int,
    page_size: int,
    max_context: int,
    free_bytes: int,
    memory_fraction: float = 0.3,
    kv_tokens: int | None = None,
) -> SizingDecision:
    """Choose the size of the pool.

    With `kv_tokens`, the pool holds that many tokens (rounded up to pages), else as many as fit in
    `memory_fraction` of the free memory.

    Args:
        bytes_per_token: `KVPool.bytes_per_token`.
        page_size: tokens per page.
        max_context: longest sequence in tokens; must fit.
        free_bytes: memory that is free once the weights are loaded.
        memory_fraction: of it, what the pool may take; in (0, 1].
        kv_tokens: explicit size in tokens; None = by memory.

    Raises:
        InvalidRequest: a setting is out of range.
        OutOfMemory: not even one context fits, or `kv_tokens` asks for more than is free.
    """
    for name, value in (
        ("bytes_per_token", bytes_per_token),
        ("page_size", page_size),
        ("max_context", max_context),
        ("kv_tokens", 1 if kv_tokens is None else kv_tokens),
    ):
        if value < 1:
            raise InvalidRequest(f"{name} must be at least 1", value=value)
    if not 0.0 < memory_fraction <= 1.0:
        raise InvalidRequest("memory_fraction must be above 0 and at most 1", value=memory_fraction)
    page_bytes = bytes_per_token * page_size
    context_pages = -(-max_context // page_size)
    budget = int(free_bytes * memory_fraction)
    if kv_tokens is None:
        num_pages = max(0, budget // page_bytes - 1)
        share = f"{memory_fraction:.0%} of {_mib(free_bytes)} free memory"
        why = f"{share}, {bytes_per_token} bytes per token"
    else:
        num_pages = -(-kv_tokens // page_size)
        why = f"set to {kv_tokens} tokens, at {bytes_per_token} bytes per token"
        asked = (num_pages + 1) * page_bytes
        if asked > free_bytes:
            raise OutOfMemory(
                f"{kv_tokens} tokens of key-value cache need {_mib(asked)}, "
                f"but only {_mib(free_bytes)} are free",
                value=kv_tokens,
                hint="Lower kv_tokens, or leave it out: then memory_fraction decides.",
            )
    if num_pages < context_pages:
        raise OutOfMemory(
            f"the key-value cache would hold {num_pages * page_size} tokens ({why}), "
            f"less than one context of {max_context}",
            hint=_hint(kv_tokens),
        )
    size = (num_pages + 1) * page_bytes
    return SizingDecision(
        num_pages=num_pages,
        page_size=page_size,
        num_tokens=num_pages * page_size,
        num_bytes=size,
        why=f"{num_pages * page_size} tokens in {_mib(size)}: {why}",
    )


def free_memory(device: torch.device) -> int:
    """Bytes free on a device now. On a CPU the limit of the control group counts too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    limited = _control_group_free(Path("/sys/fs/cgroup"))
    return available if limited is None else min(available, limited)


def _control_group_free(root: Path) -> int | None:
    """Bytes left under the memory limit of this process's control group; None without a limit.

    Page cache that the group could drop counts as free.
    """
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit_text = (root / limit_name).read_text().strip()
            used = int((root / used_name).read_text())
            stat = (root / limit_name).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        if not limit_text.isdigit():
            return None
        stats = dict(zip(stat[::2], stat[1::2], strict=False))
        droppable = int(stats.get("inactive_file", stats.get("total_inactive_file", "0")))
        return max(0, int(limit_text) - used + droppable)
    return None


def _hint(kv_tokens: int | None) -> str:
    if kv_tokens is not None:
        return "Raise kv_tokens to at least context_length, or lower context_length."
    return (
        "Lower context_length, raise memory_fraction, choose a smaller dtype, or free memory on "
        "the device."
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
