"""What adapters cost: the products of a layer, and a whole decode step, beside the base model's.

Random adapters of rank 16 at the shapes of `bench.SHAPES`: no adapter, one for all rows, one for
each row. The floor that is printed is the time that reading the adapters' bytes alone takes; for
one of its own per row that is what a batch cannot go below, however the work is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch

from branchline.kernels.lora import LoraWeight
from branchline.kernels.triton.bench import Bench, Shape, random_weights
from branchline.kernels.triton.bench_steps import DecodeStep
from branchline.kernels.triton.ops import TritonOps
from branchline.kernels.weights import DenseWeight

__all__ = ["adapted_linears", "adapted_steps"]

_RANK = 16
_ROWS = 64
_LINEARS = ("qkv", "o", "gate_up", "down")
_TARGETS = {"attention": ("qkv", "o"), "all": _LINEARS}
_CACHE_BYTES = 192 << 20


def _sizes(shape: Shape) -> dict[str, tuple[tuple[int, ...], int]]:
    """(outputs of each part, columns) of a layer's products."""
    wide, kv = shape.query_heads * shape.head, shape.kv_heads * shape.head
    return {
        "qkv": ((wide, kv, kv), shape.hidden),
        "o": ((shape.hidden,), wide),
        "gate_up": ((shape.ffn, shape.ffn), shape.hidden),
        "down": ((shape.hidden,), shape.ffn),
    }


def random_adapters(slots: int, parts: tuple[int, ...], k: int) -> LoraWeight:
    """Adapters of rank 16 in every slot."""
    ranks = torch.full((slots, len(parts)), _RANK, dtype=torch.int32, device="cuda")
    a = torch.randn(slots, len(parts), _RANK, k, device="cuda").mul_(k**-0.5).bfloat16()
    b = torch.randn(slots, _RANK, sum(parts), device="cuda").bfloat16()
    return LoraWeight(a, b, ranks, torch.full(ranks.shape, 0.5, device="cuda"), parts)


def nbytes(slots: int, parts: tuple[int, ...], k: int) -> int:
    """Bytes of so many adapters of one layer's product."""
    return 2 * slots * _RANK * (len(parts) * k + sum(parts))


def slots_of(adapters: int) -> torch.Tensor:
    """Slot of each of 64 rows: so many adapters in turn, or none."""
    rows = torch.arange(_ROWS, device="cuda")
    return (rows % adapters if adapters else rows * 0 - 1).to(torch.int32)


def _adapted(
    ops: TritonOps,
    x: torch.Tensor,
    weight: Callable[[], DenseWeight],
    made: Iterator[LoraWeight],
    slots: torch.Tensor,
    gated: bool,
) -> Callable[[], object]:
    """Calls of one product with its adapters, over changing matrices."""
    lora = ops.lora_batch(slots, _ROWS)
    return lambda: ops.adapted_linear(x, weight(), next(made), lora, gated=gated)


def adapted_linears(bench: Bench, name: str, shape: Shape) -> None:
    """A layer's products of 64 rows without adapters, with one, and with 64."""
    ops = TritonOps("cuda")
    for which, (parts, k) in _sizes(shape).items():
        weight = random_weights(sum(parts), k)
        x = torch.randn(_ROWS, k, device="cuda").bfloat16()
        gated = which == "gate_up"
        plain = ops.gated_linear if gated else ops.linear
        base = bench.add(f"{name} {which} x64", lambda p=plain, x=x, w=weight: p(x, w()), 40)  # type: ignore[misc]
        sets = max(2, min(8, _CACHE_BYTES // nbytes(_ROWS, parts, k)))
        made = cycle([random_adapters(_ROWS, parts, k) for _ in range(sets)])
        for adapters in (0, 1, 64):
            call = _adapted(ops, x, weight, made, slots_of(adapters), gated)
            us = bench.add(f"{name} {which} x64, {adapters} adapters", call, 40)
            floor = nbytes(adapters, parts, k) / bench.bytes_per_us
            sys.stdout.write(f"{'':44s} +{us - base:9.1f} us, of which bytes {floor:.1f}\n")
    slots = slots_of(64)
    bench.add(f"{name} grouping of 64 rows", lambda: ops.lora_batch(slots, 64), 40)


class AdaptedStep(DecodeStep):
    """A decode step of 64 rows over slots of adapters.

    Args:
        shape: sizes.
        ops: what it runs with.
        length: tokens of each row.
        layers: of the shape's, to save time.
        targets: products that adapters change.
    """

    def __init__(
        self, shape: Shape, ops: TritonOps, length: int, layers: int, targets: Sequence[str]
    ) -> None:
        super().__init__(shape, ops, _ROWS, length, layers)
        self.slots = slots_of(0)
        self.lora = [
            {
                which: random_adapters(_ROWS, parts, k)
                for which, (parts, k) in _sizes(shape).items()
                if which in targets
            }
            for _ in range(layers)
        ]

    def adapted(self) -> torch.Tensor:
        """One step with the adapters of `slots`; the ids are written back."""
        ops, layers = self.ops, self.weights
        lora = ops.lora_batch(self.slots, _ROWS)
        residual = ops.embedding(self.ids, self.embed)
        x = ops.rms_norm(residual, self.norm, 1e-5)
        for i, (qkv, out, gate_up, down) in enumerate(layers):
            mine = self.lora[i]
            first = mine.get("qkv")
            if first is None:
                q = ops.linear_heads(x, qkv, self.into(i))
            else:
                heads = ops.adapted_heads(x, qkv, first, lora)
                q = ops.adapted_rope_write(heads, self.into(i))
            y = self.attend(i, q)
            y = ops.adapted_step(
                self.end(y, out, residual),
                gate_up,
                lora,
                mine.get("o"),
                weight_lora=mine.get("gate_up"),
                gated=True,
            )
            last = mine.get("down")
            x = ops.adapted_step(self.end(y, down, residual), None, lora, last)
        return self.choose(x)


def adapted_steps(bench: Bench, name: str, shape: Shape, layers: int) -> None:
    """Decode steps of 64 rows: throughput beside the base model's."""
    for kind, targets in _TARGETS.items():
        step = AdaptedStep(shape, TritonOps("cuda"), 640, layers or shape.layers, targets)
        base = bench.add(f"{name} step, 64 x 640", step.run, 4, moved=step.moved)
        sizes = _sizes(shape)
        for adapters in (0, 1, 8, 64):
            step.slots.copy_(slots_of(adapters))
            us = bench.add(f"{name} step, {adapters} adapters, {kind} targets", step.adapted, 4)
            moved = sum(nbytes(adapters, *sizes[which]) for which in targets) * step.layers
            floor = base + moved / bench.bytes_per_us
            sys.stdout.write(
                f"{'':44s} {100 * base / us:9.1f} % of the base step's throughput; "
                f"bytes alone: {100 * base / floor:.1f} %\n"
            )
        del step
        torch.cuda.empty_cache()
