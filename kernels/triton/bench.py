"""Micro-benchmarks of the GPU ops and of a whole decode step, beside what the device allows.

`python -m branchline.kernels.bench --device cuda [--shape 0.6B] [--layers N]`: a line per figure,
the last line one JSON document. Random weights at the shapes of Llama-3.1-8B and Qwen3-0.6B. Each
figure is the median time of a recorded graph, over operands that do not fit the cache together;
three repeats, of which the spread is given. The limits (bytes copied, products) are measured
first, on the same card. Knows nothing of engines: no tokenizer, scheduler or host work is in it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.sampling import Draws
from branchline.kernels.triton.attention import find_trunks, trunk_tiles
from branchline.kernels.triton.ops import TritonOps
from branchline.kernels.weights import DenseWeight

__all__ = ["SHAPES", "Bench", "Shape", "random_weights", "run", "step_meta", "timed"]

_REPEATS = 3
_CACHE_BYTES = 192 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head: int
    ffn: int
    vocabulary: int
    qk_norm: bool

    @property
    def qkv(self) -> int:
        """Rows of the fused projection."""
        return (self.query_heads + 2 * self.kv_heads) * self.head

    @property
    def weights(self) -> int:
        """Elements that one token reads."""
        attention = self.qkv * self.hidden + self.query_heads * self.head * self.hidden
        return self.layers * (attention + 3 * self.ffn * self.hidden) + (
            self.vocabulary * self.hidden
        )


SHAPES = {
    "8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, qk_norm=False),
    "0.6B": Shape(28, 1024, 16, 8, 128, 3072, 151936, qk_norm=True),
    "135M": Shape(30, 576, 9, 3, 64, 1536, 49152, qk_norm=False),
}


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        name: op and shape.
        us: microseconds, median.
        spread: of the repeats, as a share of the median.
        work: bytes moved or operations done.
        unit: "GB/s" or "TFLOP/s".
        share: of the limit; 0 where neither bytes nor operations were counted.
    """

    name: str
    us: float
    spread: float
    work: float
    unit: str
    share: float

    def line(self) -> str:
        """As it is printed."""
        rate = self.work / self.us * (1e-3 if self.unit == "GB/s" else 1e-6)
        shown = f"{rate:8.0f} {self.unit:8s} {100 * self.share:4.0f} %" if self.work else ""
        return f"{self.name:44s} {self.us:10.1f} us  +-{100 * self.spread:4.1f} % {shown}"


def timed(run: Callable[[], object], calls: int, replays: int = 5) -> tuple[float, float]:
    """(median microseconds of one call, spread of the repeats) of `calls` calls in one graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls / replays)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


class Bench:
    """Collects figures, printing each as it comes."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        big = torch.randn(1 << 29, device="cuda").to(torch.bfloat16)
        copy, _ = timed(partial(torch.clone, big), 4)
        a, b = torch.randn(2, 8192, 8192, device="cuda").to(torch.bfloat16).unbind(0)
        product, _ = timed(partial(torch.mm, a, b), 4)
        self.bytes_per_us = 2 * big.nbytes / copy
        self.flops_per_us = 2 * 8192**3 / product
        sys.stdout.write(
            f"{torch.cuda.get_device_name()}: copy {self.bytes_per_us * 1e-3:.0f} GB/s, "
            f"product {self.flops_per_us * 1e-6:.0f} TFLOP/s\n"
        )

    def add(
        self,
        name: str,
        run: Callable[[], object],
        calls: int,
        *,
        moved: float = 0,
        flops: float = 0,
    ) -> float:
        """Measure, keep and print one figure; returns microseconds."""
        us, spread = timed(run, calls)
        by_bytes, by_flops = moved / self.bytes_per_us, flops / self.flops_per_us
        work, unit = (moved, "GB/s") if by_bytes >= by_flops else (flops, "TFLOP/s")
        figure = Figure(name, us, spread, work, unit, max(by_bytes, by_flops) / us)
        self.figures.append(figure)
        sys.stdout.write(figure.line() + "\n")
        sys.stdout.flush()
        return us


