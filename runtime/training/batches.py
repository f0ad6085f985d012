"""Batches of a corpus: which sequences a step sees, and which of their tokens are learned.

Invariant: the batches of an epoch are a function of (settings, epoch), and hold each sequence with
an answer once. All of it is known on the host, so a step need not wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.training.corpus import Conversation, Corpus

Index = np.ndarray[tuple[int], np.dtype[np.int64]]

_GROUP = 64
"""Batches whose sequences are sorted by length together, so that little is padding."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Sizes, and the seed of the order.

    Attributes:
        tokens: of one batch at most, padding included.
        longest: tokens of one sequence; longer ones are cut.
        seed: of the order.
    """

    tokens: int
    longest: int
    seed: int


class Batches:
    """A corpus in batches.

    Args:
        corpus: what is learned.
        settings: how it is cut.

    Raises:
        InvalidRequest: nothing of an answer is left to learn.
    """

    def __init__(self, corpus: Corpus, settings: BatchSettings) -> None:
        self._corpus, self._settings = corpus, settings
        self._lens = np.minimum(np.diff(corpus.starts), settings.longest)
        self._usable = np.flatnonzero(corpus.answers - corpus.starts[:-1] < self._lens)
        if not len(self._usable):
            raise InvalidRequest(
                "there is no conversation with an answer to learn",
                value=f"{len(corpus)} conversations, cut after {settings.longest} tokens",
                hint="Learn from more conversations, or cut them later (max_tokens).",
            )

    def start(self, step: int) -> Iterator[list[Conversation]]:
        """From a step on, counted from 0 over all epochs; without end."""
        epoch, before = 0, 0
        while True:
            order = self.epoch(epoch)
            for batch in order[max(0, step - before) :]:
                yield [self.cut(self._corpus[index]) for index in batch]
            before += len(order)
            epoch += 1

    def cut(self, one: Conversation) -> Conversation:
        """At most as long as is allowed."""
        return Conversation(one.ids[: self._settings.longest], one.answer)

    def epoch(self, epoch: int) -> list[list[int]]:
        """Indices of each batch: near in length within one, in an order of the epoch's own."""
        settings, lens = self._settings, self._lens
        chooser = np.random.default_rng([settings.seed, epoch])
        order = chooser.permutation(self._usable)
        mean = float(lens.mean())
        group = max(1, int(_GROUP * settings.tokens / mean))
        made: list[list[int]] = []
        for first in range(0, len(order), group):
            some = order[first : first + group]
            made += _packed(some[np.argsort(lens[some], kind="stable")], lens, settings.tokens)
        return [made[i] for i in chooser.permutation(len(made))]


class Learned(NamedTuple):
    """Where a batch's outputs and the target's words are, for one step of the unrolling.

    Attributes:
        outputs: int64 [m], index into outputs [B * (T - 1)].
        said: int64 [m], which of the target's words each is to guess.
        begun: int64 [m], the target's word at which each began to unroll.
    """

    outputs: torch.Tensor
    said: torch.Tensor
    begun: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch on the device.

    Attributes:
        padded: T, tokens of the longest sequence.
        ids: int64 [t], sequences end to end.
        places: int64 [t], where each lies in [B * T].
        words: int64 [r], tokens after which the target says a word of an answer: the next token.
        learned: for each step of the unrolling.
    """

    padded: int
    ids: torch.Tensor
    places: torch.Tensor
    words: torch.Tensor
    learned: tuple[Learned, ...]

    @classmethod
    def of(cls, batch: Sequence[Conversation], unroll: int, device: torch.device) -> BatchPlan:
        """Plan a batch of sequences that each have an answer."""
        padded = max(len(one.ids) for one in batch)
        places, words, outputs, begun, left = [], [], [], [], []
        start = said = 0
        for row, one in enumerate(batch):
            count = len(one.ids)
            first = max(0, one.answer - 1)  # the token whose successor is the answer's first
            places.append(np.arange(count, dtype=np.int64) + row * padded)
            words.append(np.arange(first, count - 1, dtype=np.int64) + start)
            # entries begin at position 1, and entry i of a sequence stands at i + 1
            at = np.arange(max(1, first), count - 1, dtype=np.int64)
            outputs.append(at - 1 + row * (padded - 1))
            begun.append(at - first + said)
            left.append(count - 2 - at)
            start, said = start + count, said + count - 1 - first
        steps = _steps(np.concatenate(outputs), np.concatenate(begun), np.concatenate(left), unroll)
        ids = np.concatenate([one.ids for one in batch]).astype(np.int64)
        return cls(
            padded,
            sent(ids, device),
            sent(np.concatenate(places), device),
            sent(np.concatenate(words), device),
            tuple(Learned(*(sent(part, device) for part in step)) for step in steps),
        )


def sent(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """The array on the device, without waiting for what is queued there."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def spread(flat: torch.Tensor, places: torch.Tensor, rows: int, padded: int) -> torch.Tensor:
    """[t, w] -> [rows, padded, w], zeros elsewhere."""
    out = flat.new_zeros((rows * padded, flat.shape[1]))
    return out.index_copy_(0, places, flat).view(rows, padded, -1)


def _steps(
    outputs: Index, begun: Index, left: Index, unroll: int
) -> Iterator[tuple[Index, Index, Index]]:
    for ahead in range(unroll):
        inside = left >= ahead
        yield outputs[inside], begun[inside] + ahead, begun[inside]


def _packed(
    order: np.ndarray[Any, Any], lens: np.ndarray[Any, Any], tokens: int
) -> Iterator[list[int]]:
    """Sequences of ascending length in batches of at most `tokens` with their padding."""
    batch: list[int] = []
    for index in order.tolist():
        if batch and (len(batch) + 1) * int(lens[index]) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
