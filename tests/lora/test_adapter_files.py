"""Folders of adapters: what fits is read exactly, what does not is a typed error that says why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterError,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
)
from branchline.runtime.lora.adapter_files import CONFIG, WEIGHTS, inspect, read
from branchline.runtime.lora.layout import SlotLayout
from branchline.runtime.models.base import Model
from tests.support.peft_adapters import EVERYTHING, LINEARS, write_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, model: Model) -> Path:
    return write_adapter(tmp_path / "adapter", model.spec, targets=EVERYTHING, rank=4)


def change(folder: Path, edit: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def configure(folder: Path, **fields: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def test_the_matrices_are_those_of_the_file(folder: Path, layout: SlotLayout) -> None:
    found = inspect(folder, layout)
    assert (found.rank, found.base) == (4, "tiny")
    assert found.targets == tuple(sorted(EVERYTHING))
    stored = load_file(folder / WEIGHTS)
    matrices = read(found, layout)
    assert set(matrices) == set(layout.modules)
    for name, low in matrices.items():
        a, b = ("embedding_A", "embedding_B") if "embed" in name else ("A.weight", "B.weight")
        assert torch.equal(low.a, stored[f"base_model.model.{name}.lora_{a}"])
        assert torch.equal(low.b, stored[f"base_model.model.{name}.lora_{b}"])
        assert low.scale == 2.0
    assert found.nbytes == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_numbers_are_widened_exactly(
    tmp_path: Path, model: Model, layout: SlotLayout, dtype: torch.dtype
) -> None:
    folder = write_adapter(tmp_path, model.spec, dtype=dtype)
    stored = load_file(folder / WEIGHTS)
    low = read(inspect(folder, layout), layout)["model.layers.0.self_attn.q_proj"]
    assert low.a.dtype == torch.float32
    assert torch.equal(low.a, stored[f"{Q}.lora_A.weight"].float())


def test_names_of_a_bare_decoder_and_of_an_adapters_own_are_understood(
    tmp_path: Path, model: Model, layout: SlotLayout
) -> None:
    folder = write_adapter(tmp_path, model.spec)
    tensors = load_file(folder / WEIGHTS)
    bare = {
        n.replace("base_model.model.model.", "base_model.model."): t for n, t in tensors.items()
    }
    save_file(bare, folder / WEIGHTS)
    assert inspect(folder, layout).modules == 7 * model.spec.num_layers
    named = {n.replace(".weight", ".default.weight"): t for n, t in tensors.items()}
    save_file(named, folder / WEIGHTS)
    assert inspect(folder, layout).modules == 7 * model.spec.num_layers


def test_the_embedding_that_peft_saves_along_is_passed_by(
    folder: Path, model: Model, layout: SlotLayout
) -> None:
    spec = model.spec

    def add(rows: int) -> Callable[[Tensors], None]:
        def edit(tensors: Tensors) -> None:
            table = torch.zeros(rows, spec.hidden)
            tensors["base_model.model.model.embed_tokens.base_layer.weight"] = table

        return edit

    change(folder, add(spec.vocab_size))
    assert inspect(folder, layout).modules == len(layout.modules)
    change(folder, add(spec.vocab_size + 1))
    with pytest.raises(AdapterMismatch, match="vocabulary of another size"):
        inspect(folder, layout)


Edit = Callable[[Path], None]


def _drop(name: str) -> Edit:
    return lambda folder: change(folder, lambda tensors: tensors.__delitem__(name))


def _set(name: str, tensor: torch.Tensor) -> Edit:
    return lambda folder: change(folder, lambda tensors: tensors.update({name: tensor}))


def _fields(**fields: object) -> Edit:
    return lambda folder: configure(folder, **fields)


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-10])


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


WRONG: dict[str, tuple[Edit, type[AdapterError], str]] = {
    "no tensors": (lambda f: (f / WEIGHTS).unlink(), AdapterDamaged, "adapter_model.safetensors"),
    "no settings": (lambda f: (f / CONFIG).unlink(), AdapterDamaged, "adapter_config.json"),
    "pickled": (_pickled, AdapterDamaged, "pickled"),
    "cut short": (_cut, AdapterDamaged, "cut short"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), AdapterDamaged, "empty"),
    "a folder": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir())[0],
        AdapterDamaged,
        "cannot be read",
    ),
    "no matrix": (lambda f: save_file({}, f / WEIGHTS), AdapterDamaged, "no matrices"),
    "lacks an A": (_drop(f"{Q}.lora_A.weight"), AdapterDamaged, "lacks the matrix A of .*q_proj"),
    "lacks a B": (_drop(f"{Q}.lora_B.weight"), AdapterDamaged, "lacks the matrix B of .*q_proj"),
    "A and B differ": (
        _set(f"{Q}.lora_B.weight", torch.zeros(96, 3)),
        AdapterDamaged,
        "do not fit each other",
    ),
    "another rank": (_fields(r=5), AdapterDamaged, "another rank than"),
    "DoRA tensors": (
        _set(f"{Q}.lora_magnitude_vector", torch.zeros(96)),
        AdapterUnsupported,
        "DoRA",
    ),
    "a bias": (_set(f"{Q}.lora_B.bias", torch.zeros(96)), AdapterUnsupported, "no matrix of"),
    "a base weight": (_set(f"{Q}.weight", torch.zeros(96, 96)), AdapterUnsupported, "no matrix of"),
    "eight bits": (
        _set(f"{Q}.lora_A.weight", torch.zeros(4, 96, dtype=torch.int8)),
        AdapterUnsupported,
        "a type that is not read",
    ),
    "another width": (
        _set(f"{Q}.lora_A.weight", torch.zeros(4, 128)),
        AdapterMismatch,
        "made for another model: .*q_proj maps 128 to 96 there, 96 to 96 here",
    ),
    "another layer": (
        _set("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", torch.zeros(4, 96)),
        AdapterMismatch,
        "a module that the model does not have",
    ),
    "modules_to_save": (_fields(modules_to_save=["lm_head"]), AdapterUnsupported, "trained whole"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str, folder: Path, layout: SlotLayout) -> None:
    edit, kind, said = WRONG[what]
    edit(folder)
    with pytest.raises(kind, match=said) as error:
        inspect(folder, layout)
    assert type(error.value) is kind
    assert str(folder) in str(error.value)


def test_a_module_that_the_settings_name_is_not_forgotten(folder: Path, layout: SlotLayout) -> None:
    for which in "AB":
        _drop(f"{Q}.lora_{which}.weight")(folder)
    with pytest.raises(AdapterDamaged, match=r"lacks the matrices of 1 modules .*q_proj"):
        inspect(folder, layout)
    configure(folder, target_modules="all-linear")
    with pytest.raises(AdapterDamaged, match=r"lacks the matrices of 1 modules .*q_proj"):
        inspect(folder, layout)
    configure(folder, exclude_modules=["0.self_attn.q_proj"])
    assert inspect(folder, layout).modules == len(layout.modules) - 1


def test_modules_without_a_place_are_named(tmp_path: Path, model: Model) -> None:
    layout = SlotLayout(model.lora_sites(), 16, torch.float32, {"q_proj"})
    fits = write_adapter(tmp_path / "fits", model.spec, rank=2, targets=["q_proj", "v_proj"])
    assert inspect(fits, layout).modules == 2 * model.spec.num_layers
    for name in ("down_proj", "lm_head"):
        wide = write_adapter(tmp_path / name, model.spec, rank=2, targets=["q_proj", name])
        with pytest.raises(AdapterMismatch, match=r"no place for") as caught:
            inspect(wide, layout)
        assert f"Name {name} in adapter_targets" in str(caught.value.hint)


def test_a_rank_above_the_slots_says_what_to_set(
    tmp_path: Path, model: Model, layout: SlotLayout
) -> None:
    folder = write_adapter(tmp_path, model.spec, rank=2, rank_pattern={"o_proj": 17})
    with pytest.raises(AdapterTooLarge, match="max_adapter_rank=17"):
        inspect(folder, layout)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_found_when_read(
    folder: Path, layout: SlotLayout, value: float
) -> None:
    _set(f"{Q}.lora_A.weight", torch.full((4, 96), value))(folder)
    found = inspect(folder, layout)
    with pytest.raises(AdapterDamaged, match="no finite numbers"):
        read(found, layout)


def test_files_that_changed_are_not_read(folder: Path, layout: SlotLayout) -> None:
    found = inspect(folder, layout)
    later = time.time() + 5
    os.utime(folder / WEIGHTS, (later, later))
    with pytest.raises(AdapterDamaged, match="has changed"):
        read(found, layout)
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterDamaged, match="no folder of an adapter"):
        read(found, layout)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_a_typed_error_or_harmless(
    data: st.DataObject, tmp_path: Path, model: Model, layout: SlotLayout
) -> None:
    folder = write_adapter(tmp_path, model.spec, rank=1, targets=LINEARS[:1])
    name = data.draw(st.sampled_from([WEIGHTS, CONFIG]))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content) - 1, 400)))
        content[at] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read(inspect(folder, layout), layout)
    except AdapterError as error:
        assert error.hint
    else:
        for module, matrices in found.items():
            assert module in layout.modules
            for matrix in (matrices.a, matrices.b):
                assert matrix.isfinite().all()
