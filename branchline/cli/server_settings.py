"""What `branchline serve` can be told: a file, then flags over it. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from branchline.cli.options import limits_of, settings_of
from branchline.runtime.config.engine import sort_settings
from branchline.runtime.config.file import read_settings
from branchline.runtime.config.sections import SECTIONS, all_settings
from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.server.limits import Limits

FLAG_SECTIONS: tuple[type[Any], ...] = (*SECTIONS, ServerSection)
"""Each is a group of flags and a table of the file."""

LIMIT_SECTIONS: tuple[type[Any], ...] = (Limits, ProgramLimits)
"""Each is a table of the file; the flag `--limit` sets one of their fields."""

SERVER_SECTIONS: tuple[type[Any], ...] = (*FLAG_SECTIONS, *LIMIT_SECTIONS)


class Choices(NamedTuple):
    """What the operator chose.

    Attributes:
        engine: flat settings of the engine.
    """

    engine: dict[str, Any]
    server: ServerSection
    limits: Limits
    program_limits: ProgramLimits


def choices_of(arguments: argparse.Namespace) -> Choices:
    """Settings of `--config` and of the flags.

    Raises:
        InvalidRequest: a name that does not exist, or a value that cannot be meant.
    """
    settings: dict[str, Any] = {}
    if arguments.config:
        settings = read_settings(Path(arguments.config), SERVER_SECTIONS)
    settings |= settings_of(arguments, FLAG_SECTIONS)
    settings |= limits_of(arguments, LIMIT_SECTIONS)
    parts = sort_settings(settings, SERVER_SECTIONS)
    for section in LIMIT_SECTIONS:
        for name, value in parts[section].items():
            if value is not None and value <= 0:
                raise InvalidRequest(f"{name} must be above 0", value=value, hint="Raise it.")
    engine = {name: value for name, value in settings.items() if name in all_settings()}
    return Choices(
        engine,
        ServerSection(**parts[ServerSection]),
        Limits(**parts[Limits]),
        ProgramLimits(**parts[ProgramLimits]),
    )
