"""What a server says when it refuses: its own words, out of whichever form its API has."""

from __future__ import annotations

from typing import Any

import msgspec

from branchline.lang.errors import BackendError, BranchlineError, from_wire

MAX_CHARS = 500


def words_of(body: str) -> str:
    """The message of a JSON error, or the body as it is; at most `MAX_CHARS` characters."""
    found = _error_in(body)
    said = found.get("message") if isinstance(found, dict) else found
    return (said if isinstance(said, str) else body)[:MAX_CHARS]


def error_of(body: str) -> BranchlineError | None:
    """The error of the project's own tree that a branchline server names, if it does."""
    found = _error_in(body)
    if not isinstance(found, dict) or not isinstance(found.get("message"), str):
        return None
    # Its message says all; what else there is would be said twice.
    kept = ("code", "message", "retryable")
    error = from_wire({name: found[name] for name in kept if name in found})
    return None if type(error) is BackendError else error


def _error_in(body: str) -> Any:
    try:
        return msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except msgspec.DecodeError:
        return body
