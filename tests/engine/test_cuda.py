"""The engine on a CUDA device against the engine on the CPU, and its own laws there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.engine import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PROMPTS = [
    "The capital of France is",
    "A short story about a dolphin:",
    "def fibonacci(n):",
    "The three largest cities of Japan are",
    "Water boils at",
]
TIE = 2e-3
"""Log-probabilities of two tokens that are as good as equal in float32."""


def outputs(engine: Engine, prompts: Any, count: int = 48) -> list[Any]:
    found: list[Any] = engine.generate(
        prompts, temperature=0.0, max_tokens=count, ignore_eos=True, logprobs=2
    )
    return found


def test_greedy_tokens_are_those_of_the_cpu_up_to_ties(default_model: Path) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "context_length": 1024, "kv_tokens": 8192}
    with Engine(str(default_model), device="cpu", **settings) as engine:
        wanted = outputs(engine, PROMPTS)
    with Engine(str(default_model), device="cuda", **settings) as engine:
        found = outputs(engine, PROMPTS)
    for one, other in zip(found, wanted, strict=True):
        for index, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=True)):
            if a != b:
                (_, best), (_, second) = other.logprobs[index].top[:2]
                assert best - second < TIE
                break


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_output_does_not_depend_on_company_or_cache(
    default_model: Path, dtype: str
) -> None:
    settings: dict[str, Any] = {"dtype": dtype, "context_length": 1024, "kv_tokens": 20_000}
    with Engine(str(default_model), device="cuda", deterministic=True, **settings) as engine:
        alone = [outputs(engine, [prompt])[0] for prompt in PROMPTS]
        engine.flush_cache()
        together = outputs(engine, PROMPTS * 4)
        cached = outputs(engine, [PROMPTS[0]])[0]
    for index, result in enumerate(together):
        assert result.token_ids == alone[index % len(PROMPTS)].token_ids
    assert cached.token_ids == alone[0].token_ids


def test_draws_with_a_seed_do_not_depend_on_the_cache(default_model: Path) -> None:
    settings: dict[str, Any] = {"deterministic": True, "kv_tokens": 20_000}
    with Engine(str(default_model), device="cuda", **settings) as engine:
        drawn = engine.generate(PROMPTS, temperature=0.8, top_p=0.9, seed=3, max_tokens=16)
        again = engine.generate(PROMPTS, temperature=0.8, top_p=0.9, seed=3, max_tokens=16)
    assert [r.token_ids for r in drawn] == [r.token_ids for r in again]


def test_every_kind_of_request_runs(default_model: Path) -> None:
    with Engine(str(default_model), device="cuda", kv_tokens=20_000) as engine:
        drawn = engine.generate(PROMPTS, temperature=0.8, top_p=0.9, seed=3, max_tokens=16)
        scores = engine.score("The sky is", [" blue", " green", " made of cheese"])
        penal = engine.generate(PROMPTS[0], repetition_penalty=1.3, max_tokens=16)
        info = engine.info()
    assert all(1 <= len(r.token_ids) <= 16 for r in drawn)
    assert scores.token_logprobs[0][0] > scores.token_logprobs[2][0]
    assert len(penal.token_ids) <= 16
    assert info["scheduler"]["failed"] == 0
    assert any(d["setting"] == "cuda_graphs" for d in info["decisions"])


def test_long_prompts_are_attended_alike_however_it_is_planned(default_model: Path) -> None:
    """Recordings that FlashInfer plans, steps too long for one, and chunks behind others, beside
    rows that decode; up to the rounding of bfloat16."""
    text = " ".join(PROMPTS)
    prompts = [text * times for times in (45, 60, 140, 200)]  # 1,500 to 7,500 tokens
    settings: dict[str, Any] = {"kv_tokens": 60_000, "context_length": 8192}

    def scored(**changes: Any) -> list[float]:
        engine = Engine(str(default_model), device="cuda", **settings, **changes)
        with engine, ThreadPoolExecutor(1) as beside:
            decoding = beside.submit(outputs, engine, PROMPTS, 200)
            found = [engine.score(p, [" The", " water"]).token_logprobs for p in prompts]
            assert all(len(result.token_ids) == 200 for result in decoding.result())
        return [value for one in found for choice in one for value in choice]

    wanted = scored(attention_backend="triton")
    for most in (8192, 1600):
        found = scored(attention_backend="flashinfer", max_step_tokens=most)
        assert found == pytest.approx(wanted, rel=0.02, abs=0.15)
