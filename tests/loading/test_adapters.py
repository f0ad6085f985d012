"""The adapters that come with the package: found by name, whole, small, and made for their base."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from branchline.runtime.errors import AdapterDamaged
from branchline.runtime.loading import assets
from branchline.runtime.loading.adapters import AdapterEntry, adapter_folder, list_adapters
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.loading.weight_map import expected_tensors

MAX_BYTES = 3_000_000
each = pytest.mark.parametrize("entry", list_adapters(), ids=lambda entry: entry.name)


@each
def test_a_name_leads_to_its_folder(entry: AdapterEntry) -> None:
    assert adapter_folder(entry.name) == adapter_folder(f" {entry.name.upper()} ") == entry.path
    assert entry.path.is_dir()


def test_a_folder_that_exists_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = list_adapters()[0].name
    (tmp_path / name).mkdir()
    assert adapter_folder(str(tmp_path / name)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert adapter_folder(name) == Path(name)


@pytest.mark.parametrize("name", ["", " ", "no-such-adapter", "/no/such/folder"])
def test_what_is_neither_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(AdapterDamaged, match=re.escape(repr(name))) as caught:
        adapter_folder(name)
    assert all(entry.name in caught.value.hint for entry in list_adapters())


def test_a_package_without_its_assets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    with pytest.raises(AdapterDamaged, match="not installed") as caught:
        adapter_folder(list_adapters()[0].name)
    assert "pip install" in caught.value.hint


@each
def test_the_weights_fit_the_base_model_and_the_budget(
    entry: AdapterEntry, default_model: Path
) -> None:
    path = entry.path / "adapter_model.safetensors"
    config = json.loads((entry.path / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(path)
    assert sum(file.stat().st_size for file in entry.path.iterdir()) <= MAX_BYTES
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    shapes = expected_tensors(open_checkpoint(default_model).spec)
    expected = {}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in config["target_modules"]:
            expected[f"base_model.model.{layer}.lora_A.weight"] = (config["r"], shape[1])
            expected[f"base_model.model.{layer}.lora_B.weight"] = (shape[0], config["r"])
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == expected
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert all(bool(tensor.any()) for tensor in weights.values())  # trained, B too


@each
def test_a_card_says_what_it_is(entry: AdapterEntry) -> None:
    card = (entry.path / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {entry.name}\n")
    for part in ("**Data**", "**Recipe**", "**Measured**", "**Limits**", "Apache-2.0"):
        assert part in card
