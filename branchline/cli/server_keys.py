"""Keys of `branchline serve`: from files and the environment, never from the command line, where
everybody on the machine could read them."""

from __future__ import annotations

from pathlib import Path

from branchline.runtime.config.env import read
from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.keys import Keys


def read_keys(server: ServerSection) -> Keys:
    """Keys of the files and of the environment.

    Raises:
        InvalidRequest: a file cannot be read, or is empty.
    """
    return Keys(
        normal=_keys(server.api_key_file, read("BRANCHLINE_API_KEY")),
        admin=_keys(server.admin_key_file, read("BRANCHLINE_ADMIN_KEY")),
    )


def _keys(place: str | None, given: str) -> tuple[str, ...]:
    found = [key.strip() for key in given.split(",") if key.strip()]
    if place is not None:
        try:
            lines = Path(place).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"a file of keys cannot be read: {error}", value=place) from error
        listed = [line.strip() for line in lines if line.strip()]
        if not listed:
            raise InvalidRequest(
                "a file of keys has none", value=place, hint="Write one key a line."
            )
        found += listed
    return tuple(found)
