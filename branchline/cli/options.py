"""Engine settings as flags: made from the config sections, so a new setting is a flag at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from branchline.runtime.config.sections import SECTIONS, all_settings, title_of
from branchline.runtime.errors import InvalidRequest

_PREFIX = "setting_"


def add_engine_flags(
    parser: argparse.ArgumentParser, sections: Sequence[type[Any]] = SECTIONS
) -> None:
    """Add one `--setting-name` for each field of the sections, grouped by section."""
    for section in sections:
        about = (section.__doc__ or "").partition("\n")[0]
        group = parser.add_argument_group(title_of(section), about.replace("%", "%%"))
        for name, (_, item) in all_settings([section]).items():
            shown = "" if item.default is None else f" (default {item.default})"
            group.add_argument(
                "--" + name.replace("_", "-"),
                dest=_PREFIX + name,
                metavar="X",
                default=None,
                help=(str(item.metadata["help"]) + shown).replace("%", "%%"),
            )


def engine_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the engine that were given, with the types that the sections state.

    Raises:
        InvalidRequest: a value that is not of its setting's type.
    """
    return settings_of(arguments, SECTIONS)


def settings_of(arguments: argparse.Namespace, sections: Sequence[type[Any]]) -> dict[str, Any]:
    """`engine_settings` for other sections. Raises InvalidRequest."""
    settings: dict[str, Any] = {}
    for name, (_, item) in all_settings(sections).items():
        text: str | None = getattr(arguments, _PREFIX + name, None)
        if text is not None:
            settings[name] = _convert(name, text, str(item.type))
    return settings


def _convert(name: str, text: str, kind: str) -> Any:
    if text.lower() == "none" and "None" in kind:
        return None
    flag = "--" + name.replace("_", "-")
    if kind.startswith("bool"):
        if text.lower() in ("true", "on", "yes", "1"):
            return True
        if text.lower() in ("false", "off", "no", "0"):
            return False
        raise InvalidRequest(f"{flag} is a switch", value=text, hint="Use on or off.")
    number = {"int": int, "float": float}.get(kind.split(" ")[0])
    if number is None:
        return text
    try:
        return number(text)
    except ValueError:
        raise InvalidRequest(f"{flag} is a number", value=text, hint=f"Use {flag} 8.") from None
