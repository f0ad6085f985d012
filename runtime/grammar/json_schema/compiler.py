"""The way from the text of a JSON Schema to a grammar. Invariant: exact, or refused by name.

A text is in the grammar iff it is JSON in the layout asked for, without a listed name twice in one
object, and its value is valid; formats that JSON Schema names are asserted, others are notes.
Spellings outside the grammar: a fraction of zeros (`1.0`) or an exponent where only whole numbers
are valid, and exponents where a bound could be crossed.
"""

from __future__ import annotations

from typing import NamedTuple

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.json_schema.document import Document
from branchline.runtime.grammar.json_schema.expander import ENFORCED, REFUSED, Effort, Expander
from branchline.runtime.grammar.json_schema.formats import FORMATS, REFUSED_FORMATS
from branchline.runtime.grammar.json_schema.lark import COMPACT, SPACED, Layout
from branchline.runtime.grammar.json_schema.printer import Printer

DEFAULT_EFFORT = Effort()


def compile_schema(text: str, *, layout: Layout = SPACED, effort: Effort = DEFAULT_EFFORT) -> str:
    """A Lark grammar for llguidance.

    Args:
        text: a JSON Schema (drafts 4 to 2020-12; without `$schema`, keywords of all of them).
        layout: separators and order of the properties.
        effort: bounds on the work.

    Raises:
        InvalidRequest: no schema, or too large.
        UnsupportedConstraint: a keyword that cannot be enforced, with its path; or no value is
            valid.
    """
    try:
        document = Document(text)
        expander = Expander(document, effort)
        printer = Printer(expander, effort, layout)
        try:
            grammar = printer.run(expander.state(document.root))
        finally:
            # They hold each other: what was made of the schema is freed here, not by a pass of the
            # garbage collector over everything there is.
            vars(printer).clear()
            vars(expander).clear()
    except RecursionError as error:
        raise InvalidRequest(
            "json_schema: the schema is nested too deep", hint="Use a flatter schema."
        ) from error
    if grammar is None:
        raise UnsupportedConstraint(
            "json_schema: no text satisfies the constraint",
            value=text,
            hint="Allow at least one value.",
        )
    return grammar


def layout_of(whitespace: Whitespace, run: int) -> Layout:
    """The layout for a request's white space, at most `run` characters in one place."""
    match whitespace:
        case "compact":
            return COMPACT
        case "flexible":
            return Layout(white=run)
    return SPACED


class Support(NamedTuple):
    """What is done with a keyword or format.

    `status` is enforced, partly (see `note`), refused or ignored (where JSON Schema has it so).
    """

    name: str
    status: str
    note: str = ""


_PARTLY = {
    "uniqueItems": "only where the items are of at most 62 scalar values, or surely differ",
    "unevaluatedItems": "only without $ref, allOf, anyOf, oneOf, not, if, contains beside it",
    "unevaluatedProperties": "only without $ref, allOf, anyOf, oneOf, not, if beside it",
    "multipleOf": "not negated, except multiples of 1",
    "pattern": "no lookbehind, no backreferences",
    "patternProperties": "no lookbehind, no backreferences",
    "contains": "at most 3 at one place",
    "$ref": "only within the document",
}


def supported_keywords() -> list[Support]:
    """Every keyword that means something here, and every format that asserts something."""
    found = [
        Support(name, "partly" if name in _PARTLY else "enforced", _PARTLY.get(name, ""))
        for name in ENFORCED
    ]
    found += [Support(name, "refused", note) for name, note in sorted(REFUSED.items())]
    found += [Support(f"format: {name}", "enforced") for name in sorted(FORMATS)]
    found += [
        Support(f"format: {name}", "refused", note)
        for name, note in sorted(REFUSED_FORMATS.items())
    ]
    return found
