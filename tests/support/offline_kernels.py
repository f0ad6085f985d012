"""Compiles the Triton kernels for an H100, as `TritonOps` launches them, on a machine without one.

`python -m tests.support.offline_kernels`, without TRITON_INTERPRET: Triton reads that when a kernel
is defined. Every op runs over tensors without memory; a driver that knows the card's limits takes
the place of CUDA's, so that kernels are compiled and never run. Prints one JSON document: names of
the kernels that there are, of those that were compiled, and of those that drawing other numbers of
rows compiles anew.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import branchline.kernels.triton as room
from branchline.kernels.beam import HEADER, Beam, Check, SlotRows
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lookup import Matches
from branchline.kernels.lora import LoraWeight
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.sampling import Draws
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton import TritonOps, ops, tuning
from branchline.kernels.triton.attention import find_trunks, trunk_tiles
from branchline.kernels.triton.paging import slots_kernel
from branchline.kernels.weights import DenseWeight

H100 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 << 10
"""Most shared memory of a program there; a kernel that wants more cannot be launched."""
PROCESSORS = 132
HQ, HKV, D, H, SLOTS, CONTEXT, VOCABULARY = 32, 8, 128, 4096, 1024, 4096, 151936
KINDS = {"i4": torch.int32, "i8": torch.int64, "f4": torch.float32, "b1": torch.bool}


class Driver:
    """What the compiler and a launch ask of a driver."""

    launched: ClassVar[set[str]] = set()
    compiled: ClassVar[list[str]] = []

    class utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": SHARED_BYTES}

        @staticmethod
        def load_binary(*binary: object) -> tuple[object, ...]:
            return "module", "function", 0, 0, 1024

        @staticmethod
        def unload_module(module: object) -> None:
            pass

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    @classmethod
    def launcher_cls(cls, source: Any, metadata: Any) -> Callable[..., None]:
        cls.launched.add(source.fn.__name__)
        cls.compiled.append(source.fn.__name__)
        return lambda *operands: None


class Card(tuning.Device):
    """An H100's facts, on the device of tensors without memory."""

    def __init__(self, device: torch.device) -> None:
        self.interpreted, self.overlap, self.processors = False, True, PROCESSORS
        self.counters = empty("i4", 1 << 16)
        self.flags = empty("b1", 2, 1 << 16)


def empty(kind: str, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=KINDS.get(kind, torch.bfloat16), device="meta")


