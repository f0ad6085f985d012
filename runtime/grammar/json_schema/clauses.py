"""Which names of an object are present, as clauses. Invariant: simplifying changes no solution.

`settle` finds what is certain; `close` adds what follows, so that names can be decided one after
the other, in any order, without ever coming to a dead end: some names can be present together
exactly when no clause says that one of them is absent (implicates: Quine, 1955).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from branchline.runtime.grammar.json_schema.sets import Clause

_MOST_CLAUSES = 400
_MOST_STEPS = 4000


class Settled(NamedTuple):
    """Names that are surely present and surely absent, and what else must hold."""

    present: frozenset[str]
    absent: frozenset[str]
    open: frozenset[Clause]


def settle(clauses: Iterable[Clause], absent: frozenset[str]) -> Settled | None:
    """Follow clauses of one literal as far as they lead; None where they contradict.

    Args:
        clauses: what must hold.
        absent: names that cannot be present.
    """
    known = dict.fromkeys(absent, False)
    left = set(clauses)
    while True:
        after: set[Clause] = set()
        grown = False
        for clause in left:
            if any(known.get(name) == has for name, has in clause):
                continue
            rest = frozenset(literal for literal in clause if literal[0] not in known)
            if not rest:
                return None  # also an empty clause to begin with
            if any((name, not has) in rest for name, has in rest):
                continue
            if len(rest) == 1:
                ((name, has),) = rest
                known[name] = has
                grown = True
            else:
                after.add(rest)
        left = after
        if not grown:
            break
    return Settled(
        frozenset(name for name, has in known.items() if has),
        frozenset(name for name, has in known.items() if not has),
        frozenset(left),
    )


def close(clauses: Iterable[Clause]) -> frozenset[Clause] | None:
    """All that follows, without what follows from a part of it; None where too much.

    An empty clause is all there is when nothing fulfils all.
    """
    found: list[Clause] = []
    todo = sorted(clauses, key=sorted)
    steps = 0
    while todo:
        one = todo.pop()
        steps += 1
        if any(other <= one for other in found):
            continue
        found = [other for other in found if not one <= other]
        for name, has in sorted(one):
            for other in found:
                if (name, not has) in other:
                    both = (one - {(name, has)}) | (other - {(name, not has)})
                    if not any((same, not there) in both for same, there in both):
                        todo.append(both)
        found.append(one)
        if len(found) > _MOST_CLAUSES or steps > _MOST_STEPS:
            return None
    return frozenset(found)


def last_name(clause: Clause, order: Sequence[str]) -> str:
    """The name of a clause that is decided last."""
    return max((name for name, _ in clause), key=order.index)
