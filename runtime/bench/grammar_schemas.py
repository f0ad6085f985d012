"""Sets of JSON Schemas: time to the first mask, masks, and whether what is said holds.

Two clocks: wall time through everything an engine uses, worker processes included; and CPU time of
the same work on one thread, which others on the machine hardly move. Beside them the bare engine
as its own package reads schemas. Knows backends by their contract.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from branchline.runtime.bench.bare_backends import BareLLGuidance
from branchline.runtime.bench.measure import share
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.schema_set import Sample
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import BranchlineError
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.base import Bitmask, GrammarBackend, GrammarTokenizer
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

COLUMNS = (
    Column("how"),
    Column("schemas", right=True),
    Column("refused", right=True),
    Column("first mask p50 ms", right=True),
    Column("p90", right=True),
    Column("p99", right=True),
    Column("max", right=True),
    Column("p99 of each repeat"),
)


@dataclass(slots=True)
class Times:
    """Seconds to the first mask, [repeats][schemas that compile]."""

    how: str
    rounds: list[list[float]] = field(default_factory=list)
    refused: int = 0

    @property
    def medians(self) -> list[float]:
        """Of each schema over the repeats."""
        return [sorted(times)[len(times) // 2] for times in zip(*self.rounds, strict=True)]


@dataclass(slots=True)
class Verdicts:
    """What became of the schemas' own values.

    Attributes:
        exact: schemas of which every value is told right.
        leaks: schemas that let an invalid value through, with the first.
        refuse: schemas that refuse a valid one, with the first.
        refused: schemas that are refused, with the reason.
    """

    exact: int = 0
    leaks: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def first_masks(
    tokenizer: GrammarTokenizer, vocab_size: int, samples: Sequence[Sample], repeats: int
) -> list[Times]:
    """Time every schema `repeats` times in each way, after a first round that is not counted."""
    backends = GrammarBackends(tokenizer, vocab_size=vocab_size)
    alone = LLGuidanceBackend(tokenizer, vocab_size=vocab_size)
    bare = BareLLGuidance(tokenizer, vocab_size)
    ways: list[tuple[Times, Callable[[Constraint], object], Callable[[], float]]] = [
        (Times("auto, wall"), lambda one: _first(backends, one), time.perf_counter),
        (Times("auto, CPU"), lambda one: _first(alone, one), time.thread_time),
        (Times("llguidance bare, CPU"), bare.first_mask, time.thread_time),
    ]
    try:
        for times, run, clock in ways:
            _rounds(times, run, clock, samples, repeats)
    finally:
        backends.close()
    return [times for times, _, _ in ways]


def _first(backend: GrammarBackend, constraint: Constraint) -> None:
    matcher = backend.compile(constraint).matcher()
    words: int = -(-backend.vocab_size // 32)  # type: ignore[attr-defined]
    mask: Bitmask = np.zeros((1, words), dtype=np.int32)
    backend.fill_masks([matcher], mask)


def _rounds(
    times: Times,
    run: Callable[[Constraint], object],
    clock: Callable[[], float],
    samples: Sequence[Sample],
    repeats: int,
) -> None:
    able = []
    for sample in samples:
        constraint = Constraint(kind="json_schema", text=json.dumps(sample.schema))
        try:
            run(constraint)
        except BranchlineError:
            times.refused += 1
        else:
            able.append(constraint)
    for _ in range(repeats):
        took = []
        for constraint in able:
            begun = clock()
            run(constraint)
            took.append(clock() - begun)
        times.rounds.append(took)


def verdicts(samples: Sequence[Sample]) -> Verdicts:
    """Feed every value of every schema, as `json.dumps` writes it, byte by byte."""
    found = Verdicts()
    backends = GrammarBackends(ByteTokenizer(), threads=1)
    try:
        for sample in samples:
            constraint = Constraint(kind="json_schema", text=json.dumps(sample.schema))
            try:
                grammar = backends.compile(constraint)
            except BranchlineError as error:
                found.refused[sample.id] = error.message
                continue
            right = True
            for one in sample.tests:
                matcher = grammar.matcher()
                text = json.dumps(one.data, ensure_ascii=False)
                taken = all(map(matcher.accept, text.encode())) and matcher.is_accepting()
                if taken != one.valid:
                    right = False
                    (found.leaks if taken else found.refuse).setdefault(sample.id, text)
            found.exact += right
    finally:
        backends.close()
    return found


def show(found: Sequence[Times], verdict: Verdicts, count: int, stream: TextIO) -> None:
    """Print the table, and by name what is not exact."""
    rows = []
    for times in found:
        medians = times.medians
        shown = [f"{1e3 * share(medians, part):.1f}" for part in (0.5, 0.9, 0.99, 1.0)]
        each = " ".join(f"{1e3 * share(one, 0.99):.1f}" for one in times.rounds)
        rows.append([times.how, str(len(medians)), str(times.refused), *shown, each])
    table(f"{count} JSON Schemas", COLUMNS, rows, stream)
    show_verdicts(verdict, count, stream)


def show_verdicts(verdict: Verdicts, count: int, stream: TextIO) -> None:
    """Print how many schemas fare how, and by name what is not exact."""
    print(
        f"exact on all their values: {verdict.exact} of {count}; let an invalid one through: "
        f"{len(verdict.leaks)}; refuse a valid one: {len(verdict.refuse)}; refused: "
        f"{len(verdict.refused)}",
        file=stream,
    )
    for what, those in (
        ("lets an invalid value through", verdict.leaks),
        ("refuses a valid value", verdict.refuse),
        ("refused", verdict.refused),
    ):
        for name, why in those.items():
            print(f"  {what}: {name}: {why[:160]}", file=stream)


def figures(found: Sequence[Times], verdict: Verdicts, count: int) -> dict[str, object]:
    """For the JSON line."""
    line: dict[str, object] = {
        "schemas": count,
        "exact": verdict.exact,
        "leaks": len(verdict.leaks),
        "refuse_valid": len(verdict.refuse),
        "refused": len(verdict.refused),
    }
    for times, name in zip(found, ("wall", "cpu", "bare_cpu"), strict=True):
        medians = times.medians
        line[f"first_mask_p50_ms_{name}"] = 1e3 * share(medians, 0.5)
        line[f"first_mask_p99_ms_{name}"] = 1e3 * share(medians, 0.99)
    return line
