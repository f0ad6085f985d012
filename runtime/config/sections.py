"""What an operator may choose: one frozen section per subsystem. "auto" and None = "decide for me".

A field's name is the setting's name everywhere: `Engine(name=…)`, flags, files. Names are unique
over all sections. `metadata["help"]` is the one text that help pages and docs are made from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from branchline.runtime.errors import InvalidRequest


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """Which model, and in which numbers."""

    model: str = setting("smollm2-135m", "catalog name, Hugging Face directory, or .gguf file")
    dtype: str = setting(
        "auto",
        'activations and weights: "auto" (the file\'s own; bfloat16 on CUDA), "float32" or '
        '"bfloat16"',
    )
    quantization: str | None = setting(
        "auto",
        'weights: "auto" keeps the file\'s 4/8 bits on a CPU, "none" widens them to dtype',
    )
    kv_dtype: str = setting("auto", 'key-value cache: "auto", "float32" or "bfloat16"')
    context_length: int | None = setting(
        None, "tokens per sequence at most; None = the model's own"
    )
    load_format: str = setting("auto", '"auto" reads the file, "dummy" makes random weights')
    device: str = setting("auto", '"auto" (a CUDA device where there is one), "cpu" or "cuda"')
    threads: int | None = setting(None, "compute threads on the CPU; None = usable cores")
    chat_template: str | None = setting(None, "Jinja text that replaces the model's own template")
    reasoning_format: str = setting(
        "auto",
        'how the model marks its reasoning: "auto" (by its chat template), "none", or the name of '
        "a format, such as think, harmony or mistral",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySection:
    """How much memory key-value entries may take, and what is kept."""

    memory_fraction: float | None = setting(
        None,
        "share of the free memory that the cache may grow to; None = 0.3 on a CPU, 0.9 of what the "
        "weights and the largest step leave on CUDA",
    )
    kv_tokens: int | None = setting(None, "tokens in the cache; None = from memory_fraction")
    page_size: int = setting(1, "tokens per page of the cache")
    prefix_cache: bool = setting(True, "share computed prefixes between requests")
    eviction: str = setting("lru", '"lru", "lfu", "fifo" or "priority"')


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSection:
    """Who runs next, and how much at once."""

    policy: str = setting("lpm", '"lpm" (longest cached prefix first), "fcfs" or "priority"')
    max_running_requests: int = setting(256, "sequences computed in one step at most")
    max_queued_requests: int = setting(100_000, "requests that may wait; more get QueueFull")
    max_step_tokens: int | None = setting(
        None,
        "tokens of one step: prompts are computed in chunks of this; None = 512 on a CPU, 8192 on "
        "CUDA",
    )
    max_skips: int = setting(256, "times a waiting request may be passed over before it goes first")
    overlap: bool = setting(True, "plan and commit steps while the device computes")
    default_deadline_s: float | None = setting(None, "seconds after which any request ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarSection:
    """Constrained output."""

    grammar_backend: str = setting(
        "auto",
        'who enforces constraints: "auto" (by what each needs), "llguidance", "xgrammar" or '
        '"outlines"; one that cannot enforce a constraint exactly refuses it',
    )
    grammar_timeout_s: float = setting(10.0, "seconds a constraint may take to compile")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeSection:
    """Guesses of what comes next, of which a step checks several. They change no output."""

    speculative: str | None = setting(
        None,
        'who guesses: None (nobody), "ngram" (looks up what followed the last tokens before, in '
        'prompt and output and in other lanes of a program), "eagle" (a draft head that reads the '
        'model\'s own states) or "draft" (a smaller model with the same tokenizer)',
    )
    speculative_draft: str | None = setting(
        None,
        "draft head: a directory, None = the one of the catalog for the model; draft model: "
        "catalog name, directory or .gguf file",
    )
    speculative_tokens: int | None = setting(
        None,
        "guesses of a sequence in one step, as long as there is room; None = as many as pay, by "
        "measured times and acceptance, and none where none do",
    )
    speculative_steps: int | None = setting(
        None, "guesses one behind the other at most; None = what suits the drafter"
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is loaded. Raises InvalidRequest."""
        if self.speculative == "draft" and self.speculative_draft is None:
            raise InvalidRequest(
                'speculative="draft" needs a draft model',
                hint="Name it: speculative_draft= catalog name, directory or .gguf file.",
            )
        if self.speculative_draft is not None and self.speculative not in ("eagle", "draft"):
            raise InvalidRequest(
                "speculative_draft names a draft model, but none is used",
                value=self.speculative_draft,
                hint='Set speculative="eagle" for a head, "draft" for a whole model.',
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    """How a CUDA device is used."""

    attention_backend: str = setting(
        "auto", 'who computes attention: "auto" (the fastest that can), or one by its name'
    )
    deterministic: bool = setting(
        False, "results of a row do not depend on its batch mates; slower on CUDA"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSection:
    """Low-rank adapters, many beside each other and the base model."""

    adapters: Mapping[str, str] | None = setting(
        None,
        "adapters to load at the start: name -> folder in PEFT's format, or name of one that comes "
        "with the package (`branchline models list`)",
    )
    adapter_slots: int | None = setting(
        None,
        "adapters on the device at once, 0 = none can be loaded; None = 8 on a CPU, on CUDA where "
        "adapters are named at the start",
    )
    max_adapter_rank: int | None = setting(
        None,
        "rank that a slot holds at most; None = the largest of those named at the start, at least "
        "16",
    )
    adapter_targets: str | None = setting(
        None,
        'modules that adapters may change, with commas ("q_proj,v_proj"): others take no memory of '
        "a slot and no time of a step; None = all",
    )
    adapter_host_mb: int = setting(
        4096, "megabytes of adapters kept in host memory, as slots hold them; others are read again"
    )


SECTIONS: tuple[type[Any], ...] = (
    ModelSection,
    MemorySection,
    SchedulerSection,
    GrammarSection,
    SpeculativeSection,
    DeviceSection,
    LoraSection,
)


def all_settings(
    sections: Sequence[type[Any]] = SECTIONS,
) -> dict[str, tuple[type[Any], Field[Any]]]:
    """Setting name -> (section class, dataclass field)."""
    return {
        item.name: (section, item)
        for section in sections
        for item in fields(section)
        if "help" in item.metadata  # others are sections of their own
    }


def title_of(section: type[Any]) -> str:
    """A section's name in files and help pages."""
    words = re.findall("[A-Z][a-z]*", section.__name__.removesuffix("Section"))
    return "_".join(words).lower()


def is_table(item: Field[Any]) -> bool:
    """Whether a setting's value is a table: texts by name."""
    return str(item.type).startswith(("dict", "Mapping"))
