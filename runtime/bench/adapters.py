"""`branchline bench adapters`: many adapters in one batch, and what bringing one in costs.

Decoding is timed with every slot filled: the base model, one adapter for all rows, and as many
adapters as told, each with rows of its own, take turns on one engine. Loading is timed while a row
of the base model decodes: from the request to its first token, with the adapter's weights in host
memory and in no slot; what that row's tokens wait meanwhile is the stall. Weights are random: what
they say does not matter for how long it takes.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
import torch

from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import json_line, share
from branchline.runtime.bench.report import Column, table
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult, Output
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.launch.text_parts import open_model
from branchline.runtime.loading.weight_map import expected_tensors
from branchline.runtime.lora.layout import RANK_STEP

OUT_TOKENS = 128
PROMPT_TOKENS = 16
LOADS = 8
"""Adapters that are brought in while the stall is watched."""

FOLDERS = 8
"""Folders that the names share: a name is an adapter with a slot of its own, and the same files are
kept in host memory once."""

TARGETS = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""Layers that the adapters change."""

DECODE_COLUMNS = (
    Column("batch"),
    Column("tok/s", right=True),
    Column("of base", right=True),
)
LOAD_COLUMNS = (
    Column("what"),
    Column("median ms", right=True),
    Column("largest ms", right=True),
)


@dataclass(frozen=True, slots=True)
class Decoding:
    """One kind of batch: tokens a second of each run, all rows together."""

    name: str
    rates: list[float]

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def write_adapter(folder: Path, spec: ModelSpec, rank: int, targets: Sequence[str]) -> Path:
    """A folder in PEFT's format with random matrices of such layers, in bfloat16."""
    rng = np.random.default_rng(0)
    header_: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name, shape in expected_tensors(spec).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets:
            continue
        for which, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.01)
            data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            header_[f"base_model.model.{module}.lora_{which}.weight"] = {
                "dtype": "BF16",
                "shape": list(size),
                "data_offsets": [at, at + len(data)],
            }
            parts.append(data)
            at += len(data)
    head = msgspec.json.encode(header_)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.writelines(parts)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode(settings))
    return folder


def _write_folders(folder: Path, spec: ModelSpec, rank: int, targets: Sequence[str]) -> list[str]:
    """Folders with the same matrices in files of their own."""
    first = folder / "0"
    first.mkdir()
    write_adapter(first, spec, rank, targets)
    others = [shutil.copytree(first, folder / str(i)) for i in range(1, FOLDERS)]
    return [str(path) for path in (first, *others)]


