"""Opens a model's files, checks them against the tensors a model needs, and streams those.

Invariant: nothing is read before every name and shape has been compared, and then each expected
tensor is yielded exactly once. Knows nothing of the models that take the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from branchline.runtime.config.model_spec import from_hf_config
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import Checkpoint, DummyCheckpoint, TensorSource
from branchline.runtime.loading.gguf import GgufCheckpoint
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint, read_json

if TYPE_CHECKING:
    from branchline.runtime.layers.parameter import StoredTensor

LoadFormat = Literal["auto", "gguf", "safetensors", "dummy"]


def open_checkpoint(
    path: Path,
    load_format: LoadFormat = "auto",
    *,
    seed: int = 0,
) -> Checkpoint:
    """The checkpoint at `path`: a .gguf file or a Hugging Face directory.

    Args:
        path: where the files are; for "dummy" also a config.json alone.
        load_format: "auto" decides by what `path` is; "dummy" takes the facts and tokenizer of
            the files but random weights.
        seed: of the random weights.

    Raises:
        ModelLoadError: nothing there, not of that format, damaged or not supported.
    """
    if not path.exists():
        raise ModelLoadError(
            f"There is no model at {path}.",
            hint="Pass a .gguf file, a Hugging Face directory, or a name of the catalog.",
        )
    if path.suffix == ".json":
        return _config_alone(path, load_format, seed)
    actual = "safetensors" if path.is_dir() else "gguf"
    if load_format in ("gguf", "safetensors") and load_format != actual:
        what = "directory" if path.is_dir() else "file"
        raise ModelLoadError(
            f"{path} is a {what}, so it cannot be loaded as {load_format}.",
            hint=f"Use load_format='auto' or {actual!r}.",
        )
    weights = load_format != "dummy"
    checkpoint: Checkpoint = (
        SafetensorsCheckpoint(path, weights=weights) if path.is_dir() else GgufCheckpoint(path)
    )
    if weights:
        return checkpoint
    checkpoint.close()
    return DummyCheckpoint(checkpoint.spec, seed, tokenizer_source=checkpoint.tokenizer_source)


def _config_alone(path: Path, load_format: LoadFormat, seed: int) -> Checkpoint:
    """A shape without weights or tokenizer."""
    if load_format != "dummy":
        raise ModelLoadError(
            f"{path} is a configuration without weights.",
            hint="Use load_format='dummy' for random weights of that shape, or pass the directory.",
        )
    return DummyCheckpoint(from_hf_config(read_json(path)), seed)


def load_into(
    expected: Mapping[str, tuple[int, ...]], checkpoint: TensorSource
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield (canonical name, tensor) for every expected tensor, in the file's order.

    Args:
        expected: canonical names and shapes the model has (`weight_map.expected_tensors`).
        checkpoint: where they come from.

    Raises:
        ModelLoadError: at the call, before anything is read; names every missing tensor, every
            unexpected one and every wrong shape.
    """
    have = {name: checkpoint.shape(name) for name in checkpoint.tensor_names()}
    problems = [f"missing {name} {list(expected[name])}" for name in expected if name not in have]
    problems += [f"unexpected {name} {list(have[name])}" for name in have if name not in expected]
    problems += [
        f"wrong shape {name}: file {list(have[name])}, model {list(shape)}"
        for name, shape in expected.items()
        if name in have and tuple(have[name]) != tuple(shape)
    ]
    if problems:
        raise ModelLoadError(
            f"{checkpoint.location} does not fit the model it describes "
            f"({len(problems)} differences):\n  " + "\n  ".join(problems) + "\n",
            hint="Check that the configuration and the weights belong together.",
        )
    return ((name, checkpoint.read(name)) for name in have)
