"""What `branchline serve` can be told: a file, then flags over it. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from branchline.cli.options import settings_of
from branchline.runtime.config.engine import sort_settings
from branchline.runtime.config.file import read_settings
from branchline.runtime.config.sections import SECTIONS, all_settings
from branchline.runtime.config.server import ServerSection
from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.server.limits import Limits

SERVER_SECTIONS: tuple[type[Any], ...] = (
    *SECTIONS,
    ServerSection,
    Limits,
    ProgramLimits,
)
"""Each is a group of flags and a table of the file."""


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
    settings |= settings_of(arguments, SERVER_SECTIONS)
    parts = sort_settings(settings, SERVER_SECTIONS)
    engine = {name: value for name, value in settings.items() if name in all_settings()}
    return Choices(
        engine,
        ServerSection(**parts[ServerSection]),
        Limits(**parts[Limits]),
        ProgramLimits(**parts[ProgramLimits]),
    )
