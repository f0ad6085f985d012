"""A tiny model's facts, its layout, and what PEFT makes of the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.runtime.lora.layout import SlotLayout
from branchline.runtime.models.base import Model
from tests.support.model_driver import load_tiny, tiny_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tiny_llama(tmp_path_factory.mktemp("tiny"), tie_word_embeddings=False)
    return load_tiny(folder, make_ops("reference"))


@pytest.fixture
def layout(model: Model) -> SlotLayout:
    return SlotLayout(model.lora_sites(), 16, torch.float32)
