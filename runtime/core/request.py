"""The scheduler's own record of one sequence."""

from __future__ import annotations

# size: Request: what is known of a sequence in one record, read row by row in every step
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from branchline.runtime.core.adapters import AdapterVersion
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import FinishReason, TokenLogprob
from branchline.runtime.core.pooling import PoolState
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.tree import ScoreState
from branchline.runtime.errors import BranchlineError

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Handle, TokenMatcher

TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]


class Status(Enum):
    """Where a request is; TRANSFER is for key-value hand-off between engines."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    TRANSFER = "transfer"
    FINISHED = "finished"


@dataclass(slots=True)
class RequestTimes:
    """Seconds of `time.monotonic()`; 0.0 = has not happened."""

    created: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


@dataclass(slots=True)
class Progress:
    """What only the request's end reports, and the order of arrival.

    Attributes:
        times: of the stations of its life.
        end_id: the end id that was sampled, if one was.
        error: what ended it, when `finish` is "error".
        prompt_scored: prompt tokens whose log-probabilities have been asked for.
        skipped: times others that came later were admitted first.
        forced: positions in the output of ids that the constraint left no choice about.
        grammar: who enforces the constraint and why.
    """

    cached_tokens: int = 0
    forwards: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    retractions: int = 0
    arrival: int = 0
    skipped: int = 0
    prompt_scored: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    end_id: int | None = None
    error: BranchlineError | None = None
    grammar: str = ""
    times: RequestTimes = field(default_factory=RequestTimes)


@dataclass(slots=True, eq=False)
class Request:
    """One sequence; no other room writes it.

    `ids[:length]` is prompt then output, int32, in a buffer that grows by doubling. Three lengths
    order its life: `planned_len <= sampled_len` and `length <= sampled_len`.

    Attributes:
        prompt_len: tokens before the first generated one.
        length: ids known on the CPU.
        sampled_len: `length` plus ids that steps in flight are sampling.
        planned_len: tokens whose key-value entries exist or are being computed.
        computed_len: of those, tokens whose step is over (cached ones included).
        max_len: `length` never grows beyond this.
        row: row of the slot and token tables; -1 while it holds none.
        handle: lock on the cached prefix.
        inflight: steps planned and not committed; its memory is released when this is zero.
        readout: what is read of a request that generates nothing; None for generation.
        adapter: the version that it runs with; None = the base model.
        greedy: its most likely ids are wanted, of the model's own logits, and nothing else.
        quiet: of its next ids nobody but itself needs to hear before its end, unless they end it.
    """

    id: str
    ids: TokenIds
    prompt_len: int
    length: int
    max_len: int
    sampling: SamplingParams
    source: EngineRequest
    seed: int = 0
    status: Status = Status.WAITING
    row: int = -1
    sampled_len: int = 0
    planned_len: int = 0
    computed_len: int = 0
    inflight: int = 0
    handle: Handle | None = None
    matcher: TokenMatcher | None = None
    readout: ScoreState | PoolState | None = None
    finish: FinishReason | None = None
    adapter: AdapterVersion | None = None
    greedy: bool = False
    quiet: bool = False
    progress: Progress = field(default_factory=Progress)

    @property
    def times(self) -> RequestTimes:
        """Of the stations of its life."""
        return self.progress.times

    @property
    def output_len(self) -> int:
        """Generated ids seen by the CPU."""
        return self.length - self.prompt_len

    @property
    def pending_len(self) -> int:
        """Tokens that still have to run before the next id can be sampled."""
        return self.sampled_len - self.planned_len

    @property
    def generates(self) -> bool:
        """Ids are sampled behind its prompt."""
        return self.readout is None

    @property
    def score(self) -> ScoreState | None:
        """What a `ScoreRequest` still has to read; None for others."""
        return self.readout if isinstance(self.readout, ScoreState) else None

    @property
    def pool(self) -> PoolState | None:
        """What an `EmbedRequest` has read; None for others."""
        return self.readout if isinstance(self.readout, PoolState) else None

    def append(self, token_id: int) -> None:
        """Add one generated id."""
        if self.length == len(self.ids):
            grown = np.empty(max(16, 2 * len(self.ids)), dtype=np.int32)
            grown[: self.length] = self.ids[: self.length]
            self.ids = grown
        self.ids[self.length] = token_id
        self.length += 1

    def output_ids(self) -> list[int]:
        """Generated ids as a list."""
        result: list[int] = self.ids[self.prompt_len : self.length].tolist()
        return result
