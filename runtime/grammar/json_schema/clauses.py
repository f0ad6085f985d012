"""Which names of an object are present, as clauses. Invariant: simplifying changes no solution.

`settle` finds what is certain; `close` adds what follows, so that names can be decided one after
the other without ever coming to a dead end (directional resolution: Dechter and Rish, 1994).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from branchline.runtime.grammar.json_schema.sets import Clause

_MOST_CLAUSES = 400


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


def close(clauses: Iterable[Clause], order: Sequence[str]) -> frozenset[Clause] | None:
    """Clauses that say the same, for deciding the names in this order; None where too many.

    An empty clause among them means that nothing fulfils all.
    """
    found = set(clauses)
    places = {name: at for at, name in enumerate(order)}
    for at in sorted({places[name] for clause in found for name, _ in clause}, reverse=True):
        name = order[at]
        with_it = [clause for clause in found if _last(clause, places) == name]
        yes = [clause for clause in with_it if (name, True) in clause]
        no = [clause for clause in with_it if (name, False) in clause]
        for one in yes:
            for other in no:
                both = (one - {(name, True)}) | (other - {(name, False)})
                if not any((other_name, not has) in both for other_name, has in both):
                    found.add(both)
        if len(found) > _MOST_CLAUSES:
            return None
    return frozenset(found)


def _last(clause: Clause, places: Mapping[str, int]) -> str:
    return max((name for name, _ in clause), key=places.__getitem__, default="")


def last_name(clause: Clause, order: Sequence[str]) -> str:
    """The name of a clause that is decided last."""
    return _last(clause, {name: at for at, name in enumerate(order)})
