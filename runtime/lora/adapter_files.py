"""One adapter's folder: what it holds, checked against the model, and its matrices when wanted.

Invariant: `inspect` reads settings and the head of the tensor file alone, and what it accepts fits
the model; `read` gives the matrices of exactly the files that were inspected, or says that they
have changed. Files are read, never mapped: one that shrinks meanwhile must not end the process.
Knows nothing of names or versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
    ModelLoadError,
)
from branchline.runtime.loading.tensor_file import (
    TensorEntry,
    read_head,
    tensor_at,
    unreadable,
)
from branchline.runtime.lora.layout import LowRank, Module, SlotLayout
from branchline.runtime.lora.peft_config import PeftConfig, read_config

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.default)?(?:\.weight)?"
)
_PREFIX = "base_model.model."
_MAX_CONFIG = 16 << 20

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """A module's tensors in the file."""

    a: TensorEntry
    b: TensorEntry
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter that was inspected.

    Attributes:
        rank: the largest of its modules'.
        targets: kinds of its modules, such as "q_proj", sorted.
        base: model that it says it was made for.
        modules: how many it changes.
        nbytes: of its matrices as a slot holds them, without padding.
        signature: of the files as they were.
    """

    path: Path
    rank: int
    targets: tuple[str, ...]
    base: str
    modules: int
    nbytes: int
    signature: Signature


class _Looked(NamedTuple):
    """What a folder holds, and where: too much to keep for each of thousands.

    Attributes:
        sources: the tensors, by module.
        base_at: where the data of the tensor file begins.
    """

    folder: AdapterFolder
    sources: dict[str, _Source]
    base_at: int


def inspect(path: Path, layout: SlotLayout) -> AdapterFolder:
    """What a folder in PEFT's format holds.

    Args:
        layout: of the slots that it is meant for.

    Raises:
        AdapterDamaged: a file is missing, damaged or cut short, tensors are missing, or tensors and
            settings contradict each other.
        AdapterUnsupported: it is not plain low-rank adaptation.
        AdapterMismatch: its modules or shapes are not those of the model.
        AdapterTooLarge: a rank is larger than the slots are made for.
    """
    return _look(path, layout).folder


def _look(path: Path, layout: SlotLayout) -> _Looked:
    signature = _signature(path)
    config = config_of(path)
    base_at, entries = _head(path)
    found = _by_module(path, entries, layout)
    sources: dict[str, _Source] = {}
    elements = rank = 0
    for key, (name, pair) in found.items():
        module = layout.modules[name]
        own = _check_module(path, module, config.rank_of(key), pair, entries)
        if own > layout.max_rank:
            raise AdapterTooLarge(
                f"{path}: the rank of {name} is larger than the engine's adapter slots",
                value=f"{own} > {layout.max_rank}",
                hint=f"Start the engine with max_adapter_rank={own}.",
            )
        sources[name] = _Source(entries[pair["A"]], entries[pair["B"]], config.scale_of(key))
        rank = max(rank, own)
        elements += own * (module.rows + module.columns)
    _check_complete(path, config, {name: key for key, (name, _) in found.items()}, layout)
    folder = AdapterFolder(
        path,
        rank,
        tuple(sorted({name.rpartition(".")[2] for name in sources})),
        config.base,
        len(sources),
        elements * layout.dtype.itemsize,
        signature,
    )
    return _Looked(folder, sources, base_at)


def config_of(path: Path) -> PeftConfig:
    """A folder's settings alone.

    Raises:
        AdapterDamaged, AdapterUnsupported: see `inspect`.
    """
    return read_config(_small_file(path / CONFIG), str(path / CONFIG))


def read(folder: AdapterFolder, layout: SlotLayout) -> dict[str, LowRank]:
    """The matrices of an inspected adapter, by module.

    Raises:
        AdapterDamaged: the files have changed since, cannot be read, or hold values that are no
            finite numbers.
    """
    _check_unchanged(folder)
    looked = _look(folder.path, layout)
    matrices: dict[str, LowRank] = {}
    try:
        with (folder.path / WEIGHTS).open("rb") as file:
            for name, source in looked.sources.items():
                a, b = (
                    _tensor(file, looked, name, entry, layout.dtype)
                    for entry in (source.a, source.b)
                )
                matrices[name] = LowRank(a, b, source.scale)
    except OSError as error:
        raise _missing(folder.path, error) from error
    _check_unchanged(folder)
    return matrices


def _tensor(
    file: BinaryIO, looked: _Looked, module: str, entry: TensorEntry, dtype: torch.dtype
) -> torch.Tensor:
    path, (start, end) = looked.folder.path, entry.data_offsets
    data = bytearray(end - start)
    file.seek(looked.base_at + start)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise AdapterDamaged(f"{path / WEIGHTS} is cut short", hint="Fetch it again.")
    found = tensor_at(data, -start, entry).to_torch(dtype)
    if not bool(torch.isfinite(found).all()):
        raise AdapterDamaged(
            f"{path}: a matrix of {module} holds values that are no finite numbers",
            hint="Train or save the adapter again.",
        )
    return found


def _check_unchanged(folder: AdapterFolder) -> None:
    if _signature(folder.path) != folder.signature:
        raise AdapterDamaged(
            f"{folder.path} has changed since the adapter was loaded",
            hint="Load it again: that makes a new version of it.",
        )


# -- files ---------------------------------------------------------------------------------------


def _signature(path: Path) -> Signature:
    """Size, time and number of each file: what changes when a file does."""
    try:
        stats = [(path / name).stat() for name in (CONFIG, WEIGHTS)]
    except OSError as error:
        raise _missing(path, error) from error
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)


def _missing(path: Path, error: OSError) -> AdapterDamaged:
    if (path / "adapter_model.bin").exists() and not (path / WEIGHTS).exists():
        return AdapterDamaged(
            f"{path} has pickled weights only (adapter_model.bin), which can run code when opened "
            "and are not read",
            hint="Save the adapter with safe_serialization=True.",
        )
    return AdapterDamaged(
        f"{path} is no folder of an adapter: {error.filename}: {error.strerror}",
        hint=f"A folder in PEFT's format has {CONFIG} and {WEIGHTS}.",
    )


def _small_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise AdapterDamaged(f"{path} is too large to be settings", value=path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise _missing(path.parent, error) from error


def _head(path: Path) -> tuple[int, dict[str, TensorEntry]]:
    try:
        return read_head(path / WEIGHTS)
    except ModelLoadError as error:
        raise AdapterDamaged(error.message, hint=error.hint) from error


# -- tensors -------------------------------------------------------------------------------------


def _by_module(
    path: Path, entries: Mapping[str, TensorEntry], layout: SlotLayout
) -> dict[str, tuple[str, dict[str, str]]]:
    """Module as the file calls it -> (as the model calls it, names of its A and B)."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for name, entry in entries.items():
        plain = name.removeprefix(_PREFIX)
        match = _TENSOR.fullmatch(plain)
        if match is None:
            _check_other(path, name, plain, entry, layout)
            continue
        key = match["module"]
        known = layout.modules if key in layout.modules else layout.left_out
        module = key if key in known else f"model.{key}"
        if module in layout.left_out:
            raise AdapterMismatch(
                f"{path} adapts a module that the engine's adapter slots have no place for",
                value=key,
                hint=f"Name {key.rpartition('.')[2]} in adapter_targets, too, or leave it out.",
            )
        if module not in layout.modules:
            raise AdapterMismatch(
                f"{path} adapts a module that the model does not have",
                value=key,
                hint="Load the adapter into the model that it was trained for.",
            )
        pair = found.setdefault(key, (module, {}))[1]
        if match["which"] in pair:
            raise AdapterDamaged(f"{path} has two tensors {plain!r}.")
        pair[match["which"]] = name
    wrong = unreadable({n: entries[n] for _, pair in found.values() for n in pair.values()})
    if wrong is not None:
        raise AdapterUnsupported(
            f"{path}: tensor {wrong[0]!r} is stored in a type that is not read",
            value=wrong[1],
            hint="Save the adapter in float32, float16 or bfloat16.",
        )
    if not found:
        raise AdapterDamaged(f"{path} holds no matrices of a low-rank adapter")
    return found


