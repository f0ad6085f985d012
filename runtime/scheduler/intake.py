"""From what a caller asks to the scheduler's own records, checked. Knows nothing of steps."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np

from branchline.runtime.core.messages import EngineRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import ScoreState, build_groups
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.sampling.sampling_batch import check_token_ids

_SEED_MASK = (1 << 63) - 1
_SEED_STEP = 0x9E3779B97F4A7C15
MAX_CHOICES = 10_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may ask for.

    Attributes:
        vocab_size: ids are in [0, vocab_size).
        max_context: tokens of a sequence at most (model and memory).
        max_tree: candidates of one tree forward at most.
    """

    vocab_size: int
    max_context: int
    max_tree: int


class Intake:
    """Makes `Request`s.

    Args:
        seed: of the generator that draws seeds for requests without one; None = from the system.
    """

    def __init__(self, bounds: Bounds, seed: int | None = None) -> None:
        self._bounds = bounds
        self._random = random.Random(seed)

    def make(self, source: EngineRequest) -> list[Request]:
        """One record, or n of them for `n` outputs (ids `id`, `id#1`, …).

        Raises:
            InvalidRequest: names the value that cannot be run, and what to do.
        """
        self._check_prompt(source)
        if isinstance(source, ScoreRequest):
            return [self._score(source)]
        return self._generate(source)

    def _check_prompt(self, source: EngineRequest) -> None:
        ids, bounds = source.prompt_ids, self._bounds
        if not ids:
            raise InvalidRequest("the prompt is empty", hint="Give at least one token.")
        if len(ids) >= bounds.max_context:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens, but a sequence holds {bounds.max_context}",
                value=f"{len(ids)} tokens",
                hint="Shorten the prompt, or raise context_length or kv_tokens.",
            )
        self._check_ids(ids, "the prompt")

    def _check_ids(self, ids: list[int], what: str) -> None:
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._bounds.vocab_size:
            raise InvalidRequest(
                f"{what} has a token id outside the vocabulary",
                value=low if low < 0 else high,
                hint=f"Ids are 0 to {self._bounds.vocab_size - 1}.",
            )

    def _generate(self, source: GenerateRequest) -> list[Request]:
        sampling = source.sampling.validate()
        room = self._bounds.max_context - len(source.prompt_ids)
        max_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        check_token_ids(sampling, self._bounds.vocab_size)
        seed = sampling.seed
        base = self._random.getrandbits(63) if seed is None else seed & _SEED_MASK
        return [
            self._record(
                source,
                source.id if index == 0 else f"{source.id}#{index}",
                sampling,
                max_len=len(source.prompt_ids) + max_tokens,
                seed=(base + index * _SEED_STEP) & _SEED_MASK,
            )
            for index in range(sampling.n)
        ]

    def _score(self, source: ScoreRequest) -> Request:
        limit = min(self._bounds.max_tree, self._bounds.max_context - len(source.prompt_ids))
        if not source.choices:
            raise InvalidRequest("there are no choices", hint="Give at least one choice.")
        if len(source.choices) > MAX_CHOICES:
            raise InvalidRequest(
                "too many choices", value=len(source.choices), hint=f"At most {MAX_CHOICES}."
            )
        for choice in source.choices:
            if not choice:
                raise InvalidRequest("a choice is empty", hint="Every choice needs some text.")
            if len(choice) > limit:
                raise InvalidRequest(
                    f"a choice has {len(choice)} tokens, at most {limit} can be scored here",
                    value=f"{len(choice)} tokens",
                    hint="Shorten the choice or the prompt, or raise max_step_tokens.",
                )
            self._check_ids(choice, "a choice")
        request = self._record(
            source, source.id, SamplingParams(), max_len=len(source.prompt_ids), seed=0
        )
        groups = build_groups(source.choices, limit)
        request.score = ScoreState(groups, [[] for _ in source.choices])
        return request

    def _record(
        self,
        source: EngineRequest,
        request_id: str,
        sampling: SamplingParams,
        *,
        max_len: int,
        seed: int,
    ) -> Request:
        n = len(source.prompt_ids)
        return Request(
            id=request_id,
            ids=np.array(source.prompt_ids, dtype=np.int32),
            prompt_len=n,
            length=n,
            sampled_len=n,
            max_len=max_len,
            sampling=sampling,
            source=source,
            seed=seed,
        )


def remaining(deadline: float | None, default_s: float | None) -> float | None:
    """The earlier of a request's own deadline and the default, as `time.monotonic()`."""
    if default_s is None:
        return deadline
    default = time.monotonic() + default_s
    return default if deadline is None else min(deadline, default)
