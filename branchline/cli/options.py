"""Engine settings as flags: made from the config sections, so a new setting is a flag at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from branchline.runtime.config.engine import unknown_name
from branchline.runtime.config.sections import SECTIONS, all_settings, title_of
from branchline.runtime.errors import InvalidRequest

_PREFIX = "setting_"
_LIMITS = "limits"


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


def add_limit_flag(parser: argparse.ArgumentParser, sections: Sequence[type[Any]]) -> None:
    """Add `--limit NAME=VALUE`, once for all fields of the sections."""
    group = parser.add_argument_group("limits", "The most of everything that clients may ask for.")
    names = {
        name: "" if item.default is None else f" ({item.default})"
        for name, (_, item) in all_settings(sections).items()
    }
    group.add_argument(
        "--limit",
        dest=_LIMITS,
        metavar="NAME=X",
        action="append",
        default=[],
        help="may be repeated; docs/routes.md says what each bounds. Names and defaults: "
        + ", ".join(f"{name}{shown}" for name, shown in names.items()),
    )


def limits_of(arguments: argparse.Namespace, sections: Sequence[type[Any]]) -> dict[str, Any]:
    """What `--limit` was given, by name.

    Raises:
        InvalidRequest: a name that does not exist, or a value that is not of its type.
    """
    known = all_settings(sections)
    found: dict[str, Any] = {}
    for word in getattr(arguments, _LIMITS):
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise unknown_name("limit", name, known)
        if not equals:
            raise InvalidRequest(
                "a limit has no value",
                value=word,
                hint=f"Use --limit {name}={known[name][1].default}.",
            )
        found[name] = _convert(name, text.strip(), str(known[name][1].type), f"--limit {name}=")
    return found


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


def _convert(name: str, text: str, kind: str, flag: str = "") -> Any:
    if text.lower() == "none" and "None" in kind:
        return None
    flag = flag or "--" + name.replace("_", "-") + " "
    if kind.startswith("bool"):
        if text.lower() in ("true", "on", "yes", "1"):
            return True
        if text.lower() in ("false", "off", "no", "0"):
            return False
        raise InvalidRequest(f"{flag.rstrip(' =')} is a switch", value=text, hint="Use on or off.")
    number = {"int": int, "float": float}.get(kind.split(" ")[0])
    if number is None:
        return text
    try:
        return number(text)
    except ValueError:
        raise InvalidRequest(
            f"{flag.rstrip(' =')} is a number", value=text, hint=f"Use {flag}8."
        ) from None
