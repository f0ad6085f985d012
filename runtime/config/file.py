"""Settings from a TOML file: one table for each section, unknown names are errors.

[model]
model = "smollm2-135m"
[server]
port = 8000
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from branchline.runtime.config.engine import unknown_name
from branchline.runtime.config.sections import all_settings, is_table, title_of
from branchline.runtime.errors import InvalidRequest


def read_settings(path: Path, sections: Sequence[type[Any]]) -> dict[str, Any]:
    """Flat settings of a file.

    Raises:
        InvalidRequest: it cannot be read, or has a table or a name that no section has, or a
            value of the wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(
            f"the settings file cannot be read: {error}", value=path, hint="Name a TOML file."
        ) from error
    known = {title_of(section): section for section in sections}
    settings: dict[str, Any] = {}
    for title, table in tables.items():
        if not isinstance(table, dict):
            example = known_table(title, known)
            raise InvalidRequest(
                f"{title!r} stands outside of every table",
                value=table,
                hint=f"Put it below [{example}].",
            )
        if title not in known:
            raise unknown_name("table", title, known)
        own = all_settings([known[title]])
        for name, value in table.items():
            if name not in own:
                raise _misplaced(title, name, own, known)
            read = _table if is_table(own[name][1]) else _typed
            settings[name] = read(name, value, str(own[name][1].type))
    return settings


def known_table(name: str, known: dict[str, type[Any]]) -> str:
    """The table that has a setting of this name; any, if none has."""
    return next((title for title, s in known.items() if name in all_settings([s])), "server")


def _misplaced(
    title: str, name: str, own: dict[str, Any], known: dict[str, type[Any]]
) -> InvalidRequest:
    for other, section in known.items():
        if name in all_settings([section]):
            return InvalidRequest(f"[{title}] has no {name!r}", hint=f"It belongs below [{other}].")
    return unknown_name(f"setting of [{title}]", name, own)


def _table(name: str, value: Any, kind: str) -> Any:
    """`value` if it is a table of texts."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidRequest(
            f"{name} is a table of texts", value=value, hint=f'Write {name} = {{name = "…"}}.'
        )
    return value


def _typed(name: str, value: Any, kind: str) -> Any:
    """`value` if it is of its setting's type; a whole number may stand for a fraction."""
    kinds: dict[str, type[Any]] = {"bool": bool, "int": int, "float": float, "str": str}
    wanted = kinds[kind.split(" ")[0]]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise InvalidRequest(
            f"{name} is not of its type", value=value, hint=f"Give {name} the type {kind}."
        )
    return value
