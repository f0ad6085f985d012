"""The operator's settings as one frozen value. An unknown or impossible one is an error."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from branchline.runtime.config.sections import (
    SECTIONS,
    DeviceSection,
    GrammarSection,
    LoraSection,
    MemorySection,
    ModelSection,
    SchedulerSection,
    SpeculativeSection,
    all_settings,
)
from branchline.runtime.errors import InvalidRequest

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "dtype": ("auto", "float32", "bfloat16"),
    "kv_dtype": ("auto", "float32", "bfloat16"),
    "quantization": ("auto", "none", None),
    "load_format": ("auto", "dummy"),
    "device": ("auto", "cpu", "cuda"),
    "eviction": ("lru", "lfu", "fifo", "priority"),
    "policy": ("lpm", "fcfs", "priority"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
    "speculative": (None, "ngram", "eagle", "draft"),
    "grammar_backend": ("auto", "llguidance", "xgrammar", "outlines"),
}
_NOT_NEGATIVE = ("drain_timeout_s", "max_restarts")
_NOT_NEGATIVE_OR_NONE = ("adapter_slots",)
_POSITIVE = (
    "context_length",
    "kv_tokens",
    "page_size",
    "max_running_requests",
    "max_queued_requests",
    "max_step_tokens",
    "speculative_tokens",
    "speculative_steps",
    "threads",
    "grammar_timeout_s",
    "default_deadline_s",
    "hang_timeout_s",
    "start_timeout_s",
    "max_adapter_rank",
    "adapter_host_mb",
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All sections together."""

    model: ModelSection = field(default_factory=ModelSection)
    memory: MemorySection = field(default_factory=MemorySection)
    scheduler: SchedulerSection = field(default_factory=SchedulerSection)
    grammar: GrammarSection = field(default_factory=GrammarSection)
    speculative: SpeculativeSection = field(default_factory=SpeculativeSection)
    device: DeviceSection = field(default_factory=DeviceSection)
    lora: LoraSection = field(default_factory=LoraSection)

    @staticmethod
    def from_settings(settings: dict[str, Any]) -> EngineConfig:
        """Sort flat settings into their sections.

        Raises:
            InvalidRequest: a name that no section has (with the nearest one), or a value that
                cannot be meant.
        """
        parts = sort_settings(settings, SECTIONS)
        return EngineConfig(*(section(**parts[section]) for section in SECTIONS))

    def flat(self) -> dict[str, Any]:
        """Every setting by name."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}


def sort_settings(
    settings: Mapping[str, Any], sections: Sequence[type[Any]]
) -> dict[type[Any], dict[str, Any]]:
    """Flat settings by the section that has them.

    Raises:
        InvalidRequest: see `EngineConfig.from_settings`.
    """
    known = all_settings(sections)
    parts: dict[type[Any], dict[str, Any]] = {section: {} for section in sections}
    for name, value in settings.items():
        if name not in known:
            raise unknown_name("setting", name, known, value)
        plain = _plain(value)
        _check(name, plain)
        parts[known[name][0]][name] = plain
    return parts


def unknown_name(what: str, name: str, known: Iterable[str], value: Any = None) -> InvalidRequest:
    """The error for a name that does not exist; it names the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
    return InvalidRequest(f"unknown {what} {name!r}", value=value, hint=hint)


def _plain(value: Any) -> Any:
    """`value` with paths as text, which settings are."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _check(name: str, value: Any) -> None:
    allowed = _CHOICES.get(name)
    if allowed is not None and value not in allowed:
        shown = ", ".join(repr(item) for item in allowed)
        raise InvalidRequest(f"{name} is not a choice", value=value, hint=f"Use one of {shown}.")
    if name in _POSITIVE and value is not None and not (_is_number(value) and value > 0):
        raise InvalidRequest(
            f"{name} must be above 0", value=value, hint=f"Set {name} to 1 or more."
        )
    if name == "adapters" and value is not None and not _is_mapping_of_text(value):
        raise InvalidRequest(
            "adapters is no mapping of names to folders",
            value=value,
            hint='Use adapters={"name": "folder", …}.',
        )
    if name in _NOT_NEGATIVE_OR_NONE and value is None:
        return
    if name in (*_NOT_NEGATIVE, *_NOT_NEGATIVE_OR_NONE) and not (_is_number(value) and value >= 0):
        raise InvalidRequest(
            f"{name} must not be negative", value=value, hint=f"Set {name} to 0 or more."
        )
    is_port = name == "port" or (name == "grpc_port" and value is not None)
    if is_port and not (_is_number(value) and 0 <= value < 65536):
        raise InvalidRequest(f"{name} is not a port", value=value, hint="Use 0 to 65535.")
    if (
        name == "memory_fraction"
        and value is not None
        and not (_is_number(value) and 0.0 < value <= 1.0)
    ):
        raise InvalidRequest(
            "memory_fraction is a share", value=value, hint="Use a number above 0 and at most 1."
        )


def _is_mapping_of_text(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(part, str) for item in value.items() for part in item
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
