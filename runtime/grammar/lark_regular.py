"""Grammars that are regular as one pattern. Invariant: it matches what the grammar allows.

Recognised are rules that refer to themselves at one end only, as repetitions are written out. The
result is one pattern and no expression over terminals: the engine fails on expressions in which two
ways to join literals make the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

Body = tuple[str, ...]
MOST_CHARS = 32_768


def one_pattern(
    start: str, rules: Mapping[str, Sequence[Body]], patterns: Mapping[str, str], blank: str
) -> str | None:
    """A pattern for the engine.

    Args:
        patterns: of the terminals.
        blank: a pattern for what may stand before each terminal and at the end; may be "".

    Returns:
        None if the rules are not seen to be regular, or the pattern would be too long.
    """
    needs = {
        name: {part for body in bodies for part in body if part in rules and part != name}
        for name, bodies in rules.items()
    }
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        return None
    found = {name: f"{blank}(?:{pattern})" for name, pattern in patterns.items()}
    for name in order:
        pattern = _solved(name, rules[name], found)
        if pattern is None or len(pattern) > MOST_CHARS:
            return None
        found[name] = pattern
    return found[start] + blank


def _solved(name: str, bodies: Sequence[Body], found: Mapping[str, str]) -> str | None:
    """A rule without itself; None if it refers to itself in the middle or at both ends."""
    bodies = [body for body in bodies if body != (name,)]
    plain = [body for body in bodies if name not in body]
    left = [body[1:] for body in bodies if body[:1] == (name,)]
    right = [body[:-1] for body in bodies if body[-1:] == (name,) and body[:1] != (name,)]
    if (left and right) or any(name in body for body in (*left, *right)):
        return None
    if len(plain) + len(left) + len(right) < len(bodies) or not plain:
        return None
    once = _either(plain, found)
    return f"{once}{_repeated(left, found)}" if left else f"{_repeated(right, found)}{once}"


def _repeated(bodies: Sequence[Body], found: Mapping[str, str]) -> str:
    return f"{_either(bodies, found)}*" if bodies else ""


def _either(bodies: Sequence[Body], found: Mapping[str, str]) -> str:
    parts = dict.fromkeys("".join(found[part] for part in body) for body in bodies)
    some = "|".join(part for part in parts if part)
    if "" not in parts:
        return f"(?:{some})"
    return f"(?:{some})?" if some else ""