def _check_other(path: Path, name: str, plain: str, entry: TensorEntry, layout: SlotLayout) -> None:
    """A tensor that is none of the matrices: harmless, or something that cannot be run."""
    if "lora_magnitude_vector" in plain:
        raise AdapterUnsupported(
            f"{path}: weight-decomposed adaptation (DoRA) cannot be run", value=name
        )
    own = plain.removesuffix(".weight").removesuffix(".base_layer")
    module = layout.modules.get(own) or layout.left_out.get(own)
    if module is None or module.kind == "linear":
        raise AdapterUnsupported(
            f"{path} holds a tensor that is no matrix of a low-rank adapter",
            value=name,
            hint="Train a plain LoRA adapter, without biases and modules that are saved whole.",
        )
    # PEFT saves the embedding and the head along with adapters of them, unchanged.
    vocabulary = module.columns if module.kind == "embedding" else module.rows
    if not entry.shape or entry.shape[0] != vocabulary:
        raise AdapterMismatch(
            f"{path} was trained with a vocabulary of another size",
            value=f"{name} {entry.shape}, the model's vocabulary is {vocabulary}",
            hint="Adapters that add tokens cannot be run; merge this one into its base model.",
        )


def _check_module(
    path: Path,
    module: Module,
    rank: int,
    pair: Mapping[str, str],
    entries: Mapping[str, TensorEntry],
) -> int:
    """The rank of a module's matrices, whose shapes are right."""
    for which in "AB":
        if which not in pair:
            raise AdapterDamaged(
                f"{path} lacks the matrix {which} of {module.name}",
                hint="The file is incomplete; save or fetch it again.",
            )
    shapes = {which: tuple(entries[name].shape) for which, name in pair.items()}
    a, b = shapes["A"], shapes["B"]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise AdapterDamaged(
            f"{path}: the matrices of {module.name} do not fit each other", value=f"{a}, {b}"
        )
    if (b[0], a[1]) != (module.rows, module.columns):
        raise AdapterMismatch(
            f"{path} was made for another model: {module.name} maps {a[1]} to {b[0]} there, "
            f"{module.columns} to {module.rows} here",
            value=f"{a}, {b}",
            hint="Load the adapter into the model that it was trained for.",
        )
    if a[0] != rank:
        raise AdapterDamaged(
            f"{path}: the matrices of {module.name} have another rank than {CONFIG} says",
            value=f"{a[0]} and {rank}",
            hint="Settings and tensors belong to different adapters, or r was edited.",
        )
    return rank


def _check_complete(
    path: Path,
    config: PeftConfig,
    keys: Mapping[str, str],
    layout: SlotLayout,
) -> None:
    """Every module that the settings name has its matrices.

    Args:
        keys: the modules that have, and what the file calls them.
    """
    bare = any(key != name for name, key in keys.items())  # saved from the decoder alone
    missing = []
    for module in layout.modules.values():
        if module.name in keys:
            continue
        key = module.name.removeprefix("model.") if bare else module.name
        if config.adapts(key, head=module.kind == "head"):
            missing.append(module.name)
    if missing:
        raise AdapterDamaged(
            f"{path} lacks the matrices of {len(missing)} modules that its settings name, such as "
            f"{missing[0]}",
            hint="The file is incomplete; save or fetch it again.",
        )
