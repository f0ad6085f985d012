"""Every message that crosses a socket between the processes of one engine: the whole schema.

    HTTP process ──ToScheduler──> scheduler ──ToDetokenizer──> detokenizer ──ToPort──> HTTP process
                                     │  ^──────ToScheduler───────┘ (a stop was found)     ^
                                     └────────────────ToPort──────────────────────────────┘

Law: a message is msgpack of one of these types; nothing else is decoded, and nothing is ever
unpickled or evaluated. One frame is a list of messages, in order.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import (
    EmbedResult,
    FinishReason,
    GenerateDelta,
    GenerateResult,
    ScoreResult,
)
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens

Question = Literal["info", "flush", "audit", "prefixes"]
"""What a scheduler can be asked: its counters; to drop the cached prefixes that nothing holds
(answer: tokens freed); to check its memory (answer: breaches found); for its cached prefixes."""


class Submit(msgspec.Struct, tag=True):
    """Run a request."""

    request: EngineRequest


class Abort(msgspec.Struct, tag=True):
    """End one sequence, and none of its siblings; unknown ids are ignored."""

    request_id: str
    reason: FinishReason = "abort"


class Hold(msgspec.Struct, tag=True):
    """Keep the longest cached prefix of `ids` until `Release`."""

    lane_id: str
    ids: list[int]
    namespace: str


class Release(msgspec.Struct, tag=True):
    """Drop a lane's lease."""

    lane_id: str


class Ask(msgspec.Struct, tag=True):
    """Answer with an `Answer` of the same number."""

    number: int
    what: Question


class Attach(msgspec.Struct, tag=True):
    """From now on text is read by the detokenizer that listens at `endpoint`."""

    endpoint: str


class Stop(msgspec.Struct, tag=True):
    """End every request, then the process."""


class SchedulerLoaded(msgspec.Struct, tag=True):
    """The scheduler takes requests.

    Attributes:
        facts: model, settings, decisions, counters (plain data for `info`).
    """

    bounds: Bounds
    facts: dict[str, Any]


class DetokenizerLoaded(msgspec.Struct, tag=True):
    """The detokenizer reads."""


class StartFailed(msgspec.Struct, tag=True):
    """The process cannot start and ends; the wire form of why."""

    error: dict[str, Any]


class Beat(msgspec.Struct, tag=True):
    """Sent about once a second.

    Attributes:
        turns: how often the process's loop has turned.
        busy: it has work; `turns` that stay the same then mean that it hangs.
        corrupt: frames that it could not read.
        counters: of the scheduler, for `info`.
    """

    turns: int
    busy: bool
    corrupt: int = 0
    counters: dict[str, Any] = {}


class Started(msgspec.Struct, tag=True):
    """These sequences are part of a step for the first time."""

    request_ids: list[str]


class Answer(msgspec.Struct, tag=True):
    """What was asked for, or the wire form of why there is no answer."""

    number: int
    value: Any = None
    error: dict[str, Any] | None = None


ToScheduler = Submit | Abort | Hold | Release | Ask | Attach | Stop
ToDetokenizer = SequenceOpen | SequenceTokens | SequenceEnd
ToPort = (
    GenerateDelta
    | GenerateResult
    | ScoreResult
    | EmbedResult
    | Started
    | Answer
    | Beat
    | SchedulerLoaded
    | DetokenizerLoaded
    | StartFailed
)
