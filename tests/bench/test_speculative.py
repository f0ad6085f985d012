"""The benchmark of guessing ahead runs, compares the same outputs and says what it was asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.bench.speculative import (
    AGAIN,
    HELD_OUT,
    constraint_of,
    read_texts,
    settings_with,
    speculative,
)
from branchline.runtime.errors import InvalidRequest
from tests.support.tiny_engine import write_tiny_model


def test_it_measures_plain_decoding_and_each_drafter(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"task": "summarise", "text": "Sum up.\n\nabc abc abc abc"},
        {"task": "json", "text": "Give JSON with the keys name and age. Ada is 36."},
    ]
    prompts.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    settings = {
        "model": str(write_tiny_model(tmp_path / "model")),
        "load_format": "dummy",
        "kv_tokens": 4096,
        "threads": 1,
        "speculative_tokens": 6,
    }
    stream = io.StringIO()
    found = speculative(
        settings,
        drafters=["ngram", AGAIN],
        tasks=["quote", "schema"],
        batches=[1, 2],
        temperatures=[0.0],
        tokens=24,
        prompts=prompts,
        repeats=1,
        stream=stream,
    )
    shown = stream.getvalue()
    for key, plain in found[""].items():
        cell, again = found["ngram"][key], found[AGAIN][key]
        assert again.accept is None and again.outputs == plain.outputs
        assert plain.accept is None and plain.rate > 0 and cell.rate > 0
        assert cell.outputs == plain.outputs and plain.outputs
    assert "100%" in shown and "× plain" in shown
    lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert {"cpu_gain" in line for line in lines if line.get("drafter") == "plain"} == {False}
    assert all(line["cpu_gain"] > 0 for line in lines if line.get("drafter") == "ngram")
    last = lines[-1]
    assert last["bench"] == "speculative" and last["ngram"]["gain"] > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": ["chess"]}, "task"),
        ({"drafters": ["ngram", "nobody"]}, "speculative is not a choice"),
        ({"batches": [1, 0]}, "1 or more"),
        ({"tokens": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(
    wrong: dict[str, Any], said: str
) -> None:
    stream = io.StringIO()
    with pytest.raises(InvalidRequest, match=said):
        speculative({}, **{"drafters": [], **wrong}, stream=stream)
    assert not stream.getvalue()


def test_a_draft_model_is_named_to_the_drafters_that_have_one() -> None:
    settings = {"speculative_draft": "small", "speculative_tokens": 4}
    assert settings_with(settings, "draft") == {**settings, "speculative": "draft"}
    for name, value in (("", None), (AGAIN, None), ("ngram", "ngram")):
        assert settings_with(settings, name) == {"speculative": value, "speculative_tokens": 4}


def test_the_held_out_prompts_have_all_tasks() -> None:
    texts = read_texts(None)
    assert HELD_OUT.name == "heldout.jsonl"
    assert {"chat", "code", "summarise", "json", "math", "quote", "schema"} <= texts.keys()
    assert all(len(texts[task]) == 16 for task in texts)
    schemas = [json.loads(constraint_of(text).text) for text in texts["schema"]]
    assert all(len(schema["required"]) >= 2 for schema in schemas)


@pytest.mark.parametrize("content", [None, "not json", '{"task": "chat"}'])
def test_prompts_that_cannot_be_read_are_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest, match="prompts"):
        read_texts(path)
