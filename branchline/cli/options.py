"""Engine settings as flags: made from the config sections, so a new setting is a flag at once.

A setting that is a table has a flag for one entry, which may be repeated: `adapters` is
`--adapter NAME=X`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import Field
from typing import Any

from branchline.runtime.config.engine import unknown_name
from branchline.runtime.config.sections import SECTIONS, all_settings, is_table, title_of
from branchline.runtime.errors import InvalidRequest

_PREFIX = "setting_"
_LIMITS = "limits"
_FLAGS = "flags_of_settings"


class ShortUsage(argparse.HelpFormatter):
    """Names the settings once in the usage line; their groups below list them all."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """See `argparse.HelpFormatter`, which calls it."""
        every = list(actions)
        shown = [one for one in every if not one.dest.startswith(_PREFIX)]
        if len(shown) < len(every):
            places = [at for at, one in enumerate(shown) if one.option_strings]
            some = argparse.Action(["--SETTING"], _PREFIX, metavar="X ...")
            shown.insert(max(places, default=-1) + 1, some)
        super().add_usage(usage, shown, groups, prefix)


def add_engine_flags(
    parser: argparse.ArgumentParser, sections: Sequence[type[Any]] = SECTIONS
) -> None:
    """Add one `--setting-name` for each field of the sections, grouped by section.

    A table's flag may be repeated.
    """
    flags: list[str] = []
    for section in sections:
        about = (section.__doc__ or "").partition("\n")[0]
        group = parser.add_argument_group(title_of(section), about.replace("%", "%%"))
        for name, (_, item) in all_settings([section]).items():
            shown = "" if item.default is None else f" (default {item.default})"
            table = is_table(item)
            flags.append(_flag(name, table))
            group.add_argument(
                flags[-1],
                dest=_PREFIX + name,
                metavar="NAME=X" if table else "X",
                action="append" if table else "store",
                default=None,
                help=(str(item.metadata["help"]) + shown).replace("%", "%%"),
            )
    parser.set_defaults(**{_FLAGS: flags})


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
        found[name] = _convert(f"--limit {name}=", text.strip(), known[name][1])
    return found


def setting_flags(arguments: argparse.Namespace) -> list[str]:
    """The flags of all settings that the command has."""
    return list(getattr(arguments, _FLAGS, ()))


def _flag(name: str, table: bool = False) -> str:
    return "--" + (name.removesuffix("s") if table else name).replace("_", "-")


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
        given: Any = getattr(arguments, _PREFIX + name, None)
        if given is None:
            continue
        if is_table(item):
            settings[name] = _table(_flag(name, table=True), given)
        else:
            settings[name] = _convert(_flag(name) + " ", given, item)
    return settings


def _table(flag: str, entries: Sequence[str]) -> dict[str, str]:
    """The entries of a flag that was given once or more."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not (name and equals and text):
            raise InvalidRequest(
                f"{flag} has a name and a value", value=entry, hint=f"Use {flag} NAME=X."
            )
        if name in found:
            raise InvalidRequest(
                f"{flag} gives one name twice", value=name, hint="Give each name once."
            )
        found[name] = text
    return found


def _convert(flag: str, text: str, item: Field[Any]) -> Any:
    """The value of a setting. flag: what stands before it, for errors."""
    kind, named = str(item.type), flag.rstrip(" =")
    if text.lower() == "none" and "None" in kind:
        return None
    if kind.startswith("bool"):
        if text.lower() in ("true", "on", "yes", "1"):
            return True
        if text.lower() in ("false", "off", "no", "0"):
            return False
        raise InvalidRequest(f"{named} is a switch", value=text, hint="Use on or off.")
    number = {"int": int, "float": float}.get(kind.split(" ")[0])
    if number is None:
        return text
    try:
        return number(text)
    except ValueError:
        example = 8 if item.default is None else item.default
        raise InvalidRequest(
            f"{named} is a number", value=text, hint=f"Use {flag}{example}."
        ) from None
