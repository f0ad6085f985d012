"""What compiling and masking cost in each backend, beside the packages as they are.

A fixed set of ordinary constraints, each with a text that it allows. Compile times are wall time
up to the first mask, in a fresh cache, workers started; mask times are CPU time of the thread, for
every token of the text. Knows backends by their contract only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, TextIO

import numpy as np

from branchline.runtime.bench.bare_backends import BareLLGuidance, BareXGrammar
from branchline.runtime.bench.measure import share
from branchline.runtime.bench.report import Column, table
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.base import Bitmask, GrammarTokenizer
from branchline.runtime.grammar.choice import installed

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": ["string", "null"]}},
            "required": ["street"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
}
SOMEONE = (
    '{"name": "Ada Lovelace", "age": 36, "tags": ["mathematician", "writer \\u00e9"], '
    '"address": {"street": "12 St James\'s Square", "zip": null}}'
)
CALL = {
    "type": "object",
    "properties": {"name": {"enum": ["search", "open"]}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
CALLED = '{"name": "search", "arguments": {"query": "bridges of Prague", "limit": 3}}'
JSON_GRAMMAR = r"""
root ::= value
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}"
array ::= "[" ws (value ("," ws value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws ::= [ \t\n]{0,20}
"""
SUMS = 'root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= [0-9]+ | "(" sum ")"\n'
COLUMNS = (
    Column("backend"),
    Column("constraints", right=True),
    Column("compile p50 ms", right=True),
    Column("p99", right=True),
    Column("max", right=True),
    Column("masks", right=True),
    Column("mask p50 us", right=True),
    Column("p99", right=True),
    Column("max", right=True),
)


class Case(NamedTuple):
    """A constraint and a text that it allows."""

    kind: ConstraintKind
    text: str
    output: str


def cases() -> list[Case]:
    """The fixed set."""
    cities = [f"{first}{second}" for first in ("New ", "Old ", "") for second in ("York", "Delhi")]
    tags = {
        "structures": [{"begin": "<call>", "schema": CALL, "end": "</call>"}],
        "triggers": ["<call>"],
    }
    return [
        Case("regex", r"\d{4}-\d{2}-\d{2}", "2024-02-29"),
        Case("regex", r"[a-z]+(\.[a-z]+)*@[a-z]+\.(com|org)", "ada.lovelace@example.org"),
        Case("regex", r"(?s).{1,200}", "Any text at all, up to a length.\nOn several lines."),
        Case("regex", r"[A-Z][a-z]+( [A-Z][a-z]+){0,3}", "Ada Augusta King Lovelace"),
        Case("regex", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", "-1234.5678"),
        Case("choices", json.dumps(cities), "New Delhi"),
        Case("choices", json.dumps([f"item {i}" for i in range(500)]), "item 321"),
        Case("json_schema", json.dumps(PERSON), SOMEONE),
        Case("json_schema", json.dumps(CALL), CALLED),
        Case("json_schema", json.dumps({"type": "array", "items": PERSON}), f"[{SOMEONE}]"),
        Case(
            "lark",
            'start: sum\nsum: term (("+"|"-") term)*\nterm: /[0-9]+/ | "(" sum ")"',
            "(1+2)-33",
        ),
        Case("ebnf", SUMS, "(1+2)-33"),
        Case("ebnf", JSON_GRAMMAR, SOMEONE),
        Case("structural_tag", json.dumps(tags), f"I will look. <call>{CALLED}</call> Done."),
    ]


class Cost(NamedTuple):
    """Of one backend: seconds to compile up to the first mask, and for each mask."""

    backend: str
    compiles: list[float]
    masks: list[float]


def measure(tokenizer: GrammarTokenizer, vocab_size: int, setting: str, repeats: int) -> Cost:
    """Compile and walk every case that the backend takes.

    Raises:
        AssertionError: a grammar refused its own text.
    """
    backends = GrammarBackends(tokenizer, vocab_size=vocab_size, setting=setting)
    cost = Cost(setting, [], [])
    mask: Bitmask = np.zeros((1, -(-vocab_size // 32)), dtype=np.int32)
    try:
        for number in range(repeats + 1):  # the first round loads the engine and starts a worker
            for case in cases():
                begun = time.perf_counter()
                try:
                    grammar = backends.compile(Constraint(kind=case.kind, text=case.text))
                except UnsupportedConstraint:
                    continue
                matcher = grammar.matcher()
                backends.fill_masks([matcher], mask)
                if number:
                    cost.compiles.append(time.perf_counter() - begun)
                for token in tokenizer.encode(case.output):
                    begun = time.thread_time()
                    backends.fill_masks([matcher], mask)
                    took = time.thread_time() - begun
                    if number:
                        cost.masks.append(took)
                    forced = matcher.forced_tokens()
                    assert matcher.accept(token) or forced, (setting, case)
                    if forced and token != forced[0]:
                        break  # another cut of the same text
    finally:
        backends.close()
    return cost


def measure_bare(
    bare: BareLLGuidance | BareXGrammar, tokenizer: GrammarTokenizer, repeats: int
) -> Cost:
    """The same of a package as it is, with those cases that it reads itself."""
    cost = Cost(bare.name, [], [])
    for number in range(repeats + 1):
        for case in cases():
            constraint = Constraint(kind=case.kind, text=case.text)
            begun = time.perf_counter()
            try:
                bare.first_mask(constraint)
            except UnsupportedConstraint:
                continue
            took = time.perf_counter() - begun
            masks = bare.masks(constraint, tokenizer.encode(case.output))
            if number:
                cost.compiles.append(took)
                cost.masks.extend(masks)
    return cost


def grammar_cost(
    tokenizer: GrammarTokenizer, vocab_size: int, *, repeats: int = 5, stream: TextIO = sys.stdout
) -> list[Cost]:
    """Measure every backend that is installed, and the bare packages; print a table."""
    there = installed()
    costs = [measure(tokenizer, vocab_size, name, repeats) for name in ("auto", *there)]
    costs.append(measure_bare(BareLLGuidance(tokenizer, vocab_size), tokenizer, repeats))
    if "xgrammar" in there:
        costs.append(measure_bare(BareXGrammar(tokenizer, vocab_size), tokenizer, repeats))
    rows = []
    for cost in costs:
        compile_ms = [1e3 * share(cost.compiles, part) for part in (0.5, 0.99, 1.0)]
        mask_us = [1e6 * share(cost.masks, part) for part in (0.5, 0.99, 1.0)]
        rows.append(
            [
                cost.backend,
                str(len(cost.compiles) // repeats),
                *(f"{value:.1f}" for value in compile_ms),
                str(len(cost.masks)),
                *(f"{value:.0f}" for value in mask_us),
            ]
        )
    table(f"grammar backends, {vocab_size} tokens", COLUMNS, rows, stream)
    return costs


def figures(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """For the JSON line: of each backend."""
    return {
        cost.backend: {
            "compile_p50_ms": round(1e3 * share(cost.compiles, 0.5), 4),
            "compile_p99_ms": round(1e3 * share(cost.compiles, 0.99), 4),
            "mask_p50_us": round(1e6 * share(cost.masks, 0.5), 2),
            "mask_p99_us": round(1e6 * share(cost.masks, 0.99), 2),
            "mask_max_us": round(1e6 * share(cost.masks, 1.0), 2),
        }
        for cost in costs
    }