def _host_mb(spec: ModelSpec, rank: int, count: int, settings: dict[str, Any]) -> int:
    """Host memory for so many adapters."""
    shapes = [shape for shape in expected_tensors(spec).values() if len(shape) == 2]
    shapes.append((spec.vocab_size, spec.hidden))  # a tied head's own
    device = settings.get("device", "auto")
    wide = 2 if torch.cuda.is_available() and device != "cpu" else 4
    padded = -(-rank // RANK_STEP) * RANK_STEP
    one = padded * wide * sum(rows + columns for rows, columns in shapes)
    return 64 + int(1.05 * count * one) // (1 << 20)


def adapters(
    settings: dict[str, Any],
    *,
    registered: int = 1000,
    distinct: int = 64,
    at_once: int = 64,
    rank: int = 16,
    targets: str = "all",
    prompt: int = PROMPT_TOKENS,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[dict[str, Any]]:
    """Run it and print the tables, then one JSON line for each figure.

    Args:
        settings: the engine's; slots, rank, targets and host memory are set to what is asked for
            here where they are not given.
        registered: adapters that are loaded: `FOLDERS` folders under so many names.
        distinct: of them in one batch, each in a slot of its own.
        at_once: requests of the batch.
        targets: which layers they change, see `TARGETS`.
        prompt: tokens that each request begins with.

    Raises:
        InvalidRequest: more in one batch than there are requests or adapters; a setting.
    """
    if not 1 <= distinct <= min(at_once, registered):
        raise InvalidRequest(
            "so many adapters do not fit into the batch",
            value=f"{distinct} of {registered} in {at_once} requests",
            hint="Lower --distinct, or raise --registered and --at-once.",
        )
    spec = open_model(EngineConfig.from_settings(settings))[1].spec
    with tempfile.TemporaryDirectory() as folder:
        paths = _write_folders(Path(folder), spec, rank, TARGETS[targets])
        names = [f"adapter-{index}" for index in range(registered)]
        own = {
            "adapter_slots": distinct,
            "max_adapter_rank": rank,
            "adapter_targets": ",".join(TARGETS[targets]),
            "adapter_host_mb": _host_mb(spec, rank, FOLDERS, settings),
            **settings,
            "adapters": dict(zip(names, cycle(paths), strict=False)),
        }
        start = time.perf_counter()
        with Engine(**own) as engine:
            start_s = time.perf_counter() - start
            print(header(engine.info()), file=stream)
            decoded = _decoding(engine, names[:distinct], at_once, prompt, repeats)
            loads = _loading(engine)
            info = engine.info()["adapters"]
    lines = _report(decoded, loads, info, stream)
    lines.append({"work": "start", "s": start_s, "registered": registered, **info})
    for line in lines:
        print(json_line(**line), file=stream)
    return lines


# -- decoding --------------------------------------------------------------------------------------


def _decoding(
    engine: Engine, names: list[str], at_once: int, prompt: int, repeats: int
) -> list[Decoding]:
    """Kinds of batches in turn, so that what drifts drifts for all."""
    kinds = {
        "base": [""] * at_once,
        "1 adapter": [names[0]] * at_once,
        f"{len(names)} adapters": [names[i % len(names)] for i in range(at_once)],
        "half base, half adapters": [
            names[i % len(names)] if i % 2 else "" for i in range(at_once)
        ],
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(repeats + 1):  # the first one fills slots and caches
        for name, each in kinds.items():
            rate = _decode_rate(engine, each, prompt)
            if round_:
                found[name].append(rate)
        print(f"  round {round_} of {repeats} done", file=sys.stderr)
    return [Decoding(name, rates) for name, rates in found.items()]


def _decode_rate(engine: Engine, each: list[str], prompt: int) -> float:
    """Tokens a second of all rows while all of them decode: from the moment when the last one has
    its first token."""
    engine.flush_cache()
    prompts = [[3 + (7 * i + j) % 200 for j in range(prompt)] for i in range(len(each))]
    sampling = SamplingParams(temperature=0.0, max_tokens=OUT_TOKENS, ignore_eos=True)
    results: list[GenerateResult] = engine.generate(prompts, sampling, adapter=each)
    last = max(results, key=lambda result: result.meta.ttft_s)
    seconds = last.meta.latency_s - last.meta.ttft_s
    return (len(last.token_ids) - 1) / seconds * len(each)


# -- loading ---------------------------------------------------------------------------------------


class _Watched:
    """A row of the base model that decodes, and when each of its tokens came.

    It says one letter over and over: what random weights say may be no whole character for long,
    and would be withheld.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.times: list[float] = []
        self.ended = threading.Event()
        letter = engine.tokenizer.encode("a")[-1]
        sampling = SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, logit_bias={letter: 100.0}
        )
        request = GenerateRequest(
            id="watched", prompt_ids=[5, 6, 7], sampling=sampling, stream=True
        )
        engine.core.call_soon(lambda: engine.core.submit(request, self._take))
        self._engine = engine

    def _take(self, output: Output) -> None:
        self.times.append(time.perf_counter())
        if not isinstance(output, GenerateDelta):
            self.ended.set()

    def came_after(self, moment: float) -> bool:
        """Whether a token came later than that, or none will."""
        return self.ended.is_set() or self.times[-1] > moment

    def gaps_ms(self, start: float, end: float) -> list[float]:
        """Between neighbouring tokens of which the later one came within the span."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [1000.0 * (b - a) for a, b in pairs if start <= b <= end]

    def close(self) -> None:
        """End the row."""
        self._engine.abort("watched")
        self.ended.wait()


def _first_token_s(engine: Engine, name: str) -> float:
    """From a request with an adapter to its first token."""
    start = time.perf_counter()
    engine.generate([9, 8, 7], SamplingParams(max_tokens=1, temperature=0.0), adapter=name)
    return time.perf_counter() - start


def _loading(engine: Engine) -> dict[str, list[float]]:
    """Milliseconds: requests whose adapter is in a slot, and in host memory alone; the other row's
    gaps between tokens while nothing is loaded, and while something is."""
    room = int(engine.info()["max_context"]) - 8
    watched = _Watched(engine, room)
    found: dict[str, list[float]] = {"in slot": [], "in host": [], "quiet": [], "loading": []}
    before = engine.info()["adapters"]
    _until(lambda: len(watched.times) > 8 or watched.ended.is_set())
    for _ in range(LOADS):
        name = next((i.name for i in engine.adapters() if i.state == "host"), None)
        if name is None:  # every adapter has a slot
            break
        start = time.perf_counter()
        found["in host"].append(1000.0 * _first_token_s(engine, name))
        middle = time.perf_counter()
        found["in slot"].append(1000.0 * _first_token_s(engine, name))
        end = time.perf_counter()
        _until(partial(watched.came_after, end))
        if watched.ended.is_set():
            break
        found["loading"] += watched.gaps_ms(start, middle)
        found["quiet"] += watched.gaps_ms(middle, end)
    watched.close()
    after = engine.info()["adapters"]
    loads = after["loads"] - before["loads"]
    found["copy"] = [1000.0 * (after["load_s"] - before["load_s"]) / max(loads, 1)]
    return found


def _until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.001)


# -- report ----------------------------------------------------------------------------------------


def _report(
    decoded: list[Decoding], loads: dict[str, list[float]], info: dict[str, Any], stream: TextIO
) -> list[dict[str, Any]]:
    base = decoded[0].rate
    rows = [[item.name, f"{item.rate:.0f}", f"{item.rate / base:.1%}"] for item in decoded]
    table("decoding, all slots filled", DECODE_COLUMNS, rows, stream)
    what = {
        "in host": "request to first token, adapter in host memory",
        "in slot": "the same, adapter in a slot",
        "copy": "of that: into the slot, beside the loop",
        "loading": "another row's tokens meanwhile: gap",
        "quiet": "the same row while nothing is loaded: gap",
    }
    rows = [
        [text, f"{share(loads[key], 0.5):.2f}", f"{max(loads[key], default=0.0):.2f}"]
        for key, text in what.items()
    ]
    table(f"loading, {info['slot_bytes'] / 1e6:.0f} MB a slot", LOAD_COLUMNS, rows, stream)
    lines: list[dict[str, Any]] = [
        {"work": item.name, "tok_s": item.rate, "of_base": item.rate / base, "all": item.rates}
        for item in decoded
    ]
    lines.append(
        {
            "work": "load",
            "first_token_ms": share(loads["in host"], 0.5),
            "in_slot_ms": share(loads["in slot"], 0.5),
            "copy_ms": loads["copy"][0],
            "gap_ms": max(loads["loading"], default=0.0),
            "quiet_gap_ms": max(loads["quiet"], default=0.0),
        }
    )
    return lines
