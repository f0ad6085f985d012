"""What became of settings that were left open. Imports nothing heavy: every process reads it."""

from __future__ import annotations

import msgspec


class Decision(msgspec.Struct):
    """One setting, what was chosen for it, and why."""

    setting: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting} = {self.value}: {self.why}"
