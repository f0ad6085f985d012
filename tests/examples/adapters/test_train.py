"""The recipe: it trains on what a chat has, and what it writes is a PEFT folder that works."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from branchline.examples import train_adapters
from branchline.examples.adapters.base import Encoder, load_base
from branchline.examples.adapters.sql import Sql
from branchline.examples.adapters.train import Recipe, exact_share, train
from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.tokenizer.chat import ChatTemplate, TurnRenderer
from branchline.runtime.tokenizer.tokenizer import Tokenizer
from tests.support.model_driver import tiny_llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT asks for it
)
TASK = Sql()
RECIPE = Recipe(rank=2, items=8, epochs=5, batch=4, warmup=2, measured=2, rate=5e-2)
GAIN = 0.5
"""What a few steps take off a loss of about 10.8, the logarithm of the vocabulary's size."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Path:
    """A Llama of random weights with the default model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama(folder, vocab_size=49152, max_position_embeddings=512, initializer_range=0.05)
    source = open_checkpoint(default_model).tokenizer_source
    assert source is not None
    (folder / "tokenizer.json").write_bytes(source.json_text)
    settings = {"chat_template": source.chat_template, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("adapter")
    return folder, train(TASK, tiny, folder, RECIPE, say=lambda line: None)


def test_a_training_sequence_has_the_ids_of_a_chat(default_model: Path) -> None:
    checkpoint = open_checkpoint(default_model)
    tokenizer = Tokenizer(checkpoint.tokenizer_source)
    turns = TurnRenderer(ChatTemplate.of(tokenizer))
    encoder = Encoder(checkpoint)
    for number in range(30):
        item = TASK.item("train", number)
        ids = tokenizer.encode_template(turns.begin([], "user"))
        ids += tokenizer.encode(item.prompt)
        asked = [("user", item.prompt)]
        between = turns.end([], "user") + turns.begin(asked, "assistant")
        ids += tokenizer.encode_template(between)
        found = encoder.encode(item)
        assert found.ids[: found.prompt_len] == ids
        assert found.ids[found.prompt_len : -1] == tokenizer.encode(item.answer)
        assert found.ids[-1] in tokenizer.eos_ids


def test_the_base_is_the_file_s_weights(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours, _ = load_base(tiny, torch.float32, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.randint(0, 1_000, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=0)


def test_only_plain_llamas_are_trained_on(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    tiny_llama(tmp_path, rope_parameters=scaled)
    with pytest.raises(ModelLoadError, match="plain rotary"):
        load_base(tmp_path, torch.float32, torch.device("cpu"))


def test_less_than_a_batch_is_not_trained_on(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not one batch"):
        train(Sql(), tiny, tmp_path / "none", replace(RECIPE, items=3))
    assert not (tmp_path / "none").exists()


def train_loss(tiny: Path, adapter: Path | None) -> float:
    """Mean loss of the answers of the training items."""
    from peft import PeftModel

    base, checkpoint = load_base(tiny, torch.float32, torch.device("cpu"))
    if adapter is not None:
        PeftModel.from_pretrained(base, str(adapter))
    encoder = Encoder(checkpoint)
    losses = []
    for number in range(RECIPE.items):
        one = encoder.encode(TASK.item("train", number))
        labels = torch.tensor([[-100] * one.prompt_len + one.ids[one.prompt_len :]])
        with torch.inference_mode():
            losses.append(base(torch.tensor([one.ids]), labels=labels).loss.item())
    return sum(losses) / len(losses)


def test_a_folder_read_by_peft_has_what_was_learned(trained: tuple[Path, Any], tiny: Path) -> None:
    folder, learned = trained
    before, after = train_loss(tiny, adapter=None), train_loss(tiny, folder)
    assert after < before - GAIN
    assert after < learned.losses[-1] < before  # the mean of all steps


def test_the_folder_is_a_peft_folder_in_bfloat16(trained: tuple[Path, Any]) -> None:
    folder, learned = trained
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA" and config["r"] == 2
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"].endswith("SmolLM2-135M-Instruct")
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    assert learned.nbytes == (folder / "adapter_model.safetensors").stat().st_size
    told = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert told["recipe"]["items"] == 8 and told["result"]["losses"] == learned.losses


def test_the_same_recipe_gives_the_same_adapter(tiny: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, items=4, epochs=1)
    files = []
    for name in ("first", "second"):
        train(TASK, tiny, tmp_path / name, recipe, say=lambda line: None)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_exact_answers_are_those_that_greedy_decoding_writes(tiny: Path) -> None:
    base, checkpoint = load_base(tiny, torch.float32, torch.device("cpu"))
    encoder = Encoder(checkpoint)
    one = encoder.encode(TASK.item("train", 0))
    prompt, end = one.ids[: one.prompt_len], one.prompt_len + 5
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(5):
            ids.append(int(base(torch.tensor([ids])).logits[0, -1].argmax()))
    greedy = replace(one, ids=ids)
    wrong = replace(one, ids=[*ids[: end - 1], (ids[-1] + 1) % 1_000])
    longer = encoder.encode(TASK.item("train", 1))  # pads the others
    assert exact_share(base, [greedy, wrong, longer, greedy], batch=4) == 0.5


def test_the_example_trains_what_it_is_told(tiny: Path, tmp_path: Path) -> None:
    words = ["extract", "--model", str(tiny), "--to", str(tmp_path), "--items", "4"]
    learned = train_adapters.main([*words, "--batch", "2", "--measured", "1", "--rank", "1"])
    assert len(learned.losses) == 1
    assert set(learned.exact) == {"train", "held_out"}
