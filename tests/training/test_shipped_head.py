"""The head that ships for the default model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from branchline.runtime.engine import Engine
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.training.checkpoint import read_head
from branchline.runtime.training.corpus import greedy_answers
from branchline.runtime.training.evaluate import Measure, TreeSize
from branchline.runtime.training.prompts import read_prompts
from branchline.runtime.training.target import Target

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "speculative"
HEAD = ASSETS / "smollm2-135m-eagle3"


def test_it_fits_its_target_and_its_size(default_model: Path) -> None:
    file = HEAD / "model.safetensors"
    assert file.stat().st_size <= 12_000_000
    checkpoint = open_checkpoint(default_model, "dummy")
    head, vocabulary = read_head(HEAD, checkpoint.spec, 64)
    checkpoint.close()
    assert head.shape.layers == (1, 14, 26)
    assert len(vocabulary.ids) == 16384
    assert bool((vocabulary.ids[1:] > vocabulary.ids[:-1]).all())
    assert set(checkpoint.spec.eos_ids) <= set(vocabulary.ids.tolist())
    for name, value in head.state_dict().items():
        assert bool(value.isfinite().all()), name
    with safe_open(file, "pt") as opened:
        members = opened.get_tensor("t2d")
        assert opened.get_tensor("fc.weight").dtype == torch.bfloat16
    assert torch.equal(members.nonzero()[:, 0], vocabulary.ids)


def test_its_report_is_of_this_file() -> None:
    report = json.loads((HEAD / "report.json").read_text(encoding="utf-8"))
    assert report["head_bytes"] == (HEAD / "model.safetensors").stat().st_size
    lengths = {one["tree"]["nodes"]: one["accept_length"] for one in report["heldout"]["trees"]}
    assert lengths[32] >= 2.5
    assert lengths[60] >= lengths[32]


@pytest.mark.slow
def test_on_a_cpu_it_accepts_what_the_report_says(default_model: Path) -> None:
    """Five held-out prompts, one of each task, with the weights in float32."""
    prompts = read_prompts(ASSETS / "heldout.jsonl")[3::16]
    assert len({prompt.task for prompt in prompts}) == 5
    with Engine(str(default_model), kv_tokens=9000, device="cpu") as engine:
        answers = list(greedy_answers(engine, prompts, 96))
    target = Target(default_model, torch.device("cpu"), max_context=1024)
    head, vocabulary = read_head(HEAD, target.spec, 1024)
    found = Measure(head, target, vocabulary).accepted(answers, TreeSize(8, 5, 32))
    steps, tokens = sum(one.steps for one in found), sum(one.tokens for one in found)
    assert tokens / steps > 2.2
