"""What the engine and its compile workers say to each other: msgpack in frames, over pipes.

Invariant: every message has a schema; neither side runs what the other sends.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.grammar.limits import Limits

HEADER_BYTES = 4
BACKGROUND = "--background"
"""Argument of a worker that takes only time of the processor that nobody else wants."""
BackendName = Literal["llguidance", "xgrammar", "outlines"]


class Hello(msgspec.Struct, frozen=True):
    """First message to a worker.

    Attributes:
        tokens: bytes of each id.
        special_ids, eos_ids: see `GrammarTokenizer`.
        vocab_size: number of logits.
        limits: see `Limits`.
    """

    tokens: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]
    vocab_size: int
    limits: Limits


class Job(msgspec.Struct, frozen=True):
    """One compile.

    Attributes:
        backend: who compiles.
        constraint: what.
    """

    backend: BackendName
    constraint: Constraint


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """To a hello (empty) or a job.

    Attributes:
        data: a grammar for llguidance, a serialized grammar, or an automaton.
        error: `BranchlineError.to_wire`.
        seconds: CPU time of the compile.
    """

    data: bytes = b""
    error: dict[str, str | bool] | None = None
    seconds: float = 0.0


def framed(message: Hello | Job | Answer) -> bytes:
    """A message as it is sent."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body
