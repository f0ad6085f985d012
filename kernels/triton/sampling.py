"""Launches of the sampling kernels. Invariant: logits are read, never written."""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.sampling import Draws
from branchline.kernels.triton.sampling_kernels import (
    FANOUT,
    choose_kernel,
    cut_kernel,
    draw_kernel,
)
from branchline.kernels.triton.tuning import Device, plain_launch, power_of_two

__all__ = ["kept_by", "mask_of", "sample_rows"]

_CUT_BLOCK = 2048
_CUT_WARPS = 16

Cuts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Per row: order of the last kept logit, end of the ids kept of that order, least kept logit."""


Mask = tuple[torch.Tensor, torch.Tensor, int]
"""The bitmask, which rows need it, and its words per row."""


def kept_by(gpu: Device, logits: torch.Tensor, draws: Draws, mask: Mask) -> Cuts:
    """Where each row is cut by top_k, top_p and min_p; `mask` is of `mask_of`."""
    n, vocabulary = logits.shape
    bitmask, need, words = mask
    # Each by itself: kernels are compiled anew for an address that 16 does not divide.
    cuts, limits = (torch.empty(n, dtype=torch.int32, device=logits.device) for _ in range(2))
    floors = torch.empty(n, dtype=torch.float32, device=logits.device)
    block = min(_CUT_BLOCK, power_of_two(vocabulary))
    # Programs of a row wait for each other: no more than run at once, one to a multiprocessor.
    parts = 1 if gpu.interpreted else max(1, gpu.processors // n)
    blocks = triton.cdiv(vocabulary, block)
    span = triton.cdiv(blocks, parts) * block
    parts = triton.cdiv(vocabulary, span)
    together = parts > 1
    scratch = torch.empty(n, 2, blocks, FANOUT.value, dtype=torch.float32, device=logits.device)
    cut_kernel[(n, parts)](
        logits,
        bitmask,
        need,
        draws.inv_temperature,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        scratch,
        gpu.counters,
        cuts,
        limits,
        floors,
        vocabulary,
        words,
        span,
        parts,
        BLOCK=block,
        TOGETHER=together,
        BLOCK_P=power_of_two(blocks),
        MASKED=words > 0,
        PDL=False,
        **plain_launch(_CUT_WARPS),
        **({"launch_cooperative_grid": True} if together else {}),
    )
    return cuts, limits, floors


def sample_rows(
    gpu: Device,
    logits: torch.Tensor,
    draws: Draws,
    bitmask: torch.Tensor | None,
    need: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Ops.sample_rows`."""
    n, vocabulary = logits.shape
    device = logits.device
    mask = mask_of(gpu, logits, bitmask, need)
    cuts = kept_by(gpu, logits, draws, mask) if draws.truncated else None
    bitmask, need, words = mask
    span, parts = gpu.spans(n, vocabulary)
    scores = torch.empty(n, parts, dtype=torch.float32, device=device)
    found, broken = (torch.empty(n, parts, dtype=torch.int32, device=device) for _ in range(2))
    ids = torch.empty(n, dtype=torch.int32, device=device)
    bad = torch.empty(n, dtype=torch.bool, device=device)
    draw_kernel[(n, parts)](
        logits,
        bitmask,
        need,
        draws.inv_temperature,
        draws.seeds,
        draws.positions,
        *(cuts or (found, found, scores)),
        scores,
        found,
        broken,
        vocabulary,
        words,
        span,
        CUT=cuts is not None,
        MASKED=words > 0,
        BLOCK=2048,
        **gpu.launch(8),
    )
    choose_kernel[(n,)](
        scores,
        found,
        broken,
        ids,
        bad.view(torch.int8),
        parts,
        BLOCK=power_of_two(gpu.most_parts(vocabulary)),
        **gpu.launch(1),
    )
    return ids, bad


def mask_of(
    gpu: Device,
    logits: torch.Tensor,
    bitmask: torch.Tensor | None = None,
    need: torch.Tensor | None = None,
) -> Mask:
    """The mask, or where there is none anything that no row needs."""
    rows = logits.shape[0]
    if rows > gpu.flags.shape[1]:
        raise KernelInputError(f"{rows} rows of logits; at most {gpu.flags.shape[1]} at once")
    if bitmask is None:
        return logits.view(torch.int32), gpu.flags[0, :rows], 0
    if need is None:
        need = gpu.flags[1, :rows]
    return bitmask, need, bitmask.shape[1]
