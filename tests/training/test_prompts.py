"""Prompts: by seed, all different, and none like a held-out one."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.training.prompts import TASKS, endless_prompts, parts, read_prompts

HELDOUT = Path(__file__).resolve().parents[2] / "assets" / "speculative" / "heldout.jsonl"


def heldout() -> list[dict[str, str]]:
    return [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]


def runs_of_words(text: str, length: int = 7) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_a_seed_gives_the_same_prompts_and_none_twice() -> None:
    some = list(islice(endless_prompts(3), 3000))
    assert some == list(islice(endless_prompts(3), 3000))
    assert some[:50] != list(islice(endless_prompts(4), 50))
    assert len({prompt.text for prompt in some}) == 3000
    counts = Counter(prompt.task for prompt in some)
    assert set(counts) == set(TASKS)
    assert min(counts.values()) > 250
    assert not [prompt.text for prompt in some if "{" in prompt.text or "}" in prompt.text]


def test_held_out_prompts_are_80_of_five_tasks() -> None:
    items = heldout()
    assert Counter(item["task"] for item in items) == dict.fromkeys(TASKS, 16)
    assert len({item["text"] for item in items}) == len({item["topic"] for item in items}) == 80
    for item in items:
        assert item["topic"].casefold() in item["text"].casefold()
    assert [prompt.text for prompt in read_prompts(HELDOUT)] == [item["text"] for item in items]


def test_no_training_prompt_has_a_held_out_topic_or_seven_words_in_a_row_of_one() -> None:
    trained = [prompt.text for prompt in islice(endless_prompts(), 8000)]
    everything = "\n".join(trained).casefold()
    seen = set().union(*(runs_of_words(text) for text in trained))
    pieces = HELDOUT.parents[2] / "runtime" / "training" / "prompt_parts.json"
    # whatever is ever made is made of these
    source = pieces.read_text(encoding="utf-8").casefold()
    for item in heldout():
        topic = item["topic"].casefold()
        assert topic not in everything
        assert topic not in source
        assert not runs_of_words(item["text"]) & seen


def test_every_form_can_be_filled() -> None:
    known = set(re.findall(r"\{(\w+)\}", json.dumps(parts().texts)))
    assert {"city", "name", "topic"} <= known
    list(islice(endless_prompts(9), 5000))  # a name that nothing stands for would be a KeyError


def test_a_file_of_prompts_is_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "Hello"}\n\n{"task": "code", "text": "Sort."}\n', encoding="utf-8")
    assert read_prompts(path) == [("chat", "Hello"), ("code", "Sort.")]
    for bad in ("no json", '{"task": "code"}', '{"text": 3}', '["text"]', '{"text": " "}'):
        path.write_text('{"text": "Hello"}\n' + bad, encoding="utf-8")
        with pytest.raises(InvalidRequest, match="line 2"):
            read_prompts(path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
