"""What a stream brings, put together, is the result: text, ids, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.engine import Engine
from tests.support.tiny_engine import tiny_engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Random bytes: most characters are incomplete when their first token comes."""
    with tiny_engine(tmp_path_factory.mktemp("model") / "tiny") as made:
        yield made


def joined(engine: Engine, prompt: str, **options: Any) -> tuple[list[Any], GenerateResult]:
    deltas: list[GenerateDelta] = []
    for output in engine.stream(prompt, **options):
        if isinstance(output, GenerateResult):
            text = "".join(delta.text for delta in deltas)
            ids = [i for delta in deltas for i in delta.token_ids]
            logprobs = [p for delta in deltas for p in delta.logprobs]
            return [text, ids, logprobs], output
        deltas.append(output)
    raise AssertionError("a stream ends with its result")


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("seed", range(12))
def test_joined_deltas_are_the_result(tiny: Engine, seed: int, logprobs: int | None) -> None:
    options = {"max_tokens": 40, "seed": seed, "logprobs": logprobs, "ignore_eos": True}
    free, result = joined(tiny, "The sea", **options)
    assert free == [result.text, result.token_ids, result.logprobs]
    middle = result.text[len(result.text) // 2 :][:2]
    stops = (middle, middle[:1] + "never", result.text[3:4] + "x")
    cut, ended = joined(tiny, "The sea", stop=stops, **options)
    assert cut == [ended.text, ended.token_ids, ended.logprobs]
    assert middle not in ended.text
    assert ended.meta.matched in stops
    assert tiny.tokenizer.decode(ended.token_ids) == ended.text


def test_the_end_is_named(tiny: Engine) -> None:
    result = tiny.generate("The sea", max_tokens=9, logit_bias={259: 100.0})
    assert (result.meta.finish_reason, result.meta.matched) == ("stop", 259)
    result = tiny.generate("The sea", max_tokens=9, logit_bias={65: 100.0}, stop_token_ids=[65])
    assert (result.text, result.meta.matched) == ("", 65)
    result = tiny.generate("The sea", max_tokens=3, ignore_eos=True)
    assert (result.meta.finish_reason, result.meta.matched) == ("length", None)
