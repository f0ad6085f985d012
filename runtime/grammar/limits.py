"""Every bound on constraints, in one table. Invariant: what passes costs a bounded amount.

A bound that is exceeded is reported by name, with the value found and the most that is allowed.
Knows no backend; looks at texts only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most of everything.

    Attributes:
        pattern_bytes: a regex, Lark or EBNF text.
        document_bytes: a JSON schema, structural tag or list of choices.
        depth: containers within containers in such a document; groups within groups of a pattern.
        json_values: values in such a document.
        enum_values: choices, or values of one `enum`.
        rules: rules of an EBNF or Lark text.
        repeat: the bound of one repetition.
        repeat_product: the product of the bounds of repetitions within each other.
        whitespace_run: white space between two JSON tokens, where it is flexible.
        compile_s: seconds of wall time for a compile in a worker; up to three times as many where
            the machine is too busy to give it half of a core.
        worker_bytes: memory a worker may take for one compile.
        compiled_bytes: a compiled grammar, as a worker sends it.
        cache_bytes: all grammars kept for later requests.
        mask_s: seconds of CPU time for the mask of one token; a request is failed at the third
            that takes longer, or at the first that takes four times as long.
        worker_idle_s: seconds after which a worker without work ends.
    """

    pattern_bytes: int = 64 * 1024
    document_bytes: int = 256 * 1024
    depth: int = 64
    json_values: int = 20_000
    enum_values: int = 10_000
    rules: int = 2_000
    repeat: int = 100_000
    repeat_product: int = 200_000
    whitespace_run: int = 20
    compile_s: float = 10.0
    worker_bytes: int = 512 * 1024 * 1024
    compiled_bytes: int = 64 * 1024 * 1024
    cache_bytes: int = 256 * 1024 * 1024
    mask_s: float = 0.2
    worker_idle_s: float = 120.0

    def as_dict(self) -> dict[str, int | float]:
        """Every bound by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


DEFAULT_LIMITS = Limits()

_DOCUMENTS: tuple[ConstraintKind, ...] = ("json_schema", "structural_tag", "choices")
_CHEAP_BYTES = 4096
_CHEAP_PRODUCT = 10_000
_TAME_BYTES = 128 * 1024
_LARGE_NUMBER = re.compile(r"(?<![\[0-9])[0-9]{5}")
"""But for one that begins an array, or a class of a pattern: it bounds nothing."""
_VALUE_BOUND = re.compile(r'"(?:exclusiveM|m)(?:in|ax)imum" *: *-?[0-9]{1,20}(?![0-9.eE])')
"""Limits what a number is worth, which repeats nothing."""
_BOUNDED_REPEAT = re.compile(r"\{ *([0-9]*) *,? *([0-9]*) *\}")
_NAMED_CHARACTER = re.compile(r"\\[xpPuN]\{[^}]*\}")


def exceeded(kind: str, name: str, what: str, found: object, most: object) -> InvalidRequest:
    """The error for a bound that was passed. `name`: the field of `Limits`."""
    return InvalidRequest(
        f"{kind}: {what} beyond the limit {name}",
        value=found,
        hint=f"Use at most {most}.",
    )


def check_text(constraint: Constraint, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check size and encoding, before anything reads the text.

    Raises:
        InvalidRequest: it is too large, or no UTF-8 text.
    """
    kind, text = constraint.kind, constraint.text
    name = "document_bytes" if kind in _DOCUMENTS else "pattern_bytes"
    most: int = getattr(limits, name)
    if len(text) > most:  # before encoding: a text may be very large
        raise exceeded(kind, name, "too large,", f"{len(text)} characters", f"{most} bytes")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "a constraint holds half a surrogate pair, which no UTF-8 text can hold",
            value=f"{kind}, character {error.start}",
            hint="Use whole characters.",
        ) from error
    if size > most:
        raise exceeded(kind, name, "too large,", f"{size} bytes", f"{most} bytes")


