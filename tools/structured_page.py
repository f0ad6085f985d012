"""The text of docs/structured_output.md, from the tables that the code itself goes by.

What is refused is found by asking: each example is given to the code, and its own message is what
the page says. An example that is refused no longer is an error here.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchline.lang.lark_reader import translate
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.choice import ABILITIES
from branchline.runtime.grammar.json_schema.compiler import supported_keywords
from branchline.runtime.grammar.limits import DEFAULT_LIMITS
from branchline.runtime.grammar.llguidance_backend import engine_grammar
from branchline.runtime.grammar.structural_tag import engine_tag
from branchline.runtime.responses.reasoning import ALIASES, FORMATS

HEAD = """\
# Structured output

<!-- Written by `make docs` from tables of runtime/grammar and runtime/responses: edit those. -->

What an output can be made to match, by whom, and what is refused. How constraints are written is in
[language.md](language.md). The rule behind all of it: an output that ended by itself matches its
constraint; what cannot be enforced is refused with `UnsupportedConstraint` before a token is
generated, naming it and its place. Nothing is ignored.
"""

REFUSED: tuple[tuple[ConstraintKind, str], ...] = (
    ("regex", "(?<=a)b"),
    ("regex", "(?<!a)b"),
    ("regex", "(?=a)b"),
    ("regex", "(?!a)b"),
    ("regex", r"(a)\1"),
    ("regex", "(?P<x>a)(?P=x)"),
    ("regex", r"\bword\b"),
    ("regex", "a++"),
    ("regex", "(?>a)b"),
    ("regex", "(?m)a"),
    ("regex", "(a$)b"),
    ("regex", "a^b"),
    ("regex", "(a)?(?(1)b|c)"),
    ("lark", "start: A\n%declare A"),
    ("lark", "start: A\nA: /a(?=b)/"),
    ("json_schema", '{"type": "array", "items": {"type": "string"}, "uniqueItems": true}'),
    ("json_schema", '{"$dynamicRef": "#a"}'),
    ("json_schema", '{"$ref": "https://example.com/schema"}'),
    ("json_schema", '{"type": "string", "format": "idn-email"}'),
    ("structural_tag", '{"type": "structural_tag", "format": {"type": "token", "token": 5}}'),
)
"""One text for each thing that is refused."""


def page() -> str:
    """The whole text of the page."""
    parts = [HEAD, _backends(), _keywords(), _refusals(), _reasoning(), _limits()]
    return "\n".join(parts)


def _table(title: str, text: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"## {title}\n", f"{text}\n", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _backends() -> str:
    rows = [
        (f"`{kind}`", one.backend, "yes" if one.auto else "by name", one.exact or "all", one.why)
        for kind, abilities in ABILITIES.items()
        for one in abilities
    ]
    text = (
        "The setting `grammar_backend` names one of them for everything; with `auto`, each request "
        "gets the\nfirst that enforces its kind exactly. Types are `regex`, `choices` or "
        "`json_schema`; compositions are `lark`."
    )
    return _table("Backends", text, ("kind", "backend", "auto", "covers", "why"), rows)


def _keywords() -> str:
    rows = [
        (f"`{one.name.removeprefix('format: ')}`", one.status, one.note)
        for one in supported_keywords()
        if not one.name.startswith("format: ")
    ]
    formats = [one for one in supported_keywords() if one.name.startswith("format: ")]
    table = _table(
        "JSON Schema",
        "Drafts 4 to 2020-12. Keywords that are not listed mean nothing to validation.",
        ("keyword", "status", "note"),
        rows,
    )
    names = ", ".join(f"`{one.name[8:]}`" for one in formats if one.status == "enforced")
    refused = ", ".join(f"`{one.name[8:]}` ({one.note})" for one in formats if one.note)
    return f"{table}\nFormats that are asserted: {names}. Refused: {refused}. Others are notes.\n"


def _refusals() -> str:
    rows = [
        (f"`{kind}`", f"`{text.replace(chr(10), ' ⏎ ')}`", refusal(kind, text))
        for kind, text in REFUSED
    ]
    text = "Each of these was given to the code; the last column is its answer."
    return _table("What is refused", text, ("kind", "example", "error"), rows)


def refusal(kind: ConstraintKind, text: str) -> str:
    """What the code says of a constraint that it cannot enforce.

    Raises:
        AssertionError: it can.
    """
    try:
        if kind == "structural_tag":
            engine_tag(text)
        elif kind == "lark":
            translate(text)
        else:
            engine_grammar(Constraint(kind=kind, text=text))
    except UnsupportedConstraint as error:
        return error.message
    raise AssertionError(f"{kind} is not refused any more: {text}")


def _reasoning() -> str:
    rows = []
    for one in FORMATS.values():
        others = ", ".join(name for name, format in ALIASES.items() if format == one.name)
        rows.append((f"`{one.name}`", f"`{one.begin}`", f"`{one.end}`", others))
    text = (
        "Found by the model's own chat template; `reasoning_format` or `gen(..., reasoning=)` "
        "names one."
    )
    return _table("Reasoning", text, ("format", "begins", "ends", "also called"), rows)


def _limits() -> str:
    rows = [(f"`{name}`", f"{value:,}") for name, value in DEFAULT_LIMITS.as_dict().items()]
    text = (
        "A constraint beyond one of these is an `InvalidRequest` or `UnsupportedConstraint` that "
        "names the limit.\nMeanings: `runtime/grammar/limits.py`."
    )
    return _table("Limits", text, ("limit", "most"), rows)
