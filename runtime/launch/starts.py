"""What a child process is told when it starts, and how it reads and writes."""

from __future__ import annotations

from typing import Any

import msgspec

from branchline.runtime.ipc.codec import Codec
from branchline.runtime.ipc.messages import ToDetokenizer, ToPort, ToScheduler
from branchline.runtime.observability.logs import LogFormat

BEAT_PERIOD_S = 0.5


class ProcessStart(msgspec.Struct, kw_only=True):
    """Start of a scheduler or detokenizer process.

    Attributes:
        settings: flat settings of the engine.
        inbox: where it listens.
        port: where the HTTP process listens to it.
        peer: where the other one of the two listens.
        log_level: "debug", "info", "warning" or "error".
        log_format: "text" or "json".
    """

    settings: dict[str, Any]
    inbox: str
    port: str
    peer: str
    log_level: str = "warning"
    log_format: LogFormat = "text"


def scheduler_codec() -> Codec[ToScheduler]:
    """Of what a scheduler receives."""
    return Codec(ToScheduler, "scheduler")


def detokenizer_codec() -> Codec[ToDetokenizer]:
    """Of what a detokenizer receives."""
    return Codec(ToDetokenizer, "detokenizer")


def port_codec() -> Codec[ToPort]:
    """Of what the HTTP process receives."""
    return Codec(ToPort, "HTTP process")
