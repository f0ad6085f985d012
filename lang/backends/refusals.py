"""What a server says when it refuses: its own words, out of whichever form its API has."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_CHARS = 500


def words_of(body: str) -> str:
    """The message of a JSON error, or the body as it is; at most `MAX_CHARS` characters."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except msgspec.DecodeError:
        return body[:MAX_CHARS]
    said = found.get("message") if isinstance(found, dict) else found
    return (said if isinstance(said, str) else body)[:MAX_CHARS]
