"""Micro-benchmarks of the native CPU kernels and of a whole forward recorded as a graph.

With `--device cuda`, those of the GPU's: see `branchline.kernels.triton.bench`.

`python -m branchline.kernels.bench [--threads 2] [--repeats 10] [--pool bf16]`: a line per figure,
the last line one JSON document. Random weights at the shape of SmolLM2-135M (30 layers, hidden 576,
9 and 3 heads of 64, ffn 1536, vocabulary 49152; Q4_1 body, Q8_0 head). Every figure is the minimum
over the repeats, which is what a shared machine would show alone; one-thread figures are the ones
to compare under load. Knows nothing of engines: no tokenizer, scheduler or sampling is in it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.cpu.memory import huge_empty
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import Ops
from branchline.kernels.testing import random_quantized, random_step
from branchline.kernels.weights import DenseWeight, Q4_1Weight, Q8_0Weight, Weight

_GPU_PARTS = ("linears", "attention", "forks", "small", "steps", "checks", "lora")

__all__ = ["Shape", "SyntheticModel", "main"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model."""

    layers: int = 30
    hidden: int = 576
    query_heads: int = 9
    kv_heads: int = 3
    head: int = 64
    ffn: int = 1536
    vocabulary: int = 49152
    context: int = 2048


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


class SyntheticModel:
    """Random weights of a shape, recorded as a graph.

    Args:
        runner: threads.
        shape: sizes.
        pool: dtype of the KV pools.
        limits: largest step.
    """

    def __init__(
        self, runner: Runner, shape: Shape, pool: torch.dtype, limits: GraphLimits
    ) -> None:
        self.shape = shape
        ops, h, d = NativeOps(runner), shape.hidden, shape.head
        width = (shape.query_heads + 2 * shape.kv_heads) * d
        sizes = [(width, h), (h, shape.query_heads * d), (2 * shape.ffn, h), (h, shape.ffn)]
        self._layers = [
            [ops.prepare(random_quantized(Q4_1Weight, n, k, i)) for i, (n, k) in enumerate(sizes)]
            for _ in range(shape.layers)
        ]
        self._embed = ops.prepare(random_quantized(Q8_0Weight, shape.vocabulary, h, 9))
        self._norm = torch.ones(h)
        angles = torch.arange(shape.context)[:, None] * 1e4 ** (-torch.arange(d // 2) / (d // 2))
        self._cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
        slots = limits.rows * shape.context
        one = (min(slots, 8192), shape.kv_heads, d)
        self._pools = [[huge_empty(one, pool).zero_() for _ in "kv"] for _ in range(shape.layers)]
        table = torch.arange(slots, dtype=torch.int32).reshape(limits.rows, -1) % one[0]
        self.graph = CpuGraph(runner, limits, table, torch.zeros_like(table))
        self.graph.capture(self._forward)

    def _forward(self, ops: Ops, x: GraphInputs) -> torch.Tensor:
        residual = ops.embedding(x.input_ids, self._embed)
        y = ops.rms_norm(residual, self._norm, 1e-5)
        for (qkv, out, gate_up, down), (k, v) in zip(self._layers, self._pools, strict=True):
            into = HeadPlaces(self._cos_sin, x.positions, k, v, x.out_slots)
            q = ops.write_heads(ops.linear(y, qkv), into)
            y = ops.linear(ops.paged_attention(q, k, v, x.meta, self.shape.head**-0.5), out)
            y = ops.add_rms_norm(y, residual, self._norm, 1e-5)
            y = ops.linear(ops.silu_mul(ops.linear(y, gate_up)), down)
            y = ops.add_rms_norm(y, residual, self._norm, 1e-5)
        return ops.linear(ops.gather_rows(y, x.logit_index), self._embed)

    def step(self, rows: Sequence[tuple[int, int]]) -> Callable[[], None]:
        """A call that replays a step of rows (length, new tokens)."""
        x, start = self.graph.inputs, 0
        for r, (length, extend) in enumerate(rows):
            tokens = slice(start, start + extend)
            x.meta.rows[r], x.meta.seq_lens[r], x.meta.extend_lens[r] = r, length, extend
            x.positions[tokens] = torch.arange(length - extend, length)
            x.out_slots[tokens] = x.meta.slot_table[r, length - extend : length]
            x.input_ids[tokens] = torch.arange(extend, dtype=torch.int32) * 7
            start += extend
            x.meta.extend_start[r + 1], x.logit_index[r] = start, start - 1
        return lambda: self.graph.replay(start, len(rows), len(rows))


def _linears(runner: Runner, repeats: int) -> dict[str, float]:
    """GB/s of one row over 12 to 19 MB, and GOP/s (2 per multiply-add) of many rows."""
    ops, figures, k = NativeOps(runner), dict[str, float](), 576
    makers: dict[str, Callable[[int], Weight]] = {
        "q4_1": lambda n: random_quantized(Q4_1Weight, n, k, 0),
        "q8_0": lambda n: random_quantized(Q8_0Weight, n, k, 0),
        "bf16": lambda n: DenseWeight(torch.randn(n // 2, k).bfloat16()),
        "f32": lambda n: DenseWeight(torch.randn(n // 4, k)),
    }
    for name, make in makers.items():
        for t in (1, 16, 128, 1024):
            # Few columns for many rows, or the time is that of a huge output's page faults.
            ready = ops.prepare(make(32768 if t <= 16 else 3072))
            x = torch.randn(t, k)
            seconds = fastest(lambda x=x, w=ready: ops.linear(x, w), max(2, repeats // 2))  # type: ignore[misc]
            if t == 1:
                figures[f"gemv_{name}_GBps"] = ready.nbytes / seconds / 1e9
            else:
                figures[f"gemm_{name}_{t}_GOPps"] = 2 * t * ready.rows * k / seconds / 1e9
    return figures


def _attention(runner: Runner, shape: Shape, pool: torch.dtype, repeats: int) -> dict[str, float]:
    ops, figures = NativeOps(runner), {}
    cases = {
        "prefill_1024": [(1024, 1024)],
        "decode_1024": [(1024, 1)],
        "decode_16x128": [(128, 1)] * 16,
    }
    for name, rows in cases.items():
        step = random_step(rows)
        q = torch.randn(step.tokens, shape.query_heads, shape.head)
        k, v = (
            huge_empty((step.num_slots, shape.kv_heads, shape.head), pool).normal_() for _ in "kv"
        )
        seconds = fastest(lambda: ops.paged_attention(q, k, v, step.meta, 0.125), repeats)  # noqa: B023
        figures[f"attention_{name}_us"] = seconds * 1e6
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks; see the module docstring."""
    parser = argparse.ArgumentParser(description="native CPU kernel benchmarks")
    parser.add_argument("--threads", type=int, default=1, help="workers, the caller included")
    parser.add_argument("--repeats", type=int, default=10, help="calls of which the best counts")
    parser.add_argument("--pool", choices=("f32", "bf16"), default="f32", help="KV pool dtype")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure")
    gpu = parser.add_argument_group("with --device cuda")
    gpu.add_argument("--shape", choices=("8B", "0.6B", "135M"), action="append", help="8B and 0.6B")
    gpu.add_argument("--layers", type=int, default=0, help="layers of a step; 0 = the shape's")
    gpu.add_argument(
        "--part", choices=_GPU_PARTS, action="append", help="figures to take; all if not given"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        from branchline.kernels.triton.bench import run

        run(options.shape or ["0.6B", "8B"], options.layers, options.part or _GPU_PARTS)
        return
    torch.manual_seed(0)
    library = load_library()
    runner = Runner(library, options.threads)
    pool = torch.bfloat16 if options.pool == "bf16" else torch.float32
    shape = Shape()
    model = SyntheticModel(runner, shape, pool, GraphLimits(tokens=1024, rows=32, logit_rows=32))
    figures = _linears(runner, options.repeats)
    figures |= _attention(runner, shape, pool, options.repeats)
    steps = {f"step_batch_{b}_ms": [(128, 1)] * b for b in (1, 16, 32)}
    steps |= {"step_batch_1_context_1024_ms": [(1024, 1)], "prefill_1024_ms": [(1024, 1024)]}
    for name, rows in steps.items():
        repeats = max(2, options.repeats // 4) if name.startswith("prefill") else options.repeats
        figures[name] = fastest(model.step(rows), repeats) * 1e3
    runner.close()
    for name, value in figures.items():
        sys.stdout.write(f"{name:32s} {value:10.2f}\n")
    told = {name: getattr(options, name) for name in ("threads", "repeats", "pool")}
    about = {"isa": library.isa, **told, "shape": asdict(shape)}
    rounded = {name: round(value, 3) for name, value in figures.items()}
    sys.stdout.write(json.dumps({**about, "figures": rounded}) + "\n")


if __name__ == "__main__":
    main()