def check_document(kind: ConstraintKind, document: Any, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check depth, number of values, and enums of a parsed JSON document.

    Raises:
        InvalidRequest: a bound is exceeded.
    """
    values = 0
    todo: list[tuple[Any, int]] = [(document, 1)]
    while todo:
        value, depth = todo.pop()
        values += 1
        if not isinstance(value, Mapping | list):
            continue
        if depth > limits.depth:
            raise exceeded(kind, "depth", "nested", f"{depth} levels", limits.depth)
        if values + len(value) > limits.json_values:
            raise exceeded(
                kind, "json_values", "values", f"more than {limits.json_values}", limits.json_values
            )
        if isinstance(value, Mapping):
            for pattern in _patterns(value):
                check_repeats(kind, pattern, limits)
            enum = value.get("enum")
            if isinstance(enum, list) and len(enum) > limits.enum_values:
                raise exceeded(
                    kind, "enum_values", "values of an enum", len(enum), limits.enum_values
                )
            todo += [(item, depth + 1) for item in value.values()]
        else:
            todo += [(item, depth + 1) for item in value]


def check_repeats(kind: ConstraintKind, pattern: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check the bounds of repetitions within each other.

    Args:
        pattern: a pattern of any dialect, or a text that holds some. In the syntax that
            `regex_dialect.to_automaton_regex` writes nothing is overlooked.

    Raises:
        InvalidRequest: the product of nested bounds is too large.
    """
    found = repeat_product(pattern)
    if found > limits.repeat_product:
        raise exceeded(
            kind, "repeat_product", "repetitions of repetitions", found, limits.repeat_product
        )


def repeat_product(pattern: str) -> int:
    """Largest product of the bounds of repetitions that hold each other; `*` and `+` count 1."""
    if pattern.count("{") < 2:
        return max(_highest(pattern, pattern.find("{")), 1) if "{" in pattern else 1
    groups: list[int] = []  # largest product so far in each open group
    best = last = 1  # of the current group; of the item just read
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            named = pattern[at + 1 : at + 2] in "xpPuN" and pattern[at + 2 : at + 3] == "{"
            at, last = max(pattern.find("}", at) if named else 0, at + 1), 1
        elif char == "[":
            at, last = max(pattern.find("]", at), at), 1
        elif char == "(":
            groups.append(best)
            best = 1
        elif char == ")":
            last, best = best, max(best, groups.pop() if groups else 1)
        elif char == "{":
            last *= max(_highest(pattern, at), 1)
            best = max(best, last)
            at = max(pattern.find("}", at), at)
        elif char not in "*+?|":
            last = 1
        at += 1
    return best


def _highest(pattern: str, at: int) -> int:
    """The highest bound of the repetition at a brace; 0 when it is no repetition."""
    found = _BOUNDED_REPEAT.match(pattern, at)
    return max((int(bound) for bound in found.groups() if bound), default=0) if found else 0


def _patterns(schema: Mapping[str, Any]) -> list[str]:
    """Patterns of a schema, as far as this is one."""
    by_name = schema.get("patternProperties")
    found = list(by_name) if isinstance(by_name, Mapping) else []
    pattern = schema.get("pattern")
    return [*found, pattern] if isinstance(pattern, str) else found


def check_mask_time(
    constraint: Constraint, seconds: float, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Check what the first mask took.

    Raises:
        UnsupportedConstraint: too long: every request with this constraint would hold up others.
    """
    if seconds > limits.mask_s:
        raise UnsupportedConstraint(
            f"{constraint.kind}: the first mask takes {seconds:.2f} s (limit mask_s "
            f"{limits.mask_s:g})",
            value=constraint.text,
            hint="Simplify it.",
        )


def is_tame(constraint: Constraint, grammar: str) -> bool:
    """True for what was made of a JSON schema when an engine surely loads it in a short time.

    What makes an engine's work long are large bounds within each other and sheer size.
    """
    if constraint.kind != "json_schema" or len(grammar) > _TAME_BYTES:
        return False
    if _has_large_bound(constraint.text):
        return False
    todo: list[Any] = [json.loads(constraint.text)]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            if any(repeat_product(pattern) > _CHEAP_PRODUCT for pattern in _patterns(value)):
                return False
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    return True


def is_cheap(constraint: Constraint) -> bool:
    """True for constraints whose compile is surely short, so that none need be tried in a worker.

    Short texts in a dialect that is compiled lazily, without large numbers and with small bounds:
    bounds are what makes a short text expensive, and nested they are worth the product of all at
    most.
    """
    text = constraint.text
    if constraint.kind in ("ebnf", "structural_tag") or len(text) > _CHEAP_BYTES:
        return False
    if constraint.kind == "choices":  # nothing in them is a bound
        return True
    if constraint.kind != "regex" and _has_large_bound(text):  # a pattern's stand in braces
        return False
    product = 1
    for low, high in _BOUNDED_REPEAT.findall(_NAMED_CHARACTER.sub("", text)):
        product *= max(int(high or 0), int(low or 0), 1)
    return product <= _CHEAP_PRODUCT


def _has_large_bound(document: str) -> bool:
    """True when a JSON Schema, or a grammar with some in it, may repeat something many times."""
    return _LARGE_NUMBER.search(_VALUE_BOUND.sub("", document)) is not None
