"""Hugging Face directories: single and sharded safetensors, and every way they can be wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import DummyCheckpoint
from branchline.runtime.loading.load import load_into, open_checkpoint
from branchline.runtime.loading.weight_map import expected_tensors
from tests.loading.tiny_files import SPEC, random_weights, write_config

UNTIED = dataclasses.replace(SPEC, tie_embeddings=False, raw_architecture="LlamaForCausalLM")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_as_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {k: torch.from_numpy(v).to(dtype) for k, v in random_weights(UNTIED).items()}
    write_config(tmp_path, UNTIED)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec == UNTIED
    loaded = dict(load_into(expected_tensors(UNTIED), checkpoint))
    assert loaded.keys() == weights.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor.to_torch(dtype), weights[name])
        np.testing.assert_array_equal(tensor.to_numpy(), weights[name].float().numpy())


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    weights = {k: torch.from_numpy(v) for k, v in random_weights(UNTIED).items()}
    names = list(weights)
    write_config(tmp_path, UNTIED)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({n: weights[n] for n in part}, tmp_path / file)
    index = {"weight_map": {n: file for file, part in shards.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = dict(load_into(expected_tensors(UNTIED), open_checkpoint(tmp_path)))
    assert all(torch.equal(loaded[n].to_torch(torch.float32), weights[n]) for n in names)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks 1 of 2 weight files: b\.safetensors"):
        open_checkpoint(tmp_path)
    index["weight_map"][names[0]] = "../a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="outside its directory"):
        open_checkpoint(tmp_path)


def test_a_second_copy_of_a_tied_head_and_a_bare_decoder_are_understood(tmp_path: Path) -> None:
    weights = {
        k.removeprefix("model."): torch.from_numpy(v) for k, v in random_weights(SPEC).items()
    }
    weights["lm_head.weight"] = weights["embed_tokens.weight"].clone()
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_config(tmp_path, SPEC)
    save_file(weights, tmp_path / "model.safetensors")
    loaded = dict(load_into(expected_tensors(SPEC), open_checkpoint(tmp_path)))
    assert loaded.keys() == expected_tensors(SPEC).keys()


def test_damage_and_absence_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no model at"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match=r"config.json is missing"):
        open_checkpoint(tmp_path)
    write_config(tmp_path, SPEC)
    with pytest.raises(ModelLoadError, match="no safetensors weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin can run code"):
        open_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    for content, says in [
        (b"", "is empty"),
        (b"\xff" * 64, "no safetensors file"),
        ((10).to_bytes(8, "little") + b"not json!!", "is damaged"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match=says):
            open_checkpoint(tmp_path)
    save_file({"model.norm.weight": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelLoadError, match=r"cut short: tensor 'model\.norm\.weight'"):
        open_checkpoint(tmp_path)
    save_file({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, path)
    with pytest.raises(ModelLoadError, match="stored as I8"):
        open_checkpoint(tmp_path).read("model.norm.weight")
    with pytest.raises(ModelLoadError, match="cannot be loaded as gguf"):
        open_checkpoint(tmp_path, "gguf")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelLoadError, match=r"config.json is damaged"):
        open_checkpoint(tmp_path)


def test_dummy_weights_depend_on_name_and_seed_alone(tmp_path: Path) -> None:
    one, two = DummyCheckpoint(SPEC, 3), DummyCheckpoint(SPEC, 3)
    names = one.tensor_names()
    assert one.tensor_names() == list(expected_tensors(SPEC))
    first = {n: one.read(n).to_numpy() for n in names}
    for name in reversed(names):
        np.testing.assert_array_equal(two.read(name).to_numpy(), first[name])
        assert first[name].shape == one.shape(name)
    assert (first["model.norm.weight"] == 1).all()
    assert first["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.1)
    other = DummyCheckpoint(SPEC, 4).read(names[0]).to_numpy()
    assert not np.array_equal(other, first[names[0]])
    write_config(tmp_path, SPEC)
    dummy = open_checkpoint(tmp_path, "dummy", seed=3)
    np.testing.assert_array_equal(dummy.read(names[0]).to_numpy(), first[names[0]])
