"""How a child process begins and ends: what it is told, how it reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import zmq

from branchline.runtime.ipc.codec import Codec
from branchline.runtime.ipc.messages import ToDetokenizer, ToPort, ToScheduler
from branchline.runtime.ipc.parent import leave, read_start
from branchline.runtime.ipc.short_turns import take_short_turns
from branchline.runtime.observability.logs import LogFormat, set_up_logs

BEAT_PERIOD_S = 0.5
LINGER_S = 2.0
"""Time for last words, such as why a process cannot start."""


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


def live(role: str, run: Callable[[ProcessStart, zmq.Context[zmq.Socket[bytes]]], int]) -> NoReturn:
    """Body of a child process: read what it is told, `run`, and end with the status it returns."""
    start = read_start(ProcessStart)
    take_short_turns()
    set_up_logs(start.log_format, start.log_level, role)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    status = run(start, context)
    # Told to stop, nobody listens any more; failed, somebody wants to know why.
    context.destroy(linger=int(LINGER_S * 1000) if status else 0)
    leave(status)
