"""The benchmark of guessing ahead runs, compares the same outputs and says what it was asked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from branchline.runtime.bench.speculative import HELD_OUT, constraint_of, read_texts, speculative
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
        drafters=["ngram"],
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
        cell = found["ngram"][key]
        assert plain.accept is None and plain.rate > 0 and cell.rate > 0
        assert cell.outputs == plain.outputs and plain.outputs
    assert "100%" in shown and "× plain" in shown
    last = json.loads(shown.splitlines()[-1])
    assert last["bench"] == "speculative" and last["ngram"]["gain"] > 0
    with pytest.raises(InvalidRequest, match="task"):
        speculative(settings, drafters=[], tasks=["chess"], prompts=prompts)


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
