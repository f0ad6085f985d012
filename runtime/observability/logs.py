"""Logs for people or for machines, with the request that a line belongs to.

`request_id` names the request that the running task or thread serves; every line logged meanwhile
carries it.
"""

from __future__ import annotations

import datetime
import logging
import sys
from contextvars import ContextVar
from typing import Literal, TextIO

import msgspec

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("branchline_request_id", default="")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "request_id"}


class _Formatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, process, logger, message, request_id, and what `extra=`
    gave."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "process": self.role,
            "logger": record.name,
            "message": record.getMessage(),
        }
        current = request_id.get()
        if current:
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(_Formatter):
    """`time LEVEL process: message [request]`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, a traceback below it."""
        current = request_id.get()
        text = f"{_time_of(record)} {record.levelname:<7} {self.role}: {record.getMessage()}"
        text += f" [{current}]" if current else ""
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up_logs(form: LogFormat, level: str, role: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error), replacing what was set up.

    Args:
        role: of the process, in each line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role) if form == "json" else TextFormatter(role))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
