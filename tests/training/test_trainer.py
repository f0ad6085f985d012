"""Training: it learns, and a run that was cut off goes on as if it had not been."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.training.corpus import Conversation, Corpus
from branchline.runtime.training.head import EagleHead, HeadShape
from branchline.runtime.training.target import Target
from branchline.runtime.training.trainer import Trainer, TrainSettings, measured
from branchline.runtime.training.vocabulary import DraftVocabulary

SETTINGS = TrainSettings(steps=24, unroll=3, batch_tokens=128, warmup=4, rate=3e-3, seed=2)


def greedy(target: Target, count: int, length: int) -> Corpus:
    """Conversations in which the target says what it finds most likely."""
    chooser = np.random.default_rng(0)
    ids = chooser.integers(0, 101, (count, 3)).astype(np.int32)
    while ids.shape[1] < length:
        final = target.run(list(ids), (0, 1, 2)).final.view(count, ids.shape[1], -1)
        said = (final[:, -1] @ target.head.T).argmax(-1, keepdim=True)
        ids = np.concatenate([ids, said.numpy().astype(np.int32)], axis=1)
    return Corpus.of([Conversation(row, 3) for row in ids])


@pytest.fixture(scope="module")
def data(target: Target) -> Corpus:
    return greedy(target, 24, 12)


def trainer_of(target: Target, data: Corpus, settings: TrainSettings = SETTINGS) -> Trainer:
    shape = HeadShape(ffn=48, layers=(0, 1, 2))
    head = EagleHead(target.spec, shape, target.spec.max_context)
    head.init_weights(settings.seed)
    counts = data.counts(target.spec.vocab_size)
    vocabulary = DraftVocabulary.most_frequent(counts, 60, target.spec.eos_ids)
    trainer = Trainer(target, vocabulary, data, settings, head)
    trainer.measure_scale()
    return trainer


def train(trainer: Trainer, steps: int) -> list[tuple[float, list[float]]]:
    return [measured(*trainer.train_step(batch)) for batch in islice(trainer.batches(), steps)]


def test_it_learns_to_guess_several_tokens_ahead(target: Target, data: Corpus) -> None:
    settings = dataclasses.replace(SETTINGS, steps=120)
    told = train(trainer_of(target, data, settings), 120)
    first, last = told[0], told[-1]
    assert last[0] < first[0] - 0.5
    assert max(first[1]) < 0.5
    assert min(last[1]) > 0.6


def test_a_resumed_run_does_what_an_uninterrupted_one_does(
    target: Target, data: Corpus, tmp_path: Path
) -> None:
    whole = trainer_of(target, data)
    want = train(whole, 24)
    begun = trainer_of(target, data)
    have = train(begun, 9)
    begun.save(tmp_path / "state.safetensors", {"note": [1, 2]})
    resumed = trainer_of(target, data)
    assert resumed.resume(tmp_path / "state.safetensors") == {"note": [1, 2]}
    assert resumed.step == 9
    have += train(resumed, 15)
    assert have == want
    for name, value in whole.head.state_dict().items():
        assert torch.equal(resumed.head.state_dict()[name], value), name
    assert torch.equal(resumed.head.input_scale, whole.head.input_scale)


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(
    target: Target, data: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    trainer_of(target, data).save(path, {})
    other = trainer_of(target, data, dataclasses.replace(SETTINGS, rate=1e-4))
    with pytest.raises(InvalidRequest, match="other settings: rate"):
        other.resume(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match="damaged"):
        other.resume(path)


def test_guesses_that_the_vocabulary_lacks_weigh_nothing(target: Target, data: Corpus) -> None:
    shape = HeadShape(ffn=48, layers=(0, 1, 2))
    head = EagleHead(target.spec, shape, target.spec.max_context)
    head.init_weights(0)
    said = {int(i) for one in data for i in one.ids[one.answer :]}
    unsaid = torch.tensor(sorted(set(range(101)) - said)[:5])
    trainer = Trainer(target, DraftVocabulary(unsaid, 101), data, SETTINGS, head)
    losses, counts = trainer.train_step(next(trainer.batches()))
    assert not losses.any()
    assert not counts.any()


def test_the_rate_rises_to_its_peak_and_falls_to_its_least() -> None:
    rates = [SETTINGS.rate_at(step) for step in range(SETTINGS.steps + 1)]
    assert rates[3] == max(rates) == pytest.approx(3e-3)
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(SETTINGS.least_rate)
