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

from branchline.runtime.core.adapters import AdapterInfo
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

Question = Literal["info", "flush", "audit", "prefixes", "adapters"]
"""What a scheduler can be asked: its counters; to drop the cached prefixes that nothing holds
(answer: tokens freed); to check its memory (answer: breaches found); for its cached prefixes; for
its adapters."""


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
    adapter: str = ""


class Release(msgspec.Struct, tag=True):
    """Drop a lane's lease."""

    lane_id: str


class Ask(msgspec.Struct, tag=True):
    """Answer with an `Answer` of the same number."""

    number: int
    what: Question


class LoadAdapter(msgspec.Struct, tag=True):
    """Load an adapter from a folder; the `Answer` of the same number is an `AdapterInfo`.

    Attributes:
        sent: the folder was made for it, and goes with it.
    """

    number: int
    name: str
    path: str
    pin: bool = False
    sent: bool = False


class UnloadAdapter(msgspec.Struct, tag=True):
    """Forget an adapter; the `Answer` of the same number is the `AdapterInfo` it had."""

    number: int
    name: str
    drain: bool = False


class KeptAdapter(msgspec.Struct):
    """An adapter that a scheduler before this one had."""

    name: str
    path: str
    version: int
    pin: bool = False
    sent: bool = False


class RestoreAdapters(msgspec.Struct, tag=True):
    """Have these adapters and no others, before anything else is done; the `Answer` of the same
    number lists those that could be had, `AdapterInfo`s."""

    number: int
    adapters: list[KeptAdapter]


class Attach(msgspec.Struct, tag=True):
    """From now on text is read by the detokenizer that listens at `endpoint`."""

    endpoint: str


class Stop(msgspec.Struct, tag=True):
    """End every request, then the process."""


class SchedulerLoaded(msgspec.Struct, tag=True):
    """The scheduler takes requests.

    Attributes:
        facts: model, settings, decisions, counters (plain data for `info`).
        adapters: that were loaded at the start.
    """

    bounds: Bounds
    facts: dict[str, Any]
    adapters: list[AdapterInfo] = []


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


ToScheduler = (
    Submit
    | Abort
    | Hold
    | Release
    | Ask
    | LoadAdapter
    | UnloadAdapter
    | RestoreAdapters
    | Attach
    | Stop
)
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
