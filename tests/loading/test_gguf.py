"""GGUF files: what is read equals what was written; a damaged file is an error that says why."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.gguf import GgufCheckpoint
from branchline.runtime.loading.gguf_header import GGML_TYPES
from branchline.runtime.loading.load import load_into, open_checkpoint
from branchline.runtime.loading.weight_map import expected_tensors
from tests.loading.tiny_files import SPEC, gguf_name, interleave, random_weights, write_gguf

Q = gguf.GGMLQuantizationType


def test_float_tensors_come_back_in_canonical_order(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "m.gguf", SPEC, weights))
    assert checkpoint.tokenizer_source is None
    assert dataclasses.replace(checkpoint.spec, raw_architecture="") == SPEC
    loaded = dict(load_into(expected_tensors(SPEC), checkpoint))
    assert loaded.keys() == weights.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.to_numpy(), weights[name])


@pytest.mark.parametrize(
    ("quant", "kind"),
    [
        (Q.Q4_0, "q4_0"),
        (Q.Q4_1, "q4_1"),
        (Q.Q8_0, "q8_0"),
        (Q.F16, "f16"),
        (Q.BF16, "bf16"),
        (Q.Q5_0, "f32"),
        (Q.Q5_1, "f32"),
    ],
)
def test_quantised_rows_equal_the_reference_dequantisation(
    tmp_path: Path, quant: Q, kind: str
) -> None:
    weights = random_weights(SPEC)
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "m.gguf", SPEC, weights, quant))
    for name, values in weights.items():
        tensor = checkpoint.read(name)
        assert tensor.shape == values.shape
        if values.ndim == 1:
            continue
        assert tensor.kind == kind
        # The oracle quantises canonical rows: rows are independent, so order must not matter.
        oracle = gguf.quants.dequantize(gguf.quants.quantize(values, quant), quant)
        np.testing.assert_array_equal(tensor.to_numpy(), oracle)
        np.testing.assert_array_equal(tensor.to_torch(torch.float32).numpy(), oracle)
        half = torch.from_numpy(oracle.copy()).to(torch.bfloat16)
        assert torch.equal(tensor.to_torch(torch.bfloat16), half)


def test_quantised_data_are_the_files_own_block_bytes(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "m.gguf", SPEC, weights, Q.Q4_1))
    tensor = checkpoint.read("model.layers.0.mlp.down_proj.weight")
    assert (tensor.data.dtype, tensor.data.shape) == (np.uint8, (64, 96 // 32 * 20))
    packed = gguf.quants.quantize(weights["model.layers.0.mlp.down_proj.weight"], Q.Q4_1)
    np.testing.assert_array_equal(tensor.data, packed)


def test_biases_of_q_and_k_are_permuted_too(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, attention_bias="qkv")
    weights = random_weights(spec)
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "m.gguf", spec, weights))
    assert checkpoint.spec.attention_bias == "qkv"
    for letter in "qkv":
        name = f"model.layers.1.self_attn.{letter}_proj.bias"
        np.testing.assert_array_equal(checkpoint.read(name).to_numpy(), weights[name])
    assert not np.array_equal(interleave(weights[name], 2), weights[name])


def test_our_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        SPEC,
        random_weights(SPEC),
        Q.Q8_0,
        {"some.strings": ["a", "日本", ""], "some.flag": True, "some.floats": [0.5, 2.0]},
    )
    import mmap

    from branchline.runtime.loading.gguf_header import read_header

    with path.open("rb") as file:
        header = read_header(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))
    oracle = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in oracle.fields.items() if not k.startswith("GGUF.")}
    assert header.metadata == fields
    assert [tuple(entry) for entry in header.tensors] == [
        (t.name, int(t.tensor_type), tuple(t.shape.tolist()[::-1]), t.data_offset, t.n_bytes)
        for t in oracle.tensors
    ]


def test_type_table_agrees_with_the_gguf_package() -> None:
    for number, kind in GGML_TYPES.items():
        assert (kind.block, kind.nbytes) == gguf.GGML_QUANT_SIZES[Q(number)]
        assert kind.name == Q(number).name.lower()


def test_reading_maps_the_file_and_never_writes_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", SPEC, random_weights(SPEC))
    before = path.read_bytes()
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.read("model.norm.weight").to_torch(torch.float32)
    checkpoint.close()
    tensor.zero_()
    assert path.read_bytes() == before
    with pytest.raises(ModelLoadError, match="closed"):
        checkpoint.read("model.norm.weight")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "not a GGUF file.*Pass a .gguf"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "damaged.*metadata pairs.*fetch it again"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "damaged.*tensors"),
        (b"GGUF\x03", "damaged"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=says) as caught:
        open_checkpoint(path)
    assert "bad.gguf" in str(caught.value)


def test_an_array_longer_than_the_file_is_no_hang(tmp_path: Path) -> None:
    key = b"tokenizer.ggml.scores"
    for item in (6, 8, 9):
        body = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, item, 1 << 61)
        path = tmp_path / "bad.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body + b"\0" * 64)
        with pytest.raises(ModelLoadError, match="damaged"):
            open_checkpoint(path)


def test_a_file_cut_in_its_tensors_says_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", SPEC, random_weights(SPEC))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"cut short: tensor .* fetch it again"):
        open_checkpoint(path)


def test_a_split_model_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", SPEC, random_weights(SPEC), extra={"split.count": 3})
    with pytest.raises(ModelLoadError, match="one of 3 files"):
        open_checkpoint(path)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_damage_is_a_typed_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    good = tmp_path / "good.gguf"
    if not good.exists():
        tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"]}
        write_gguf(good, SPEC, random_weights(SPEC), extra=tokens)
    content = bytearray(good.read_bytes())
    head = 3000
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, head))
        if at < len(content):
            content[at] = data.draw(st.integers(0, 255))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    try:
        checkpoint = open_checkpoint(bad)
        for name in checkpoint.tensor_names():
            checkpoint.read(name).to_numpy()
    except ModelLoadError as error:
        assert str(error)


def test_names_without_a_meaning_are_reported_not_dropped(tmp_path: Path) -> None:
    weights: dict[str, Any] = random_weights(SPEC)
    path = write_gguf(tmp_path / "m.gguf", SPEC, weights)
    assert gguf_name("model.layers.1.mlp.up_proj.weight") == "blk.1.ffn_up.weight"
    checkpoint = open_checkpoint(path)
    expected = expected_tensors(SPEC)
    expected["extra.weight"] = (3,)
    del expected["model.norm.weight"]
    expected["model.layers.0.mlp.up_proj.weight"] = (1, 2)
    with pytest.raises(ModelLoadError) as caught:
        load_into(expected, checkpoint)
    text = str(caught.value)
    assert "missing extra.weight [3]" in text
    assert "unexpected model.norm.weight [64]" in text
    assert "model.layers.0.mlp.up_proj.weight: file [96, 64], model [1, 2]" in text
    assert "3 differences" in text
