"""What the kernels are launched with: how a device is filled, and by how many warps.

Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from branchline.kernels.errors import KernelBuildError

__all__ = ["Device", "plain_launch", "power_of_two"]

_COUNTERS = 1 << 16
_SPAN = 2048


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (and at least 1)."""
    return 1 << max(0, n - 1).bit_length()


def plain_launch(warps: int, stages: int = 3) -> dict[str, Any]:
    """Keyword arguments of a launch that starts once the kernel before has ended.

    Multiplications and additions are fused: Triton's own default depends on its version.
    """
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class Device:
    """Facts of one device.

    Args:
        device: a CUDA device, or the CPU for Triton's interpreter.

    Attributes:
        processors: multiprocessors.
        interpreted: kernels run in Triton's interpreter.
        overlap: kernels may start before the kernel ahead of them has ended (Hopper and later).
        counters: int32, all zero between kernels: where the parts of one result count themselves.
        flags: bool [2, rows], never written: what no row has, and what every row has.

    Raises:
        KernelBuildError: a device that Triton cannot run on here.
    """

    def __init__(self, device: torch.device) -> None:
        self.interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            self.processors: int = facts.multi_processor_count
            self.overlap: bool = facts.major >= 9 and not self.interpreted
        elif self.interpreted:
            self.processors, self.overlap = 4, False
        else:
            raise KernelBuildError(
                f"Triton kernels need a CUDA device, not {device}; use make_ops() on a CPU, or "
                "set TRITON_INTERPRET=1 before the import to test the kernels there"
            )
        self.counters = torch.zeros(_COUNTERS, dtype=torch.int32, device=device)
        self.flags = torch.zeros(2, _COUNTERS, dtype=torch.bool, device=device)
        self.flags[1] = True

    def launch(self, warps: int, stages: int = 3) -> dict[str, Any]:
        """Keyword arguments of a launch of a kernel that takes PDL."""
        early = {"PDL": True, "launch_pdl": True} if self.overlap else {"PDL": False}
        return plain_launch(warps, stages) | early

    def spans(self, rows: int, width: int) -> tuple[int, int]:
        """(elements, parts) into which a row is cut so that `rows` rows fill the device."""
        parts = max(1, min(2 * self.processors // max(rows, 1), -(-width // _SPAN)))
        span = -(-width // parts)
        span = -(-span // _SPAN) * _SPAN
        return span, -(-width // span)

    @staticmethod
    def most_parts(width: int) -> int:
        """Parts that `spans` makes of such a row at most."""
        return -(-width // _SPAN)
