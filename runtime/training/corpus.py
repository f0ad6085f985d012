"""What a target said to prompts, as token ids: the data that a head learns from.

Invariant: answers are the ids that were generated, never text tokenized again; which prompts are
answered how depends on the seed alone. Stored as tensors (safetensors), nothing else.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.tokenizer.chat import ChatTemplate
from branchline.runtime.training.prompts import Prompt, parts
from branchline.runtime.training.vocabulary import Counts

Told = Callable[[int, int], None]
"""Told how much of how much is done."""
_Turns = tuple[tuple[str, str], ...]
"""(role, text) of each turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """How prompts are answered.

    Attributes:
        tokens: answers are made until they have as many tokens together.
        max_answer: tokens of one answer at most.
        greedy: share of the answers that take the most likely token; the others are sampled at
            temperatures from 0.5 to 1.
        plain: share of the prompts that come without the chat template.
        follow_up: share of the answers that get a further question.
        seed: of those choices, and of the sampling.
        shard: (i, n): every n-th prompt from the i-th on, counted from 0, so that n processes make
            different parts.
    """

    tokens: int = 4_000_000
    max_answer: int = 256
    greedy: float = 0.6
    plain: float = 0.06
    follow_up: float = 0.15
    seed: int = 0
    shard: tuple[int, int] = (0, 1)


class Conversation(NamedTuple):
    """Ids of one sequence.

    Attributes:
        ids: int32 [n], prompt and answer.
        answer: index of the first id of the answer.
    """

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    answer: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Conversations end to end.

    Attributes:
        ids: int32 [t].
        starts: int64 [m + 1], first id of each conversation, then t.
        answers: int64 [m], index in `ids` of the first id of each answer.
    """

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    answers: np.ndarray[tuple[int], np.dtype[np.int64]]

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> Corpus:
        """Conversations in order."""
        lens = np.array([len(one.ids) for one in conversations], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int64)
        answers = starts[:-1] + np.array([one.answer for one in conversations], dtype=np.int64)
        ids = [one.ids for one in conversations]
        return cls(np.concatenate([np.zeros(0, np.int32), *ids]), starts, answers)

    @classmethod
    def joined(cls, parts: Sequence[Corpus]) -> Corpus:
        """The conversations of all."""
        return cls.of([one for part in parts for one in part])

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Conversation:
        start, end = self.starts[index], self.starts[index + 1]
        return Conversation(self.ids[start:end], int(self.answers[index] - start))

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return int((self.starts[1:] - self.answers).sum())

    def counts(self, vocab_size: int) -> Counts:
        """How often each token is said in answers: int64 [V]."""
        said = np.zeros(vocab_size, dtype=np.int64)
        for one in self:
            said += np.bincount(one.ids[one.answer :], minlength=vocab_size)
        return said

    def save(self, path: Path, settings: CorpusSettings) -> None:
        """Write it whole or not at all."""
        tensors = {"ids": self.ids, "starts": self.starts, "answers": self.answers}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"settings": json.dumps(asdict(settings))})
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """What `save` wrote. Raises ModelLoadError: damaged."""
        try:
            tensors = load_file(path)
            return cls(tensors["ids"], tensors["starts"], tensors["answers"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelLoadError(
                f"{path} is damaged: {error}.", hint="Delete it; it is made again."
            ) from error


ROUND = 4096
"""Prompts answered at a time at most."""


def make_corpus(
    engine: Engine, prompts: Iterator[Prompt], settings: CorpusSettings, told: Told
) -> Corpus:
    """Have the engine answer prompts until there are enough tokens, or no more prompts."""
    template = ChatTemplate.of(engine.tokenizer)
    first, every = settings.shard
    prompts = islice(prompts, first, None, every)
    chooser = random.Random(f"{settings.seed} {first}" if first else settings.seed)
    conversations: list[Conversation] = []
    further: list[_Turns] = []
    have = 0
    count = min(ROUND, max(64, settings.tokens // settings.max_answer))
    while have < settings.tokens:
        asked = [(("user", prompt.text),) for prompt in islice(prompts, count)]
        if not asked and not further:
            break
        plain = [chooser.random() < settings.plain for _ in asked]
        texts = [
            f"Question: {turns[0][1]}\nAnswer:" if bare else _rendered(template, turns)
            for turns, bare in zip(asked, plain, strict=True)
        ]
        texts += [_rendered(template, turns) for turns in further]
        answered = _answers(engine, texts, settings, chooser)
        conversations += [one for one, _ in answered]
        have += sum(len(one.ids) - one.answer for one, _ in answered)
        told(min(have, settings.tokens), settings.tokens)
        further = [
            (*turns, ("assistant", text), ("user", chooser.choice(parts().follow_ups)))
            for turns, bare, (_, text) in zip(asked, plain, answered, strict=False)
            if not bare and chooser.random() < settings.follow_up
        ]
    return Corpus.of(conversations)


def greedy_answers(engine: Engine, prompts: Sequence[Prompt], max_answer: int) -> Corpus:
    """The target's most likely answer to each prompt, for measuring a head."""
    template = ChatTemplate.of(engine.tokenizer)
    texts = [_rendered(template, (("user", prompt.text),)) for prompt in prompts]
    params = [SamplingParams(temperature=0.0, max_tokens=max_answer)] * len(texts)
    return Corpus.of([one for one, _ in _generate(engine, texts, params)])


def _rendered(template: ChatTemplate, turns: _Turns) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    return template.render(messages, add_generation_prompt=True)


def _answers(
    engine: Engine, texts: Sequence[str], settings: CorpusSettings, chooser: random.Random
) -> list[tuple[Conversation, str]]:
    params = []
    for _ in texts:
        greedy = chooser.random() < settings.greedy
        params.append(
            SamplingParams(
                temperature=0.0 if greedy else chooser.uniform(0.5, 1.0),
                max_tokens=settings.max_answer,
                seed=chooser.getrandbits(31),
            )
        )
    return _generate(engine, texts, params)


def _generate(
    engine: Engine, texts: Sequence[str], params: Sequence[SamplingParams]
) -> list[tuple[Conversation, str]]:
    """(ids of prompt and answer, text of the answer) of each; an answer that ended by itself has
    the end id that it ended with."""
    prompts = [engine.tokenizer.encode(text, special=True) for text in texts]
    made = []
    for prompt, result in zip(prompts, engine.generate(prompts, params), strict=True):
        matched = result.meta.matched
        end = [matched] if isinstance(matched, int) else []
        ids = np.array([*prompt, *result.token_ids, *end], dtype=np.int32)
        made.append((Conversation(ids, len(prompt)), result.text))
    return made
