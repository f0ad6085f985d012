"""Adapters of a mixed batch equal PEFT's merged models, float32, token for token."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.engine import Engine
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from tests.support.llama_oracle import llama_config
from tests.support.peft_adapters import EVERYTHING, write_adapter
from tests.support.tiny_engine import write_tiny_weights

TOKENS = 24
PROMPTS = {
    "base": "Once upon",
    "all": "a time, there",
    "rs": "was",
    "few": "Once upon",
    "every": "xyz",
}


def merged(base: Path, adapter: Path | None) -> Any:
    """PEFT's merged model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        )
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The most likely continuation; the model has no end."""
    done = list(ids)
    with torch.inference_mode():
        while len(done) < len(ids) + count:
            done.append(int(model(torch.tensor([done])).logits[0, -1].argmax()))
    return done[len(ids) :]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[Engine]:
    with Engine(str(base), dtype="float32", kv_tokens=4096, threads=1, max_adapter_rank=32) as made:
        yield made


@pytest.fixture(scope="module")
def adapters(
    engine: Engine, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")

    spec = SafetensorsCheckpoint(base, weights=False).spec
    made = {
        "all": write_adapter(folder / "all", spec, rank=4, seed=1, strength=0.5),
        "rs": write_adapter(
            folder / "rs",
            spec,
            rank=8,
            alpha=4,
            seed=2,
            strength=0.5,
            rank_pattern={"q_proj": 2, "down_proj": 32},
            config={"use_rslora": True, "alpha_pattern": {r"layers\.1\..*_proj": 9}},
        ),
        "few": write_adapter(
            folder / "few", spec, rank=1, targets=("q_proj", "v_proj"), seed=3, strength=2.0
        ),
        "every": write_adapter(
            folder / "every", spec, rank=16, targets=EVERYTHING, seed=4, dtype=torch.bfloat16
        ),
    }
    for name, path in made.items():
        engine.load_adapter(name, str(path))
    return made


async def together(engine: Engine, **options: Any) -> dict[str, list[int]]:
    """One request of each adapter and one of the base model, at the same time."""

    async def one(name: str) -> list[int]:
        adapter = "" if name == "base" else name
        result = await engine.agenerate(PROMPTS[name], adapter=adapter, **options)
        found: list[int] = result.token_ids
        assert result.meta.adapter == adapter
        return found

    found = await asyncio.gather(*(one(name) for name in PROMPTS))
    return dict(zip(PROMPTS, found, strict=True))


@pytest.fixture(scope="module")
def expected(engine: Engine, base: Path, adapters: dict[str, Path]) -> dict[str, list[int]]:
    found = {}
    for name, prompt in PROMPTS.items():
        ids = engine.tokenizer.encode(prompt, special=True)
        found[name] = greedy(merged(base, adapters.get(name)), ids, TOKENS)
    return found


def test_a_mixed_batch_gives_what_the_merged_models_give(
    engine: Engine, expected: dict[str, list[int]]
) -> None:
    options = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    first = asyncio.run(together(engine, **options))
    assert first == expected
    assert len({tuple(ids) for ids in expected.values()}) == len(PROMPTS), "adapters differ"
    # once more, now that the prompts are cached, and alone
    assert asyncio.run(together(engine, **options)) == expected
    for name, prompt in PROMPTS.items():
        adapter = "" if name == "base" else name
        result = engine.generate(prompt, adapter=adapter, **options)
        assert result.token_ids == expected[name]
        assert result.meta.cached_tokens > 0


def test_scores_and_embeddings_are_the_merged_models_too(
    engine: Engine, base: Path, adapters: dict[str, Path]
) -> None:
    prompt, choices = "Once upon a", [" time", " day", " t"]
    ids = engine.tokenizer.encode(prompt, special=True)
    for name in PROMPTS:
        model = merged(base, adapters.get(name))
        adapter = "" if name == "base" else name
        scored = engine.score(prompt, choices, adapter=adapter)
        embedded = engine.embed(prompt, adapter=adapter, normalize=False)
        with torch.inference_mode():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            for choice, got in zip(choices, scored.token_logprobs, strict=True):
                more = engine.tokenizer.encode(choice)
                logits = model(torch.tensor([ids + more])).logits[0].log_softmax(-1)
                want = [float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(more)]
                assert got == pytest.approx(want, abs=1e-3)
        torch.testing.assert_close(torch.tensor(embedded.embedding), hidden, rtol=1e-3, atol=1e-3)


def in_transformers(spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> Any:
    """A model of these weights."""
    import transformers

    model = transformers.LlamaForCausalLM(llama_config(spec))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_adapters_of_the_default_model_equal_the_merged_ones(
    default_model: Path, tmp_path: Path
) -> None:
    """Its 4-bit weights, widened to float32 on both sides."""
    import peft

    checkpoint, prompt = open_checkpoint(default_model), "The first thing to know is"
    spec = checkpoint.spec
    folders = {
        name: str(write_adapter(tmp_path / name, spec, seed=seed, rank=rank, strength=strength))
        for seed, (name, rank, strength) in enumerate((("a", 8, 0.02), ("b", 64, 0.1)))
    }
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    with Engine(
        str(default_model),
        dtype="float32",
        quantization="none",
        kv_tokens=9000,
        adapters=folders,
    ) as engine:
        ids = engine.tokenizer.encode(prompt, special=True)
        names = ["", "a", "b", "a"]
        results = engine.generate([prompt] * 4, adapter=names, **options)
    tensors = {
        name: checkpoint.read(name).to_torch(torch.float32) for name in checkpoint.tensor_names()
    }
    for name, result in zip(names[:3], results[:3], strict=True):
        model = in_transformers(spec, tensors)
        if name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = peft.PeftModel.from_pretrained(model, folders[name]).merge_and_unload()
        assert result.token_ids == greedy(model.eval(), ids, 12), name
    assert results[3].token_ids == results[1].token_ids
