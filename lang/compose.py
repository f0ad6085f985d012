"""A composition of constraints as one grammar text for the engine.

Whatever is regular becomes one terminal, which the engine matches exactly. JSON and context-free
parts become rules beside it; there the engine reads the longest terminal that fits, so a part that
could swallow the beginning of the next one is refused where that is plain to see (free text) and
shortens the language elsewhere. Invariant: what the text allows, the composition allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from branchline.lang.errors import UnsupportedConstraint
from branchline.lang.grammar import (
    Alt,
    Capture,
    Ebnf,
    Grammar,
    Json,
    JsonSchema,
    Lark,
    Literal,
    Optional,
    Repeat,
    Seq,
    StructuralTag,
    Until,
    children,
)
from branchline.runtime.core.sampling_params import Constraint, Whitespace
from branchline.runtime.grammar.regex_dialect import literal, to_automaton_regex

if TYPE_CHECKING:
    from branchline.lang.types import ValueType

Resolve = Callable[[object], "ValueType"]

ANYTHING = "/(?s:.*)/"


def to_constraint(node: Grammar, resolve: Resolve) -> Constraint:
    """What the engine is told of `node`.

    Args:
        resolve: how leaves are written.

    Raises:
        UnsupportedConstraint: a part that cannot be put together with others; names it.
        InvalidRequest: a pattern is malformed.
    """
    writer = _Writer(resolve)
    start = writer.rule(node, last=True)
    text = "\n".join([f"start: {start}", *writer.lines]) + "\n"
    return Constraint(kind="lark", text=text, whitespace=writer.whitespace or "fixed")


def lark_text(text: str, prefix: str = "") -> str:
    """A grammar in Lark's notation as the engine reads it; see `lark_reader.translate`."""
    from branchline.lang.lark_reader import translate

    return translate(text, prefix)


class _Writer:
    """Collects the rules and terminals of one text."""

    def __init__(self, resolve: Resolve) -> None:
        self.lines: list[str] = []
        self.whitespace: Whitespace | None = None  # of the JSON parts
        self._resolve = resolve
        self._names: dict[str, str] = {}

    def rule(self, node: Grammar, *, last: bool) -> str:
        """An expression of rules and terminals. `last`: nothing can follow."""
        terminal = self._terminal(node)
        if terminal is not None:
            return self._named("T", terminal, [node], last=last)
        match node:
            case Seq(parts=parts):
                return " ".join(self._sequence(parts, last=last))
            case Alt(branches=branches):
                return f"({' | '.join(self.rule(branch, last=last) for branch in branches)})"
            case Optional(body=body):
                return f"({self.rule(body, last=last)})?"
            case Repeat(body=body):
                return f"({self.rule(body, last=False)}){bounds(node)}"
            case Capture(body=body):
                return self.rule(body, last=last)
            case Lark(text=text):
                prefix = f"g{len(self.lines)}_"
                self.lines.append(lark_text(text, prefix))
                return f"{prefix}start"
            case Ebnf() | StructuralTag():
                raise _alone(node)
            case Literal() | Until():
                raise AssertionError("these are regular")
        constraint = self._resolve(node).constraint
        if constraint is None or constraint.kind != "json_schema":
            raise _alone(node)
        return self._json(constraint)

    def _json(self, constraint: Constraint) -> str:
        schema = json.loads(constraint.text)
        if schema is False:
            raise _alone(JsonSchema(constraint.text))
        if self.whitespace not in (None, constraint.whitespace):
            raise UnsupportedConstraint(
                "parts of one composition have different policies for white space",
                value=f"{self.whitespace}, {constraint.whitespace}",
                hint="Give all its JSON the same one: bl.json_schema(part, whitespace=…).",
            )
        self.whitespace = constraint.whitespace
        return self._once("j", "%json " + json.dumps({} if schema is True else schema))

    def _named(self, kind: str, body: str, nodes: Sequence[Grammar], *, last: bool) -> str:
        """The name of a terminal made of `nodes`."""
        if not last and any(has_free_text(node, self._resolve) for node in nodes):
            raise UnsupportedConstraint(
                "free text (str) before JSON or a grammar would take all that follows",
                value="str",
                hint="Say where it ends: bl.until(stop).",
            )
        return self._once(kind, body)

    def _once(self, kind: str, body: str) -> str:
        """The name of a rule or terminal; equal ones share one."""
        if body not in self._names:
            self._names[body] = f"{kind}{len(self._names)}"
            self.lines.append(f"{self._names[body]}: {body}")
        return self._names[body]

    def _sequence(self, parts: tuple[Grammar, ...], *, last: bool) -> list[str]:
        """Neighbours that are regular become one terminal."""
        found: list[str] = []
        groups = groupby(parts, key=lambda part: self._terminal(part) is not None)
        runs = [(regular, list(run)) for regular, run in groups]
        for at, (regular, run) in enumerate(runs):
            final = last and at == len(runs) - 1
            if regular:
                body = " ".join(self._terminal(part) or "" for part in run)
                found.append(self._named("T", body, run, last=final))
                continue
            for place, part in enumerate(run):
                found.append(self.rule(part, last=final and place == len(run) - 1))
        return found

    def _terminal(self, node: Grammar) -> str | None:
        """`node` as an expression of terminals; None when it is not regular."""
        match node:
            case Literal(text=text):
                return f"/{literal(text)}/"
            case Until(stop=stop):
                end = literal(stop)
                return f"(~/(?s:.*){end}(?s:.+)/ & /(?s:.*){end}/)"
            case Seq(parts=nodes):
                return self._joined(nodes, " ")
            case Alt(branches=nodes):
                return self._joined(nodes, " | ")
            case Optional(body=body):
                return self._suffixed(body, "?")
            case Repeat(body=body):
                return self._suffixed(body, bounds(node))
            case Capture(body=body):
                return self._terminal(body)
            case Lark() | Ebnf() | StructuralTag() | JsonSchema() | Json():
                return None
        constraint = self._resolve(node).constraint
        if constraint is None:
            return ANYTHING
        if constraint.kind == "regex":
            return f"/{to_automaton_regex(constraint.text)}/"
        if constraint.kind == "choices":
            return f"/(?:{'|'.join(map(literal, json.loads(constraint.text)))})/"
        return None

    def _joined(self, nodes: tuple[Grammar, ...], glue: str) -> str | None:
        found: list[str] = []
        for node in nodes:
            terminal = self._terminal(node)
            if terminal is None:
                return None
            found.append(terminal)
        return f"({glue.join(found)})"

    def _suffixed(self, node: Grammar, suffix: str) -> str | None:
        terminal = self._terminal(node)
        return None if terminal is None else f"({terminal}){suffix}"


def bounds(node: Repeat) -> str:
    """The quantifier of a repetition."""
    if node.high is None:
        return {0: "*", 1: "+"}.get(node.low, f"{{{node.low},}}")
    return f"{{{node.low},{node.high}}}"


def has_free_text(node: Grammar, resolve: Resolve) -> bool:
    """Whether a regular node has a part that takes any text."""
    if isinstance(node, (Literal, Until)):
        return False
    inner = children(node)
    if inner:
        return any(has_free_text(child, resolve) for child in inner)
    return resolve(node).constraint is None


def _alone(node: Grammar) -> UnsupportedConstraint:
    return UnsupportedConstraint(
        f"{type(node).__name__} cannot be part of a composition",
        value=node,
        hint="Use it alone, or write that part with bl.lark or bl.regex.",
    )
