"""Accept lengths against an oracle that drafts one token after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchline.runtime.training.checkpoint import head_of
from branchline.runtime.training.corpus import Conversation
from branchline.runtime.training.evaluate import Accepted, Measure, TreeSize
from branchline.runtime.training.target import Target
from branchline.runtime.training.vocabulary import DraftVocabulary
from tests.training.oracle import OracleHead, chain
from tests.training.test_head import SHAPE, made_head


def conversations(count: int, length: int) -> list[Conversation]:
    chooser = np.random.default_rng(5)
    made = []
    for _ in range(count):
        ids = chooser.integers(0, 101, length).astype(np.int32)
        made.append(Conversation(ids, int(chooser.integers(2, 5))))
    return made


def measure_of(target: Target, ids: list[int]) -> tuple[Measure, OracleHead]:
    tensors = made_head(target).public_tensors(torch.float32)
    head = head_of(tensors, target.spec, SHAPE, target.spec.max_context)
    vocabulary = DraftVocabulary(torch.tensor(ids), target.spec.vocab_size)
    return Measure(head, target, vocabulary), OracleHead(tensors, target.spec)


def follow(target: Target, oracle: OracleHead, one: Conversation, names: list[int]) -> Conversation:
    """The conversation with answers that are often what the head drafts."""
    ids, chooser = one.ids.copy(), np.random.default_rng(6)
    rows = target.head[torch.tensor(names)]
    for at in range(one.answer, len(ids) - 1):
        if chooser.random() < 0.7:
            states = target.run([ids[:at]], SHAPE.layers).layers
            known = ids[: at + 1].tolist()
            (ids[at + 1],) = chain(oracle, states, target.embedding, known, 1, rows, names)
    return Conversation(ids, one.answer)


def test_a_chain_accepts_what_drafting_one_by_one_would(target: Target) -> None:
    names = list(range(0, 101, 2))
    measure, oracle = measure_of(target, names)
    rows = target.head[torch.tensor(names)]
    answers = [follow(target, oracle, one, names) for one in conversations(3, 14)]
    for one, found in zip(answers, measure.accepted(answers, TreeSize(1, 3, 3)), strict=True):
        want = Accepted()
        at, last = one.answer, len(one.ids) - 1
        while at < last:
            states = target.run([one.ids[:at]], SHAPE.layers).layers
            known = one.ids[: at + 1].tolist()
            drafts = chain(oracle, states, target.embedding, known, 3, rows, names)
            count = 0
            while count < 3 and at + count < last and drafts[count] == one.ids[at + 1 + count]:
                count += 1
            want.add(count)
            at += count + 1
        assert found == want
    assert sum(one.tokens for one in measure.accepted(answers, TreeSize(1, 3, 3))) > 3


def test_a_full_tree_accepts_whatever_is_in_the_vocabulary(target: Target) -> None:
    """With every guess taken and every node kept, a step stops at its depth or at the end."""
    names = [3, 7, 11]
    measure, _ = measure_of(target, names)
    ids = np.array([1, 2, 3, *[7, 3, 11, 3, 3, 7, 11]], dtype=np.int32)
    (found,) = measure.accepted([Conversation(ids, 3)], TreeSize(3, 2, 100))
    assert found == Accepted(2, 4, [2, 2])  # 2 and a bonus, then 2 and a bonus: 6 behind the first
    (found,) = measure.accepted(
        [Conversation(np.append(ids, 50).astype(np.int32), 3)], TreeSize(3, 2, 100)
    )
    assert found == Accepted(3, 4, [2, 2])  # 50 cannot be guessed


@pytest.mark.parametrize("nodes", [1, 4, 9])
def test_more_nodes_never_accept_less_in_one_step(target: Target, nodes: int) -> None:
    names = list(range(0, 101, 2))
    measure, oracle = measure_of(target, names)
    (one,) = (follow(target, oracle, one, names) for one in conversations(1, 12))
    for at in range(one.answer, len(one.ids) - 1):
        single = Conversation(one.ids[: at + 4], at)
        (few,) = measure.accepted([single], TreeSize(4, 3, nodes))
        (many,) = measure.accepted([single], TreeSize(4, 3, nodes + 8))
        assert many.steps <= few.steps
