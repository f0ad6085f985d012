"""Ranks, scales and targets are those that PEFT gives the same settings."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.errors import AdapterDamaged, AdapterUnsupported
from branchline.runtime.lora.peft_config import MAX_RANK, _ends, read_config
from tests.support.model_driver import reference_model, tiny_llama
from tests.support.peft_adapters import LINEARS


def read(**settings: Any) -> Any:
    return read_config(json.dumps({"peft_type": "LORA"} | settings).encode(), "adapter")


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "rank-stabilized": {
        "r": 9,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": list(LINEARS),
    },
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"mlp\..*": 7, "k.proj": 3},
        "alpha_pattern": {r"^model\.layers\.0\..*": 5, "up_proj": 11, "o_proj": 1},
    },
    "whole names": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["model.layers.0.self_attn.q_proj", "1.mlp.up_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 5},
    },
    "a pattern of targets": {
        "r": 3,
        "lora_alpha": 1,
        "target_modules": r".*layers\.1\.(self_attn\.(q|v)_proj|mlp\.\w+_proj)",
        "exclude_modules": ["gate_proj"],
    },
    "some layers": {
        "r": 3,
        "lora_alpha": 1,
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [1],
    },
    "embedding and head": {
        "r": 3,
        "lora_alpha": 4,
        "target_modules": ["embed_tokens", "lm_head", "v_proj"],
        "alpha_pattern": {"lm_head": 9},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_scales_and_targets_are_those_of_peft(name: str, tmp_path: Path) -> None:
    import peft

    base = reference_model(tiny_llama(tmp_path, tie_word_embeddings=False))
    modules = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
    modules.append("model.embed_tokens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = peft.LoraConfig(task_type="CAUSAL_LM", **SETTINGS[name])
        adapted = peft.get_peft_model(base, wanted)
    layers = {
        n.removeprefix("base_model.model."): m
        for n, m in adapted.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    }
    config = read(**SETTINGS[name])
    found = {n for n in modules if config.adapts(n, head=n == "lm_head")}
    assert found == set(layers)
    for module, layer in layers.items():
        assert config.rank_of(module) == layer.r["default"], module
        assert config.scale_of(module) == pytest.approx(layer.scaling["default"]), module


_KEY = st.text(alphabet="ab.^_", min_size=1, max_size=6)


@given(key=_KEY, module=st.text(alphabet="ab._", max_size=8))
def test_a_plain_pattern_matches_what_the_regular_expression_does(key: str, module: str) -> None:
    expected = re.match(rf"(.*\.)?({key})$", module) is not None
    assert _ends(key, module) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases of adapters"),
        ({"modules_to_save": ["lm_head"]}, "trained whole"),
        ({"trainable_token_indices": [1]}, "tokens that were trained"),
        ({"layer_replication": [[0, 1]]}, "replicated"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"target_parameters": ["x"]}, "no modules"),
        ({"ensure_weight_tying": True}, "tied"),
        ({"init_lora_weights": "pissa_niter_4"}, "base weights that its training changed"),
        ({"init_lora_weights": "olora"}, "base weights"),
        ({"peft_type": "IA3"}, "no low-rank adapter"),
        ({"r": 0}, "out of range"),
        ({"r": 257}, "out of range"),
        ({"rank_pattern": {"q_proj": 1000}}, "out of range"),
        ({"rank_pattern": {"(?<=a)q_proj": 4}}, "cannot be searched for"),
        ({"target_modules": "("}, "cannot be searched for"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterUnsupported, match=said) as error:
        read(**settings)
    assert error.value.value, "names the value"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"r": "many"}', b'{"r": [1]}', b"\xff\xfe", b'{"rank_pattern": 3}']
)
def test_damaged_settings_are_an_error(data: bytes) -> None:
    with pytest.raises(AdapterDamaged, match="cannot be read"):
        read_config(data, "adapter")


def test_a_hostile_pattern_takes_no_time() -> None:
    config = read(target_modules="(a+)+b" + "(.*.*)*x" * 3)
    assert not config.adapts("a" * 60 + ".q_proj", head=False)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_settings_or_a_typed_error(data: bytes) -> None:
    try:
        config = read_config(data, "adapter")
    except (AdapterDamaged, AdapterUnsupported) as error:
        assert error.hint
    else:
        assert 1 <= config.largest_rank <= MAX_RANK
