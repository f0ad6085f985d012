"""Device functions that kernels of several files share; Triton inlines them where they are called.

Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INT32_MAX = tl.constexpr(2**31 - 1)


@triton.jit
def take_turn(PDL: tl.constexpr):
    """With PDL: let the next kernel of the stream start, and wait for the one before to end.

    Reads of what the kernel before writes come after this, and so does every write.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """With PDL: wait for the kernel before to end, and only then let the next one start: what it
    reads before its own wait may be all that kernels before this one wrote."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def dot(x, y, acc, WIDE: tl.constexpr):
    """x @ y + acc in float32, the products of the operands as they are.

    WIDE makes them float32 first: the interpreter takes the bits of a bfloat16 for an integer.
    """
    if WIDE:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, acc, input_precision="ieee")


@triton.jit
def ask_for(lines, width, AT_ONCE: tl.constexpr):
    """Ask for some rows of a matrix to come into the L2 cache, AT_ONCE cache lines of each at once.

    lines [rows] are their starts; width counts elements of two bytes.
    """
    i = tl.arange(0, AT_ONCE) * 64  # elements in a cache line of 128 bytes
    for first in range(0, width, AT_ONCE * 64):
        place = lines[:, None] + tl.minimum(first + i, width - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [place.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
