"""The default model equals transformers on the same weights; its 4-bit run stays close to that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.executor.build import load_model
from branchline.runtime.loading.gguf import GgufCheckpoint
from tests.support.llama_oracle import llama_config
from tests.support.model_driver import Driver, Part, reference_logprobs

CONTEXT = 256
PROMPTS = [
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
    "The three largest cities of Japan are",
]
TEXT = (
    "The harbour had been quiet since the ferry stopped. In the mornings a few boats still went "
    "out, and by noon the nets hung on the wall to dry. Nobody in the village could say when the "
    "old lighthouse had last been lit, but every child knew the number of its steps: there were "
    "two hundred and twelve, and the last seven were made of wood. When the engineer arrived "
    "with her instruments, she counted them twice, wrote the figure in a small book, and asked "
    "who had the key."
)


@pytest.fixture(scope="module")
def checkpoint(default_model: Path) -> Iterator[GgufCheckpoint]:
    made = GgufCheckpoint(default_model)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: GgufCheckpoint) -> Tokenizer:
    assert checkpoint.tokenizer_source is not None
    return Tokenizer.from_str(checkpoint.tokenizer_source.json_text.decode())


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("native", threads=2)


@pytest.fixture(scope="module")
def float32(checkpoint: GgufCheckpoint, ops: Ops) -> Driver:
    model = load_model(checkpoint, ops, max_context=CONTEXT, dtype="float32")
    return Driver(model, ops, max_rows=4)


@pytest.fixture(scope="module")
def reference(checkpoint: GgufCheckpoint) -> Any:
    """transformers' Llama with the file's weights, widened to float32."""
    config = llama_config(checkpoint.spec)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = {
        name: checkpoint.read(name).to_torch(torch.float32) for name in checkpoint.tensor_names()
    }
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    rotary = type(model.model.rotary_emb)(config)  # its buffers are in no file
    model.model.rotary_emb = rotary
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval()


def greedy(driver: Driver, row: int, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    logits = driver.run(Part(row, ids))
    while len(ids) < len(prompt) + count:
        ids.append(int(logits[-1].argmax()))
        logits = driver.run(Part(row, ids[-1:]))
    return ids


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_64_greedy_tokens_equal_transformers(
    prompt: int, float32: Driver, reference: Any, tokenizer: Tokenizer
) -> None:
    start = tokenizer.encode(PROMPTS[prompt], add_special_tokens=False).ids
    ids = greedy(float32, prompt, start, 64)
    expected = reference_logprobs(reference, ids)
    for place in range(len(start), len(ids)):
        best = expected[place - 1]
        # it is what transformers takes next, were it given the tokens so far; exact ties aside
        assert best[ids[place]] >= best.max() - 2e-4
    assert len(set(ids[len(start) :])) > 10


def test_float32_logprobs_equal_transformers(
    float32: Driver, reference: Any, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    float32.lengths[3] = 0
    got = float32.logprobs(Part(3, ids, every=True))
    torch.testing.assert_close(got, reference_logprobs(reference, ids), rtol=1e-3, atol=1e-3)


def test_the_file_bits_stay_close_to_float32(
    checkpoint: GgufCheckpoint, ops: Ops, float32: Driver, tokenizer: Tokenizer
) -> None:
    """4-bit weights times 8-bit activations, bfloat16 keys and values."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    model = load_model(checkpoint, ops, max_context=CONTEXT)
    report = model.memory_report()
    assert set(report.kinds) == {"Q4_1", "Q8_0"}
    assert report.total < 100e6
    quantised = Driver(model, ops, max_rows=1, kv_dtype=torch.bfloat16)
    float32.lengths[3] = 0
    exact = float32.logprobs(Part(3, ids, every=True))
    got = quantised.logprobs(Part(0, ids, every=True))
    divergence = (exact.exp() * (exact - got)).sum(-1)
    agreement = (exact.argmax(-1) == got.argmax(-1)).float().mean()
    assert divergence.mean() < 0.01, divergence.mean()
    assert agreement > 0.93, agreement
