"""Which backend enforces a constraint. Invariant: none is asked for what it was not found exact in.

`ABILITIES` says for each kind of constraint which backends enforce it exactly, best first, and why;
the conformance suite runs every pair in it. Costs: llguidance compiles almost anything in a
millisecond and bounds the work for each token; xgrammar's masks are cheaper when warm, but it
compiles slowly and its masks have no bound; outlines-core enumerates every token in every state.
A grammar is never moved to another backend because it is used often: they cut forced text into
tokens differently, and the output of a request must not depend on how often others asked.
Knows no engine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.base import Refusal

BACKENDS = ("llguidance", "xgrammar", "outlines")
PACKAGES = {"llguidance": "llguidance", "xgrammar": "xgrammar", "outlines": "outlines_core"}


class Ability(NamedTuple):
    """A backend for a kind of constraint.

    Attributes:
        auto: taken without being asked for by name.
        exact: what of the kind it enforces; "" = all that is not refused by every backend.
    """

    backend: str
    why: str
    auto: bool = True
    exact: str = ""


ABILITIES: dict[ConstraintKind, tuple[Ability, ...]] = {
    "regex": (
        Ability("llguidance", "lazy automaton: compiles in about 1 ms, bounded work a token"),
        Ability("xgrammar", "rewritten as a grammar", False, "no flag i"),
        Ability("outlines", "full automaton over tokens", False, "small automata"),
    ),
    "choices": (
        Ability("llguidance", "lazy automaton: compiles in about 1 ms, bounded work a token"),
        Ability("xgrammar", "rewritten as a grammar", False),
        Ability("outlines", "full automaton over tokens", False),
    ),
    "lark": (Ability("llguidance", "reads this dialect, bounded work a token"),),
    "ebnf": (Ability("xgrammar", "reads this dialect without a lexer"),),
    "json_schema": (
        Ability("llguidance", "ignores no keyword, bounded work a token"),
        Ability("xgrammar", "rewritten as a grammar", False, "types, lengths, enums, references"),
    ),
    "structural_tag": (
        Ability("xgrammar", "the only one with free text between tags", True, "text, not tokens"),
    ),
    "text": (),  # nothing is left to a backend: see `service`
}


class Candidates(NamedTuple):
    """Backends to try, in order, and those that are out of the question."""

    able: tuple[Ability, ...]
    refused: tuple[Refusal, ...]


def candidates(constraint: Constraint, setting: str, installed: Sequence[str]) -> Candidates:
    """What the setting and the kind of constraint leave.

    Args:
        setting: `grammar_backend`: "auto" or a backend's name.
        installed: names of backends whose package is there.

    Raises:
        UnsupportedConstraint: nothing; names each backend and why.
    """
    able: list[Ability] = []
    refused: list[Refusal] = []
    known = {ability.backend: ability for ability in ABILITIES[constraint.kind]}
    names = list(known) if setting == "auto" else [setting]
    for name in names:
        ability = known.get(name)
        if ability is None:
            refused.append(Refusal(name, f"does not enforce {constraint.kind} exactly"))
        elif name not in installed:
            refused.append(Refusal(name, "not installed (branchline[grammars])"))
        elif setting == "auto" and not ability.auto:
            refused.append(Refusal(name, f"{ability.why}: only when asked for by name"))
        else:
            able.append(ability if setting == "auto" else ability._replace(why="grammar_backend"))
    if not able:
        reasons = "; ".join(f"{refusal.backend}: {refusal.why}" for refusal in refused)
        others = [name for name in known if name != setting]
        hint = "Install branchline[grammars]." if "not installed" in reasons else ""
        raise UnsupportedConstraint(
            f"{constraint.kind}: no grammar backend for it ({reasons})",
            value=constraint.text,
            hint=hint or f"Set grammar_backend to auto or {' or '.join(others)}.",
        )
    return Candidates(tuple(able), tuple(refused))


def installed() -> tuple[str, ...]:
    """Backends whose package can be found; nothing is imported."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(PACKAGES[name]) is not None)


def explained(setting: str = "auto") -> dict[str, str]:
    """For each kind of constraint, who enforces it here and why, and why the others do not."""
    there = installed()
    found: dict[str, str] = {}
    for kind, abilities in ABILITIES.items():
        if not abilities:
            continue
        try:
            able, refused = candidates(Constraint(kind=kind, text=""), setting, there)
        except UnsupportedConstraint as error:
            found[kind] = error.message
            continue
        clauses = [f"{able[0].backend}: {able[0].why}"]
        clauses += [f"not {one.backend}: {one.why}" for one in refused]
        found[kind] = "; ".join(clauses)
    return found
