"""Draft heads and draft models in an engine: same outputs, same reuse, fewer steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.engine import Engine
from branchline.runtime.errors import CatalogError, InvalidRequest, ModelLoadError
from branchline.runtime.loading.catalog import DEFAULT_MODEL
from branchline.runtime.loading.heads import head_path
from branchline.runtime.loading.load import open_checkpoint
from tests.support.eagle_oracle import write_head
from tests.support.tiny_engine import write_tiny_model

VOCAB, HIDDEN = 260, 64
PROMPTS = ["one two one two one", "abc" * 9, "to be or not to be, that is", "z"]
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}


def saved_model(folder: Path) -> Path:
    """The tiny model with its random weights in a file."""
    write_tiny_model(folder)
    dummy = open_checkpoint(folder, "dummy", seed=3)
    # larger than trained weights are, so that outputs vary
    tensors = {
        name: torch.from_numpy(dummy.read(name).data) * (1.0 if "norm" in name else 6.0)
        for name in dummy.tensor_names()
    }
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def engine(folder: Path, **settings: Any) -> Engine:
    return Engine(str(folder), **({"kv_tokens": 4096, "threads": 1} | settings))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A head of each version that ships nowhere."""
    folder = tmp_path_factory.mktemp("heads")
    write_head(folder / "1", 1, VOCAB, hidden=HIDDEN)
    write_head(folder / "3", 3, VOCAB, hidden=HIDDEN, draft_vocab=90, layers=[0, 0, 1])
    return {name: folder / name for name in ("1", "3")}


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[Engine]:
    with engine(model) as made:
        yield made


def drafting(model: Path, heads: dict[str, Path], kind: str, **settings: Any) -> Engine:
    if kind == "draft":
        chosen = {"speculative": "draft", "speculative_draft": str(model)}
    else:
        chosen = {"speculative": "eagle", "speculative_draft": str(heads[kind])}
    # a fixed number: as many as pay would be none for a model that is this small
    return engine(model, speculative_tokens=8, **chosen, **settings)


@pytest.mark.parametrize("kind", ["1", "3", "draft"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_outputs_and_reuse_are_those_of_plain_decoding(
    model: Path, heads: dict[str, Path], plain: Engine, kind: str, page_size: int
) -> None:
    with (
        drafting(model, heads, kind, page_size=page_size, max_step_tokens=24) as guessing,
        engine(model, page_size=page_size, max_step_tokens=24) as other,
    ):
        for options in (OPTIONS, OPTIONS | {"temperature": 0.8, "seed": 4}):
            wanted, found = (
                other.generate(PROMPTS, **options),
                guessing.generate(PROMPTS, **options),
            )
            assert [one.token_ids for one in wanted] == [one.token_ids for one in found]
            assert plain.generate(PROMPTS[0], **options).token_ids == found[0].token_ids
            assert sum(one.meta.drafted_tokens for one in found) > 0
            # what was computed, guesses included, is found again to the same length
            longer = [p + one.text[:30] for p, one in zip(PROMPTS, wanted, strict=True)]
            again = [e.generate(longer, **options) for e in (other, guessing)]
            reused = [[one.meta.cached_tokens for one in results] for results in again]
            assert reused[0] == reused[1] and sum(reused[0]) > 0
            assert [one.token_ids for one in again[0]] == [one.token_ids for one in again[1]]


def test_a_draft_that_says_the_same_saves_steps(
    model: Path, heads: dict[str, Path], plain: Engine
) -> None:
    with drafting(model, heads, "draft") as guessing:
        results = guessing.generate(PROMPTS, **OPTIONS)
        assert [one.text for one in results] == [
            one.text for one in plain.generate(PROMPTS, **OPTIONS)
        ]
        for one in results:
            assert one.meta.accepted_tokens >= 20
            assert one.meta.forwards <= 21
        info = guessing.info()
        assert any(d["setting"] == "speculative_draft" for d in info["decisions"])


@pytest.mark.parametrize("kind", ["3", "draft"])
def test_constraints_hold_beside_a_draft(
    model: Path, heads: dict[str, Path], plain: Engine, kind: str
) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    options = {"temperature": 0.0, "max_tokens": 80}
    constraint = {"constraint": Constraint(kind="json_schema", text=json.dumps(schema))}
    with drafting(model, heads, kind) as guessing:
        for prompt in PROMPTS:
            wanted = plain.generate(prompt, **options, **constraint)
            found = guessing.generate(prompt, **options, **constraint)
            assert wanted.token_ids == found.token_ids
        assert found.meta.drafted_tokens > 0


def test_the_cache_counts_what_a_draft_keeps(
    model: Path, heads: dict[str, Path], plain: Engine
) -> None:
    with drafting(model, heads, "3", kv_dtype="float32") as guessing:
        info = guessing.info()
        assert info["kv_tokens"] == plain.info()["kv_tokens"]
        layer = 2 * 2 * 16 * 4
        target, head = 2 * layer, 2 * 2 * 24 * 4 + HIDDEN * 4
        assert info["kv_bytes"] == (4096 + 1) * (target + head)


def test_what_does_not_fit_is_said(model: Path, heads: dict[str, Path], tmp_path: Path) -> None:
    write_head(tmp_path / "wide", 3, VOCAB, hidden=96, layers=[0, 0, 1])
    write_head(tmp_path / "deep", 3, VOCAB, hidden=HIDDEN, layers=[0, 1, 7])
    write_head(tmp_path / "other", 1, 300, hidden=HIDDEN)
    for folder, words in (
        ("wide", "96 numbers, not 64"),
        ("deep", "layers that the model does not have"),
        ("other", "vocabulary is 300, not 260"),
    ):
        with pytest.raises(ModelLoadError, match=words):
            engine(model, speculative="eagle", speculative_draft=str(tmp_path / folder))
    with pytest.raises(ModelLoadError, match="no draft head at"):
        engine(model, speculative="eagle", speculative_draft=str(tmp_path / "none"))
    with pytest.raises(ModelLoadError, match="no draft head of the EAGLE family"):
        engine(model, speculative="eagle", speculative_draft=str(model))
    with pytest.raises(CatalogError, match="names no draft head"):
        engine(model, speculative="eagle")
    with pytest.raises(InvalidRequest, match="needs a draft model"):
        engine(model, speculative="draft")
    with pytest.raises(InvalidRequest, match="none is used"):
        engine(model, speculative_draft=str(heads["1"]))
    stranger = saved_model(tmp_path / "stranger")
    told = json.loads((stranger / "tokenizer.json").read_text())
    told["added_tokens"][2]["content"] = "<|else|>"
    (stranger / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ModelLoadError, match="another tokenizer"):
        engine(model, speculative="draft", speculative_draft=str(stranger))


def test_heads_have_names(heads: dict[str, Path]) -> None:
    assert head_path("anything", str(heads["1"])) == heads["1"]
    with pytest.raises(CatalogError, match="no draft head for this model"):
        head_path("HuggingFaceTB/Other", None)
    with pytest.raises(ModelLoadError, match="no draft head at strange"):
        head_path(DEFAULT_MODEL, "strange")
