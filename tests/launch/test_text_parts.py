"""Tokenizers of models that bring none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.launch.text_parts import load_text
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from tests.loading.test_on_device import SHAPE


def text_of(folder: Path, **changes: Any) -> Any:
    path = folder / "shape.json"
    path.write_text(json.dumps(SHAPE | changes))
    settings = {"model": str(path), "load_format": "dummy"}
    return load_text(EngineConfig.from_settings(settings))


def test_a_shape_alone_reads_text_as_the_default_model_does(
    default_model: Path, tmp_path: Path
) -> None:
    text = text_of(tmp_path, vocab_size=60_000)
    own = load_text(EngineConfig.from_settings({"model": str(default_model)}))
    assert text.tokenizer.fingerprint == own.tokenizer.fingerprint


def test_a_shape_with_fewer_ids_reads_bytes(tmp_path: Path) -> None:
    assert isinstance(text_of(tmp_path, vocab_size=300).tokenizer, ByteTokenizer)
