"""The whole recipe over a tiny model of random weights, through the engine and the command line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from branchline.cli.main import build_parser, main
from branchline.cli.train_eagle import recipe_settings
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.training.corpus import Corpus, CorpusSettings
from branchline.runtime.training.picture import Curve, Panel, draw
from branchline.runtime.training.recipe import Recipe, RecipeSettings
from branchline.runtime.training.trainer import TrainSettings
from branchline.runtime.training.vocabulary import DraftVocabulary
from tests.support.tiny_engine import write_tiny_model

ENGINE = {"load_format": "dummy", "kv_tokens": 4096, "threads": 1, "device": "cpu"}


def settings_of(folder: Path, **changes: Any) -> RecipeSettings:
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"task": "chat", "text": f"Say {i}"}) for i in range(70)]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    heldout = folder / "heldout.jsonl"
    heldout.write_text('{"task": "math", "text": "1+1?"}\n{"text": "Hi"}\n', encoding="utf-8")
    chosen: dict[str, Any] = {
        "model": str(write_tiny_model(folder / "model")),
        "out": folder / "run",
        "prompts": prompts,
        "heldout": heldout,
        "corpus": CorpusSettings(tokens=10_000, max_answer=8),
        "train": TrainSettings(steps=4, unroll=2, batch_tokens=512, warmup=1),
        "draft_vocab": 100,
        "ffn": 32,
        "save_every": 2,
        "engine": ENGINE,
    }
    return RecipeSettings(**(chosen | changes))


def test_a_run_leaves_head_report_and_curves_and_is_not_done_twice(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    settings = settings_of(tmp_path)
    report = Recipe(settings, lambda *one: told.append(one)).run()
    assert {stage for stage, *_ in told} == {"data", "training", "measure"}
    assert json.loads((settings.out / "report.json").read_text()) == report
    assert report["conversations"] >= 70
    assert [one["step"] for one in report["training"]["accept"]] == [2, 4]
    assert {one["tree"]["nodes"] for one in report["heldout"]["trees"]} == {4, 16, 32, 60}
    assert set(report["heldout"]["trees"][0]["tasks"]) == {"math", "chat"}
    assert report["head_bytes"] == (settings.out / "head" / "model.safetensors").stat().st_size
    picture = ElementTree.fromstring((settings.out / "curves.svg").read_text())
    assert picture.tag.endswith("svg")
    corpus = Corpus.load(settings.out / "corpus.safetensors")
    assert report["answer_tokens"] == corpus.answer_tokens
    assert max(len(one.ids) - one.answer for one in corpus) <= 8
    before = (settings.out / "head" / "model.safetensors").read_bytes()
    told.clear()
    again = Recipe(settings, lambda *one: told.append(one)).run()
    assert {stage for stage, *_ in told} == {"measure"}
    assert (settings.out / "head" / "model.safetensors").read_bytes() == before
    assert again["heldout"] == report["heldout"]
    with pytest.raises(InvalidRequest, match="other settings: draft_vocab"):
        Recipe(settings_of(tmp_path, draft_vocab=50), lambda *_: None).run()


def test_what_cannot_be_done_is_refused_before_anything_is(tmp_path: Path) -> None:
    layers = settings_of(tmp_path, layers=(0, 0, 1))
    with pytest.raises(InvalidRequest, match="layers cannot make a feature"):
        Recipe(layers, lambda *_: None).run()
    data = settings_of(tmp_path, data=(tmp_path / "nope",))
    with pytest.raises(InvalidRequest, match="there is no such data"):
        Recipe(data, lambda *_: None).run()
    assert not (tmp_path / "run").exists()


def test_shards_are_parts_of_the_prompts_and_are_learned_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompts", str(tmp_path / "prompts.jsonl"), "--max-answer", "8", "--only-data"]
    for name, value in ENGINE.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    settings = settings_of(tmp_path)
    lines = [json.dumps({"text": f"Say {i}"}) for i in range(110)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parts = []
    for number in (1, 2):
        out = tmp_path / str(number)
        given = ["--model", settings.model, "--out", str(out), "--shard", f"{number}/2"]
        assert main(["train-eagle", *given, *words]) == 0
        assert not (out / "head").exists()
        parts.append(out / "corpus.safetensors")
    corpora = [Corpus.load(path) for path in parts]
    for first, corpus in enumerate(corpora):
        texts = [bytes(i for i in one.ids[: one.answer].tolist() if i < 256) for one in corpus]
        said = [int(re.findall(rb"Say (\d+)", text)[0]) for text in texts]
        assert said[:55] == list(range(first, 110, 2))
        assert set(said[55:]) < set(said[:55])  # further questions
    whole = Corpus.joined(corpora)
    assert len(whole) == len(corpora[0]) + len(corpora[1])
    assert whole[len(corpora[0])].ids.tolist() == corpora[1][0].ids.tolist()
    report = Recipe(settings_of(tmp_path, data=tuple(parts), heldout=None), lambda *_: None).run()
    assert report["conversations"] == len(whole)
    assert not (settings.out / "corpus.safetensors").exists()
    assert "tokens of answers" in capsys.readouterr().out


def test_too_few_conversations_are_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "few.jsonl"
    prompts.write_text('{"text": "Hi"}\n', encoding="utf-8")
    with pytest.raises(InvalidRequest, match="too few conversations"):
        Recipe(settings_of(tmp_path, prompts=prompts), lambda *_: None).run()


def test_flags_become_settings(capsys: pytest.CaptureFixture[str]) -> None:
    words = "train-eagle --out /tmp/x --layers 1,2,3 --minutes 2.5 --model m --seed 7 --threads 2"
    settings = recipe_settings(build_parser().parse_args(words.split()))
    assert settings.model == "m"
    assert settings.layers == (1, 2, 3)
    assert settings.minutes == 2.5
    assert settings.corpus.seed == settings.train.seed == 7
    assert settings.engine == {"threads": 2}
    usual = recipe_settings(build_parser().parse_args(["train-eagle", "--out", "x"]))
    assert usual.model == "smollm2-135m"
    assert usual.train.steps == 0
    assert main(["train-eagle", "--out", "x", "--layers", "1,2"]) == 2
    assert main(["train-eagle", "--out", "x", "--unroll", "0"]) == 2
    assert main(["train-eagle", "--out", "x", "--shard", "3/2"]) == 2
    said = capsys.readouterr().err
    assert "three numbers" in said
    assert "one of several" in said
    assert "--unroll is at least 1" in said


def test_the_draft_vocabulary_is_the_most_frequent_tokens_and_the_ends() -> None:
    counts = np.array([5, 0, 9, 2, 9, 0, 1], dtype=np.int64)
    vocabulary = DraftVocabulary.most_frequent(counts, 4, always=[5])
    assert vocabulary.ids.tolist() == [0, 2, 4, 5]
    assert vocabulary.offsets().tolist() == [0, 1, 2, 2]
    assert vocabulary.members().tolist() == [True, False, True, False, True, True, False]
    assert vocabulary.coverage(counts) == pytest.approx(23 / 26)
    assert DraftVocabulary.most_frequent(counts, 99).ids.tolist() == list(range(7))


def test_a_loss_that_is_no_number_does_not_cost_the_picture() -> None:
    rows = [(0, 2.0), (1, math.inf), (2, math.nan), (3, 1.0)]
    picture = draw([Panel("loss", "step", [Curve("a", rows)])])
    assert picture == draw([Panel("loss", "step", [Curve("a", [rows[0], rows[3]])])])
    assert "nothing yet" in draw([Panel("loss", "step", [Curve("a", rows[1:3])])])


def test_curves_stay_within_their_axes() -> None:
    panel = Panel("loss & <more>", "step", [Curve("a", [(0, 9.5), (100, 0.25), (250, 3)])])
    picture = ElementTree.fromstring(draw([panel, Panel("empty", "x", [])]))
    (line,) = [item for item in picture.iter() if item.tag.endswith("polyline")]
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) == 3
    assert all(0 <= x <= 430 and 0 <= y <= 250 for x, y in points)
    heights = [y for _, y in points]
    assert heights[0] < heights[2] < heights[1]  # downwards on the page
    texts = [item.text for item in picture.iter() if item.tag.endswith("text")]
    assert "loss & <more>" in texts
    assert "empty: nothing yet" in texts