def random_weights(n: int, k: int) -> Callable[[], DenseWeight]:
    """Calls give matrices [n, k] in turn, together larger than the cache."""
    count = max(2, -(-_CACHE_BYTES // (2 * n * k)))
    made = [
        DenseWeight(torch.randn(n, k, device="cuda").mul_(k**-0.5).bfloat16()) for _ in range(count)
    ]
    return cycle(made).__next__


def fused_call(
    ops: TritonOps, which: str, rows: int, weight: Callable[[], DenseWeight], n: int, k: int
) -> Callable[[], object]:
    """A product of a layer as the model runs it for few rows."""
    x = torch.randn(rows, k, device="cuda").bfloat16()
    residual = torch.randn(rows, n, device="cuda").bfloat16() if n == k or which == "down" else x
    norm = torch.ones(k, device="cuda")
    if which == "head":
        return lambda: ops.head(x, weight())
    if which == "gate_up":
        return lambda: ops.gated_linear(x, weight())
    if rows > 1:
        return lambda: ops.linear(x, weight())
    if which == "qkv":
        return lambda: ops.norm_linear(x, norm, 1e-5, weight())
    out = torch.randn(1, n, device="cuda").bfloat16() if residual is x else residual
    return lambda: ops.linear_add(x, weight(), out)


def library_call(
    rows: int, weight: Callable[[], DenseWeight], k: int
) -> Callable[[], torch.Tensor]:
    """The product alone, by the vendor's library."""
    x = torch.randn(rows, k, device="cuda").bfloat16()
    return lambda: torch.mm(x, weight().tensor.t())


def linears(bench: Bench, name: str, shape: Shape, rows: Sequence[int]) -> None:
    """The products of a layer as the model runs them, and by the library alone."""
    ops, h = TritonOps("cuda"), shape.hidden
    wide = shape.query_heads * shape.head
    sizes = {"qkv": (shape.qkv, h), "o": (h, wide), "gate_up": (2 * shape.ffn, h)}
    sizes |= {"down": (h, shape.ffn), "head": (shape.vocabulary, h)}
    for which, (n, k) in sizes.items():
        weight = random_weights(n, k)
        loops = 40 if n * k < 1 << 27 else 6
        for t in rows:
            moved, flops = 2 * (n * k + t * (n + k)), 2 * t * n * k
            call = fused_call(ops, which, t, weight, n, k)
            bench.add(f"{name} {which} x{t}", call, loops, moved=moved, flops=flops)
            library = library_call(t, weight, k)
            bench.add(f"{name} {which} x{t} cuBLAS", library, loops, moved=moved, flops=flops)


def step_meta(rows: int, length: int, extend: int, slots: int) -> AttentionMeta:
    """Rows of `length` tokens over scattered slots, the last `extend` of them new."""
    table = torch.randperm(slots, device="cuda")[: rows * length].view(rows, length)
    host = torch.full((rows,), extend, dtype=torch.int32)
    return AttentionMeta(
        rows=torch.arange(rows, dtype=torch.int32, device="cuda"),
        slot_table=table.to(torch.int32),
        seq_lens=torch.full((rows,), length, dtype=torch.int32, device="cuda"),
        extend_lens=host.cuda(),
        extend_start=(torch.arange(rows + 1, device="cuda") * extend).to(torch.int32),
        host_seq_lens=torch.full((rows,), length, dtype=torch.int32),
        host_extend_lens=host,
    )


def attention_call(
    ops: TritonOps, shape: Shape, rows: int, length: int, extend: int
) -> Callable[[], object]:
    """Attention of one layer over one of three pools in turn."""
    hq, hkv, d = shape.query_heads, shape.kv_heads, shape.head
    slots = rows * length + 1
    pools = [torch.randn(2, slots, hkv, d, device="cuda").bfloat16() for _ in range(3)]
    pool = cycle(pools).__next__
    meta = step_meta(rows, length, extend, slots)
    q = torch.randn(rows * extend, hq, d, device="cuda").bfloat16()

    def call() -> torch.Tensor:
        keys, values = pool().unbind(0)
        return ops.paged_attention(q, keys, values, meta, d**-0.5)

    return call


def attention(bench: Bench, name: str, shape: Shape) -> None:
    """Decode and extend through the slot table."""
    ops, hq, hkv, d = TritonOps("cuda"), shape.query_heads, shape.kv_heads, shape.head
    cases = [(1, 256, 1), (1, 4096, 1), (64, 640, 1), (256, 1024, 1), (16, 300, 8)]
    cases += [(1, 4096, 4096), (16, 2048, 2048)]
    for rows, length, extend in cases:
        seen = rows * sum(range(length - extend + 1, length + 1))
        bench.add(
            f"{name} attention {rows} x {length}, {extend} new",
            attention_call(ops, shape, rows, length, extend),
            6,
            moved=4 * rows * length * hkv * d + 4 * rows * extend * hq * d,
            flops=4 * seen * hq * d,
        )


def fork_call(
    ops: TritonOps, shape: Shape, rows: int, trunk: int, *, together: bool
) -> Callable[[], object]:
    """Decode of rows with 64 tokens of their own behind a trunk that all share."""
    hq, hkv, d, own = shape.query_heads, shape.kv_heads, shape.head, 64
    slots = trunk + rows * own + 1
    pools = [torch.randn(2, slots, hkv, d, device="cuda").bfloat16() for _ in range(3)]
    pool = cycle(pools).__next__
    order = torch.randperm(slots - 1, device="cuda").to(torch.int32)
    shared = order[:trunk].expand(rows, -1)
    table = torch.cat([shared, order[trunk : trunk + rows * own].view(rows, own)], dim=1)
    meta = step_meta(rows, trunk + own, 1, rows * (trunk + own) + 1)
    meta = replace(meta, slot_table=table.contiguous())
    if together:
        trunks = torch.zeros(trunk_tiles(rows, hq // hkv), dtype=torch.int32, device="cuda")
        find_trunks(meta, hq // hkv, trunks)
        meta = replace(meta, trunk_lens=trunks)
    q = torch.randn(rows, hq, d, device="cuda").bfloat16()

    def call() -> torch.Tensor:
        keys, values = pool().unbind(0)
        return ops.paged_attention(q, keys, values, meta, d**-0.5)

    return call


def forks(bench: Bench, name: str, shape: Shape) -> None:
    """Forks of a trunk, row by row and together."""
    ops = TritonOps("cuda")
    for rows, trunk in ((8, 2048), (64, 2048), (256, 2048), (8, 32768), (64, 8192), (64, 32768)):
        for together in (False, True):
            how = "together" if together else "row by row"
            call = fork_call(ops, shape, rows, trunk, together=together)
            bench.add(f"{name} {rows} forks over {trunk}, {how}", call, 6)


def between_products(bench: Bench, name: str, shape: Shape, t: int) -> None:
    """Norm, rotary embedding with the write, activation."""
    ops, h = TritonOps("cuda"), shape.hidden
    norm = torch.ones(h, device="cuda")
    keys, values = torch.zeros(2, 8192, shape.kv_heads, shape.head, device="cuda").bfloat16()
    cos_sin = torch.randn(8192, shape.head, device="cuda")
    q_norm = torch.ones(shape.head, device="cuda") if shape.qk_norm else None
    x, y = torch.randn(2, t, h, device="cuda").bfloat16().unbind(0)
    qkv = torch.randn(t, shape.qkv, device="cuda").bfloat16()
    gate_up = torch.randn(t, 2 * shape.ffn, device="cuda").bfloat16()
    slots = torch.arange(t, device="cuda", dtype=torch.int32)
    positions = slots.long()
    add_norm = partial(ops.add_rms_norm, x, y, norm, 1e-5)
    bench.add(f"{name} add_rms_norm x{t}", add_norm, 40, moved=8 * t * h)
    into = HeadPlaces(cos_sin, positions, keys, values, slots, q_norm=q_norm, k_norm=q_norm)
    rope = partial(ops.write_heads, qkv, into)
    bench.add(f"{name} rope and write x{t}", rope, 40, moved=4 * t * shape.qkv)
    bench.add(f"{name} silu_mul x{t}", partial(ops.silu_mul, gate_up), 40, moved=6 * t * shape.ffn)


def sampling(bench: Bench, name: str, shape: Shape, n: int) -> None:
    """A token for each of n rows of logits."""
    ops, v = TritonOps("cuda"), shape.vocabulary
    logits = torch.randn(n, v, device="cuda") * 3
    words = torch.randint(-(2**31), 2**31, (n, -(-v // 32)), device="cuda").to(torch.int32)
    need = torch.ones(n, dtype=torch.bool, device="cuda")
    greedy = Draws.greedy(n, logits.device)
    warm = replace(greedy, inv_temperature=torch.ones(n, device="cuda"))
    kinds = {
        "greedy": greedy,
        "plain": warm,
        "top_k 50": replace(warm, top_k=torch.full_like(greedy.top_k, 50), truncated=True),
        "top_p 0.9": replace(warm, top_p=torch.full_like(greedy.top_p, 0.9), truncated=True),
    }
    for kind, draws in kinds.items():
        call = partial(ops.sample_rows, logits, draws)
        bench.add(f"{name} sample {kind} x{n}", call, 4, moved=4 * n * v)
    masked = partial(ops.sample_rows, logits, greedy, words, need)
    bench.add(f"{name} sample greedy masked x{n}", masked, 4, moved=4 * n * v)
    bench.add(f"{name} logsumexp x{n}", partial(ops.logsumexp_rows, logits), 4, moved=4 * n * v)


def run(shapes: Sequence[str], layers: int, parts: Sequence[str]) -> None:
    """Measure and print; see the module docstring."""
    bench = Bench()
    for name in shapes:
        shape = SHAPES[name]
        if "linears" in parts:
            linears(bench, name, shape, (1, 4, 16, 64))
        if "attention" in parts:
            attention(bench, name, shape)
        if "forks" in parts:
            forks(bench, name, shape)
        if "small" in parts:
            for t in (1, 64, 4096):
                between_products(bench, name, shape, t)
            for n in (1, 64):
                sampling(bench, name, shape, n)
        # They import this module for its figures and shapes.
        if "steps" in parts or "checks" in parts:
            from branchline.kernels.triton.bench_steps import checks, steps

            if "steps" in parts:
                steps(bench, name, shape, layers)
            if "checks" in parts:
                checks(bench, name, shape, layers)
        if "lora" in parts:
            from branchline.kernels.triton.bench_lora import adapted_linears, adapted_steps

            adapted_linears(bench, name, shape)
            adapted_steps(bench, name, shape, layers)
    about = {"card": torch.cuda.get_device_name(), "copy_GBps": bench.bytes_per_us * 1e-3}
    about["product_TFLOPs"] = bench.flops_per_us * 1e-6
    figures = [asdict(figure) for figure in bench.figures]
    sys.stdout.write(json.dumps({**about, "figures": figures}) + "\n")
