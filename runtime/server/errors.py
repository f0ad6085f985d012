"""Failures as clients of each route family read them.

Invariant: every failure has one HTTP status, decided here, and the body its family's clients know;
an internal one shows no more than its type. Knows no routes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web

from branchline.runtime.errors import (
    AdapterError,
    AdapterInUse,
    AdapterNotFound,
    BranchlineError,
    Cancelled,
    ConstraintError,
    DeadlineExceeded,
    InvalidRequest,
    ProgramError,
    QueueFull,
    UnsupportedFeature,
)

logger = logging.getLogger(__name__)

Body = dict[str, Any]


class Refused(InvalidRequest):
    """A request that a route turns away with a status of its own.

    Args:
        status: HTTP status.
        param: the field at fault, as the client wrote it.
        code: short name that clients compare with.
    """

    def __init__(
        self, status: int, message: str, *, param: str = "", code: str = "", **where: Any
    ) -> None:
        super().__init__(message, **where)
        self.status = status
        self.param = param
        self.code = code


class Failure(NamedTuple):
    """What a family needs to write an error.

    Attributes:
        retry_after_s: seconds after which the same request may succeed, if it may.
    """

    status: int
    message: str
    param: str = ""
    code: str = ""
    retry_after_s: int | None = None
    wire: dict[str, Any] | None = None


ErrorBody = Callable[[Failure, str], Body]
"""(failure, request id) to the JSON body."""

CLIENT_GONE = 499


def failure_of(error: BaseException) -> Failure:
    """Status and message of an error."""
    if isinstance(error, BranchlineError):
        retry = 1 if error.retryable else None
        param = error.param if isinstance(error, Refused) else ""
        code = error.code if isinstance(error, Refused) else ""
        if isinstance(error, AdapterNotFound):
            code = "model_not_found"
        return Failure(_status(error), str(error), param, code, retry, error.to_wire())
    if isinstance(error, web.HTTPException):
        return Failure(error.status, _http_message(error))
    return Failure(500, f"internal error: {type(error).__name__}")


def log_failure(failure: Failure, request_id: str, error: Exception) -> None:
    """Failures that are not the client's own go to the log; a bug with its traceback."""
    if failure.status == 500:
        logger.error("request %s: %s", request_id, failure.message, exc_info=error)
    elif failure.status > 500:
        logger.warning("request %s: %s", request_id, failure.message)


def headers_of(failure: Failure) -> dict[str, str]:
    """Headers that go with the body."""
    headers = {}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(failure.retry_after_s)
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def openai_body(failure: Failure, request_id: str) -> Body:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return {
        "error": {
            "message": failure.message,
            "type": _OPENAI_TYPES.get(failure.status, _kind(failure.status)),
            "param": failure.param or None,
            "code": failure.code or None,
        }
    }


def anthropic_body(failure: Failure, request_id: str) -> Body:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""
    kind = _ANTHROPIC_TYPES.get(failure.status)
    if kind is None:
        kind = "api_error" if failure.status >= 500 else "invalid_request_error"
    return {
        "type": "error",
        "error": {"type": kind, "message": failure.message},
        "request_id": request_id,
    }


def native_body(failure: Failure, request_id: str) -> Body:
    """`{"error": {"message", …}}`, with the error's own fields for our clients."""
    return {"error": {**(failure.wire or {}), "message": failure.message}}


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    **_OPENAI_TYPES,
    413: "request_too_large",
    503: "overloaded_error",
    408: "timeout_error",
}


def _kind(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


def _status(error: BranchlineError) -> int:
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return error.status if isinstance(error, Refused) else status
    return 503 if error.retryable else 500


_STATUSES: tuple[tuple[type[BranchlineError], int], ...] = (
    (Refused, 400),
    (AdapterNotFound, 404),
    (AdapterInUse, 409),
    (AdapterError, 400),
    (InvalidRequest, 400),
    (ConstraintError, 400),
    (UnsupportedFeature, 400),
    (ProgramError, 400),
    (QueueFull, 429),
    (DeadlineExceeded, 408),
    (Cancelled, CLIENT_GONE),
)


def _http_message(error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return "there is no such route"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"this route takes {', '.join(sorted(error.allowed_methods))}"
    return error.text or error.reason