def step(rows: int, tokens: int, *, tree: bool = False, trunk: bool = False) -> AttentionMeta:
    """So many rows of so many tokens each."""
    meta = AttentionMeta(
        rows=empty("i4", rows),
        slot_table=empty("i4", 64, CONTEXT),
        seq_lens=empty("i4", rows),
        extend_lens=empty("i4", rows),
        extend_start=empty("i4", rows + 1),
        host_extend_lens=torch.full((rows,), tokens, dtype=torch.int32),
    )
    if tree:
        words = empty("i8", 64)
        return replace(meta, tree_lens=empty("i4", rows), tree_offsets=meta.rows, tree_words=words)
    if trunk:
        lens = empty("i4", trunk_tiles(rows, HQ // HKV))
        find_trunks(meta, HQ // HKV, lens)
        return replace(meta, trunk_lens=lens)
    return meta


def attention(made: TritonOps) -> None:
    """Rows of one token, with a trunk and without; prompts, with trees and without."""
    pools = empty("b2", SLOTS, HKV, D), empty("b2", SLOTS, HKV, D)
    for rows, tokens, meta in (
        (8, 1, step(8, 1)),
        (2, 1, step(2, 1)),
        (64, 1, step(64, 1, trunk=True)),
        (2, 512, step(2, 512)),
        (2, 16, step(2, 16, tree=True)),
        (64, 3, step(64, 3, tree=True)),
        (2, 512, step(2, 512, tree=True)),
    ):
        made.paged_attention(empty("b2", rows * tokens, HQ, D), *pools, meta, D**-0.5)
    qkv, norm = empty("b2", 8, (HQ + 2 * HKV) * D), empty("f4", D)
    cos_sin, positions, slots = empty("f4", CONTEXT, D), empty("i8", 8), empty("i4", 8)
    into = HeadPlaces(cos_sin, positions, *pools, slots, q_norm=norm, k_norm=norm)
    made.write_heads(qkv, into)
    operands = empty("i4", 64, CONTEXT), slots, slots, slots, CONTEXT
    slots_kernel[(8, 4)](*operands, BLOCK=1024, **tuning.plain_launch(4))


def rows(made: TritonOps) -> None:
    """Everything between the products."""
    x, norm, ids = empty("b2", 8, H), empty("f4", H), empty("i4", 8)
    made.add_rms_norm(x, x, norm, 1e-5)
    made.joined_norms(ids, DenseWeight(x), norm, ids, x, norm, 1e-5)
    made.silu_mul(x)
    made.add(x, x)
    made.gather_rows(x, ids)
    made.scatter_rows(x, ids, x)
    made.resolve_ids(ids, empty("i8", 8), step(8, 1), empty("i4", 9, CONTEXT))
    made.copy_slots(empty("b2", 4, 2, SLOTS, HKV, D), empty("i8", 3), empty("i8", 3))


def beams(made: TritonOps) -> None:
    """A search of two levels, with a smaller vocabulary; a step that checks its tree, or chains."""
    levels, w, rows, count = 6, 8, 2, 16384
    ints = [empty("i4", levels, rows * w) for _ in range(4)]
    tables = empty("i4", 8, CONTEXT), empty("i4", 8, CONTEXT + 1), empty("i4", 8)
    known = SlotRows(*tables)
    beam = Beam(
        width=w,
        depth=3,
        first=1,
        context=CONTEXT,
        scratch=SLOTS,
        scratch_rows=16,
        inputs=empty("i4", rows, HEADER + levels),
        known=known,
        lengths=empty("i4", rows),
        masks=empty("i4", rows, 4748),
        vocabulary=empty("i4", count),
        table=empty("i4", rows * w, CONTEXT + levels),
        positions=empty("i8", levels, rows * w),
        ends=ints[0],
        ids=ints[1],
        scores=empty("f4", levels, rows * w),
        nodes=ints[2],
        previous=ints[3],
        found=empty("i4", 3, rows, w + 2 * w * w),
    )
    made.beam_begin(beam)
    for level in range(3):
        made.beam_step(beam, level, empty("f4", rows * beam.size(level), count))
    ints = [empty("i4", rows + 1) for _ in range(6)]
    longs = [empty("i8", 64) for _ in range(4)]
    tokens = [empty("i4", 64) for _ in range(3)]
    check = Check(*ints, longs[0], *tokens, *longs[1:], nodes=empty("i4", 3, 64))
    made.beam_tree(beam, check, 24)
    made.keep_guesses(check, known, levels, 24)
    matches, told = Matches(empty("i4", 8), empty("i4", 8)), empty("i4", rows + 1)
    for most in (15, 64, 100):
        made.plant_chains(check, told, known, matches, most)
        made.find_matches(check, told, known, matches, most)


def products(made: TritonOps) -> None:
    """One row, a few, and any number in a fixed order."""
    weight = DenseWeight(empty("b2", 2 * H, H))
    made.norm_linear(empty("b2", 1, H), empty("f4", H), 1e-5, weight)
    made.gated_linear(empty("b2", 8, H), weight)
    narrow = [DenseWeight(empty("b2", *shape)) for shape in ((1024, 3072), (6144, 1024))]
    for rows in (2, 16, 64):
        x, stream = empty("b2", rows, 3072), empty("b2", rows, 1024)
        for gated in (False, True):
            end = BlockEnd(x, narrow[0], stream, empty("f4", 1024), 1e-5)
            made.residual_step(end, narrow[1], gated=gated)
    for width in (576, H):  # lines at hand, and not
        pools = empty("b2", SLOTS, 3, 64), empty("b2", SLOTS, 3, 64)
        matrix, down = DenseWeight(empty("b2", 960, width)), DenseWeight(empty("b2", width, 1536))
        for rows in (1, 2, 16, 64):
            at, slots, many = empty("i8", rows), empty("i4", rows), rows > 2
            into = HeadPlaces(empty("f4", CONTEXT, 64), at, *pools, slots, several=many)
            x, norm = empty("b2", rows, width), empty("f4", width)
            made.linear_heads(x, matrix, into)
            made.norm_heads(x, norm, 1e-5, matrix, into)
            end = BlockEnd(empty("b2", rows, 1536), down, x, norm, 1e-5)
            made.step_heads(end, matrix, into)
    TritonOps("meta", deterministic=True).linear(empty("b2", 80, H), weight)


def adapters(made: TritonOps) -> None:
    """Low ranks and high ones, in products of one row, a few and many, and in an embedding."""
    slots = 64
    for rank, parts in ((16, (H, 1024, 1024)), (64, (H, H)), (256, (H,))):
        n = sum(parts)
        per_part = empty("i4", slots, len(parts)), empty("f4", slots, len(parts))
        a, b = empty("b2", slots, len(parts), rank, H), empty("b2", slots, rank, n)
        lora, matrix = LoraWeight(a, b, *per_part, parts), DenseWeight(empty("b2", n, H))
        for tokens in (1, 8, 64, 600):
            batch, x = made.lora_batch(empty("i4", tokens), slots), empty("b2", tokens, H)
            made.adapted_linear(x, matrix, lora, batch, gated=len(parts) == 2)
    per_part, wide = (empty("i4", slots, 2), empty("f4", slots, 2)), 14336
    lora = LoraWeight(
        empty("b2", slots, 2, 16, H), empty("b2", slots, 16, 2 * wide), *per_part, (wide, wide)
    )
    batch, x = made.lora_batch(empty("i4", 64), slots), empty("b2", 64, H)
    made.adapted_linear(x, DenseWeight(empty("b2", 2 * wide, H)), lora, batch, gated=True)
    per_part = empty("i4", slots, 1), empty("f4", slots, 1)
    a, b = empty("b2", slots, VOCABULARY, 16), empty("b2", slots, 16, H)
    batch = made.lora_batch(empty("i4", 8), slots)
    lora = LoraWeight(a, b, *per_part, (H,))
    made.lora_embedding(empty("b2", 8, H), empty("i4", 8), lora, batch)
    lora = LoraWeight(empty("b2", slots, 1, 16, H), b, *per_part, (H,))
    x, norm, matrix = empty("b2", 8, H), empty("f4", H), DenseWeight(empty("b2", H, H))
    made.adapted_step(BlockEnd(x, matrix, empty("b2", 8, H), norm, 1e-5), None, batch, lora)


def sampling(made: TritonOps) -> None:
    """Masks, cuts, draws and readings."""
    logits, mask, need = empty("f4", 8, VOCABULARY), empty("i4", 8, 4748), empty("b1", 8)
    made.apply_bitmask(logits, mask, need)
    made.argmax_rows(logits)
    made.logsumexp_rows(logits)
    made.top_rows(logits, 8)
    draw(made, 8)
    draw(made, PROCESSORS + 1)


def draw(made: TritonOps, n: int) -> None:
    """Of n rows, in every way: with cuts and without, with a mask and without."""
    floats, longs = empty("f4", n), empty("i8", n)
    draws = Draws(floats, empty("i4", n), floats, floats, longs, longs)
    for how in (draws, replace(draws, truncated=False)):
        for mask in (empty("i4", n, 4748), None):
            made.sample_rows(empty("f4", n, VOCABULARY), how, mask)


def compiled_later(made: TritonOps) -> list[str]:
    """What is compiled anew when other numbers of rows are drawn."""
    before = len(Driver.compiled)
    for n in (1, 2, 3, 7, 27, 64, 67, 250, 256):
        draw(made, n)
    return Driver.compiled[before:]


def kernels() -> set[str]:
    """Names of the functions of the room that are launched, not inlined."""
    modules = [
        importlib.import_module(f"{room.__name__}.{found.name}")
        for found in pkgutil.iter_modules(room.__path__)
    ]
    names = {n for m in modules for n, x in vars(m).items() if isinstance(x, JITFunction)}
    return {name for name in names if name.endswith("_kernel")}


def main() -> None:
    """Compile and print."""
    driver.set_active(Driver())
    ops.Device = Card  # type: ignore[misc]  # what TritonOps makes for its device
    made = TritonOps("meta")
    for part in (attention, rows, beams, products, adapters, sampling):
        part(made)
    document = {
        "kernels": sorted(kernels()),
        "compiled": sorted(Driver.launched),
        "compiled later": compiled_later(made),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
