"""The ops on a GPU: fused Triton kernels, and the vendor's library for matrix products.

Invariant: no op waits for the device, allocates by the data or branches on it, so every op can be
recorded in a CUDA graph; a row with no tokens is harmless. Activations are `dtype`, sums float32.
Rows keep their bits whatever runs beside them, except through `linear` and attention, whose
libraries and parts are chosen by the number of rows; `deterministic=True` fixes those too.

On a CPU the same kernels run under Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

from __future__ import annotations

from weakref import ref

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.sampling import Draws, SamplingOps
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.adapted import AdaptedProducts
from branchline.kernels.triton.adapted_ops import AdaptedOps
from branchline.kernels.triton.attention import attend
from branchline.kernels.triton.beam import TritonBeam
from branchline.kernels.triton.draft_ops import DraftOps
from branchline.kernels.triton.head_ops import HeadOps
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.triton.lookup import TritonLookup
from branchline.kernels.triton.lora import Adapters
from branchline.kernels.triton.rope import write_heads
from branchline.kernels.triton.row_kernels import (
    add_kernel,
    apply_bitmask_kernel,
    argmax_join_kernel,
    argmax_part_kernel,
    copy_slots_kernel,
    gather_rows_kernel,
    logsumexp_kernel,
    resolve_ids_kernel,
    rms_norm_kernel,
    scatter_rows_kernel,
    silu_mul_kernel,
)
from branchline.kernels.triton.sampling import sample_rows
from branchline.kernels.triton.top import top_rows
from branchline.kernels.triton.tuning import Device, power_of_two
from branchline.kernels.weights import DenseWeight, Weight

__all__ = ["TritonOps"]

_COPIED_AT_ONCE = 256


class TritonOps(DraftOps, HeadOps, AdaptedOps, TritonBeam, TritonLookup, SamplingOps):
    """Every op on one device.

    Args:
        device: of weights and activations: a CUDA device, or the CPU under the interpreter.
        dtype: of activations and dense weights: bfloat16 or float32.
        deterministic: fix the order of all sums, at some cost in speed.
    """

    def __init__(
        self,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        *,
        deterministic: bool = False,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise KernelInputError(f"activations are bfloat16 or float32 here, not {dtype}")
        self.device = torch.device(device)
        self.dtype = dtype
        self.deterministic = deterministic
        self._gpu = Device(self.device)
        self._linears = Linears(self._gpu, deterministic)
        self._adapters = Adapters(self._gpu, deterministic)
        self._products = AdaptedProducts(self._gpu, self._adapters)
        self._rotated = None

    def prepare(self, weight: Weight) -> Weight:
        """The weight as a dense matrix of `dtype` on the device."""
        dense = weight.tensor if isinstance(weight, DenseWeight) else weight.dequantize()
        return DenseWeight(dense.to(device=self.device, dtype=self.dtype).contiguous())

    def resolve_ids(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        meta: AttentionMeta,
        token_table: torch.Tensor,
    ) -> torch.Tensor:
        t, b = ids.shape[0], meta.rows.shape[0]
        out = torch.empty_like(ids)
        block = 32
        resolve_ids_kernel[(triton.cdiv(t, block),)](
            ids,
            positions,
            meta.rows,
            meta.extend_start,
            token_table,
            out,
            t,
            b,
            token_table.stride(0),
            BLOCK_T=block,
            BLOCK_B=min(power_of_two(b), 256),
            **self._gpu.launch(4),
        )
        return out

    def embedding(self, ids: torch.Tensor, weight: Weight) -> torch.Tensor:
        return _gathered(self._gpu, dense_of(weight), ids, self.dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._norm(x, x, weight, eps, add=False)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self._norm(x, residual, weight, eps, add=True)

    def linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._linears.linear(x, dense_of(weight), bias, x.dtype)

    def head(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return self._linears.linear(x, dense_of(weight), None, torch.float32)

    def norm_linear(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: Weight,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dense = dense_of(weight)
        if self._linears.norms(x.shape[0], dense):
            return self._linears.norm_linear(x, norm, eps, dense, bias, gated=False)
        return super().norm_linear(x, norm, eps, weight, bias)

    def gated_linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._linears.gates(x.shape[0]):
            return self._linears.gated_linear(x, dense_of(weight), bias)
        return super().gated_linear(x, weight, bias)

    def residual_step(
        self,
        end: BlockEnd,
        weight: Weight | None,
        *,
        gated: bool = False,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, linears = end.x.shape[0], self._linears
        if linears.adds(end.residual) and (weight is None or linears.many(rows)):
            linears.end_block(end)
            return self._begun(self.rms_norm(end.residual, end.norm, end.eps), weight, bias, gated)
        if weight is not None and linears.norms(rows, dense_of(weight)):
            linears.end_block(end)
            dense = dense_of(weight)
            return linears.norm_linear(end.residual, end.norm, end.eps, dense, bias, gated=gated)
        if weight is not None and linears.steps(rows, dense_of(end.projection)):
            return linears.norm_step(end, dense_of(weight), bias, gated=gated)
        return super().residual_step(end, weight, gated=gated, bias=bias)

    def write_heads(self, qkv: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
        out = write_heads(self._gpu, qkv, into)
        self._rotated = ref(out)
        return out

    def paged_attention(
        self,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        meta: AttentionMeta,
        scale: float,
    ) -> torch.Tensor:
        rotated = self._rotated is not None and q is self._rotated()
        return attend(
            self._gpu, q, k_pool, v_pool, meta, scale, self.deterministic, rotated=rotated
        )

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        t, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(t, width)
        block = min(power_of_two(width), 1024 if t < 64 else 4096)
        silu_mul_kernel[(t, triton.cdiv(width, block))](
            gate_up, out, width, BLOCK=block, **self._gpu.launch(4 if block <= 1024 else 8)
        )
        return out

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        add_kernel[(triton.cdiv(x.numel(), 1024),)](
            x, y, out, x.numel(), BLOCK=1024, **self._gpu.launch(4)
        )
        return out

    def gather_rows(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return _gathered(self._gpu, x, index, x.dtype)

    def scatter_rows(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        n, width = x.shape
        block = min(power_of_two(width), 1024)
        scatter_rows_kernel[(n, triton.cdiv(width, block))](
            x, index, out, width, BLOCK=block, **self._gpu.launch(4)
        )

    def apply_bitmask(
        self, logits: torch.Tensor, bitmask: torch.Tensor, need: torch.Tensor
    ) -> None:
        n, vocabulary = logits.shape
        apply_bitmask_kernel[(n, triton.cdiv(vocabulary, 4096))](
            logits,
            bitmask,
            need,
            vocabulary,
            bitmask.shape[1],
            BLOCK=4096,
            **self._gpu.launch(4),
        )

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        n, vocabulary = logits.shape
        span, parts = self._gpu.spans(n, vocabulary)
        best = torch.empty(n, parts, dtype=torch.float32, device=logits.device)
        where = torch.empty(n, parts, dtype=torch.int32, device=logits.device)
        out = torch.empty(n, dtype=torch.int32, device=logits.device)
        argmax_part_kernel[(n, parts)](
            logits, best, where, vocabulary, span, BLOCK=2048, **self._gpu.launch(8)
        )
        argmax_join_kernel[(n,)](
            best, where, out, parts, BLOCK=power_of_two(parts), **self._gpu.launch(1)
        )
        return out

    def top_rows(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return top_rows(self._gpu, logits, k)

    def logsumexp_rows(self, logits: torch.Tensor) -> torch.Tensor:
        out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        logsumexp_kernel[(logits.shape[0],)](
            logits, out, logits.shape[1], BLOCK=4096, **self._gpu.launch(16)
        )
        return out

    def sample_rows(
        self,
        logits: torch.Tensor,
        draws: Draws,
        bitmask: torch.Tensor | None = None,
        need: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return sample_rows(self._gpu, logits, draws, bitmask, need)

    def copy_slots(self, buffer: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        count, planes, slots = source.shape[0], *buffer.flatten(0, -4).shape[:2]
        width = buffer.shape[-1] * buffer.shape[-2]
        if count > _COPIED_AT_ONCE:
            super().copy_slots(buffer, source, target)
            return
        block_n = power_of_two(count)
        block_w = min(power_of_two(width), max(16, 8192 // block_n))
        copy_slots_kernel[(planes, triton.cdiv(width, block_w))](
            buffer,
            source,
            target,
            count,
            slots * width,
            width,
            BLOCK_N=block_n,
            BLOCK_W=block_w,
            **self._gpu.launch(4),
        )

    def _norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add: bool,
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        width = x.shape[1]
        rms_norm_kernel[(x.shape[0],)](
            x,
            residual,
            weight,
            out,
            width,
            eps,
            ADD=add,
            BLOCK=power_of_two(width),
            **self._gpu.launch(4 if width <= 4096 else 8),
        )
        return out


def _gathered(
    gpu: Device, x: torch.Tensor, index: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    n, width = index.shape[0], x.shape[1]
    out = torch.empty(n, width, dtype=dtype, device=x.device)
    block = min(power_of_two(width), 1024)
    gather_rows_kernel[(n, triton.cdiv(width, block))](
        x, index, out, width, BLOCK=block, **gpu.launch(4)
    )
    return out
