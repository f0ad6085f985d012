"""Which sequences and tokens a step sees, against loops over them."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.training.batches import Batches, BatchPlan, BatchSettings, spread
from branchline.runtime.training.corpus import Conversation, Corpus

CPU = torch.device("cpu")


def corpus(count: int = 60, seed: int = 0) -> Corpus:
    chooser = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(chooser.integers(2, 40))
        ids = chooser.integers(0, 101, length).astype(np.int32)
        made.append(Conversation(ids, int(chooser.integers(1, length))))
    return Corpus.of(made)


def test_an_epoch_has_each_sequence_once_in_batches_that_fit() -> None:
    data = corpus()
    batches = Batches(data, BatchSettings(tokens=90, longest=30, seed=1))
    lens = np.minimum(np.diff(data.starts), 30)
    for epoch in (0, 1):
        made = batches.epoch(epoch)
        assert made == batches.epoch(epoch)
        seen = [index for batch in made for index in batch]
        # those whose answer begins behind the cut teach nothing
        assert sorted(seen) == [i for i in range(60) if data[i].answer < lens[i]]
        for batch in made:
            assert len(batch) == 1 or len(batch) * lens[batch].max() <= 90
    assert batches.epoch(0) != batches.epoch(1)


def test_starting_at_a_step_gives_what_follows_it() -> None:
    batches = Batches(corpus(), BatchSettings(tokens=90, longest=30, seed=1))
    each = len(batches.epoch(0))

    def ids(step: int, count: int) -> list[list[list[int]]]:
        some = islice(batches.start(step), count)
        return [[one.ids.tolist() for one in batch] for batch in some]

    whole = ids(0, 2 * each + 3)
    for step in (1, each - 1, each, 2 * each + 1):
        assert ids(step, 2) == whole[step : step + 2]


@pytest.mark.parametrize(("count", "longest"), [(0, 30), (60, 1)])
def test_a_corpus_without_answers_is_refused(count: int, longest: int) -> None:
    with pytest.raises(InvalidRequest, match="no conversation with an answer"):
        Batches(corpus(count), BatchSettings(tokens=90, longest=longest, seed=1))


def test_what_is_learned_is_the_words_of_answers() -> None:
    batch = list(corpus(7, seed=2))
    plan = BatchPlan.of(batch, 3, CPU)
    padded = max(len(one.ids) for one in batch)
    assert plan.padded == padded
    words = [
        (row, at) for row, one in enumerate(batch) for at in range(one.answer - 1, len(one.ids) - 1)
    ]
    starts = np.cumsum([0, *[len(one.ids) for one in batch]])
    assert plan.words.tolist() == [starts[row] + at for row, at in words]
    for ahead, learned in enumerate(plan.learned):
        have = Counter(
            zip(
                learned.outputs.tolist(),
                learned.said.tolist(),
                learned.begun.tolist(),
                strict=True,
            )
        )
        want = Counter(
            # output i of a row stands at i + 1 when it begins
            (row * (padded - 1) + at - 1, words.index((row, at + ahead)), words.index((row, at)))
            for row, at in words
            if at >= 1 and (row, at + ahead) in words
        )
        assert have == want


def test_spread_puts_sequences_side_by_side() -> None:
    batch = list(corpus(4, seed=3))
    plan = BatchPlan.of(batch, 1, CPU)
    flat = plan.ids[:, None].float() + 1
    table = spread(flat, plan.places, 4, plan.padded)
    for row, one in enumerate(batch):
        count = len(one.ids)
        assert table[row, :count, 0].tolist() == (one.ids + 1.0).tolist()
        assert not table[row, count:].any()
