"""The page docs/structured_output.md, from the tables that the code itself goes by.

Invariant: what the page says is enforced, refused or limited is read from where it is decided.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import get_args

from branchline.lang.lark_reader import translate
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind, Whitespace
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.choice import ABILITIES, BACKENDS, PACKAGES
from branchline.runtime.grammar.json_schema.compiler import Support, layout_of, supported_keywords
from branchline.runtime.grammar.json_schema.lark import REGISTER_BITS
from branchline.runtime.grammar.json_schema.objects import MOST_ANY_ORDER
from branchline.runtime.grammar.json_schema.shapes import MOST_LISTED
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits
from branchline.runtime.grammar.llguidance_backend import engine_grammar
from branchline.runtime.grammar.regex_dialect import REFUSED_GROUPS
from branchline.runtime.grammar.structural_tag import FIELDS, engine_tag
from branchline.runtime.responses.reasoning import ALIASES, FORMATS

HEAD = """\
# Structured output

<!-- Written by `make docs` from the tables in runtime/grammar and tools/structured_page.py. -->

What each kind of constraint can say, what enforces it, what is refused and how that is named, and
every limit. How to ask for it in a program is in [language.md](language.md).

The promise: an output that ended by itself matches its constraint. A constraint is enforced in all
its parts or refused before the first token, with an error that names the part and its place. There
is no setting that turns this into best effort.

```python
import branchline as bl

flight = {
    "type": "object",
    "properties": {
        "origin": {"type": "string", "pattern": "^[A-Z]{3}$"},
        "seats": {"type": "integer", "minimum": 1, "maximum": 9},
        "cabin": {"enum": ["economy", "business"]},
    },
    "required": ["origin", "seats"],
    "if": {"properties": {"seats": {"minimum": 5}}},
    "then": {"required": ["cabin"]},
}
for text in ('{"origin": "PRG", "seats": 2}', '{"origin": "PRG", "seats": 6}', '{"origin": "Prg'):
    found = bl.match(flight, text)
    print(found.status, found.error_at)

try:
    bl.match({"type": "array", "items": {"$dynamicRef": "#node"}}, "[]")
except bl.UnsupportedConstraint as error:
    print(error.message)
    print(error.value)
```

```text
full None
none 28
none 13
json_schema: $dynamicRef at #/items cannot be enforced: its meaning depends on the way to it
$dynamicRef at #/items
```
"""
CHOICE = """
## Who enforces it

Each request's constraint goes to one backend, chosen by its kind. `s.meta("x").grammar` says which
one it was and why, `branchline env` what would be chosen on this machine. The setting
`grammar_backend` names another one; what that cannot enforce exactly, it refuses.
A constraint never moves to another backend because it is used often: an output must not depend on
that.
"""
REGEX = """
## Patterns

A `regex` is a Python pattern that describes the whole output. `^`, `\\A` at its start and `$`,
`\\Z` at its end change nothing; `\\d` is 0-9, `\\w` a letter or digit of any script or `_`, `.`
anything but a newline; of the flags `i` and `s` are read, as `(?i)` at the start or `(?i:…)`.
Quantifiers are greedy or lazy alike. Refused by name, with the position:
"""
JSON = """
## JSON Schema

Drafts 4 to 2020-12, by `$schema`; without it, the keywords of all of them. Keywords that only
describe (`title`, `description`, `default`, `examples`, …) are notes, as JSON Schema has it; so
are names of formats that it does not define. A text is accepted if it is JSON, names no property
of the schema twice, and its value is valid. (A name that is not listed may come again where that
cannot make the value invalid; the last one counts. Names count as listed where only LISTED or fewer
are possible, as with an `enum` under `propertyNames`.) Properties come in any order, the unlisted
ones once all that is required is there. That holds for FREE properties that a schema lists, for
fewer where they are counted (`minProperties`, `maxProperties`). Of up to MOST that are not, as few
as need be keep the order of the schema among themselves: the last ones on which no others depend.
Else all come in the order of the schema, the unlisted ones last. Where only whole numbers are
valid (`integer`, multiples of one, lists of them) they are plain digits: `1`, not `1.0`, which JSON
Schema takes for the same but no `int` field reads. Other numbers have no exponent where a bound
could be crossed.
`pattern` is searched for, as ECMA-262 reads it.
"""
WHITE = """
## White space in JSON

A policy for each request: `bl.json_schema(schema_or_type, whitespace="compact")`, the field
`whitespace` of the HTTP routes. None of them allows white space without end; all JSON of one
constraint has the same.
"""
TAGS = """
## Structural tags

Free text in which tags begin structured parts. Of each type these fields are read; another field,
and types that name tokens, are refused by name. The items of `tags` are tags whether
or not they say so. The older form (`structures`, `triggers`) is read, too.
"""
GRAMMARS = """
## Grammars

`lark` is Lark's own notation with rules, terminals, templates, `%import common`, `%ignore` and
priorities (which order the readings of a text and forbid none). Terminals are read wherever they
fit, not by longest match; where they overlap what follows them, a grammar without nesting becomes
one pattern, and in others those terminals are read by character, at about three times the work.
Ignored text may stand before each terminal and at the end; if it may hold any character, as
comments do, it ends where it must, not where it could. `ebnf` is GBNF with the start rule
`root`. Rules without an end, undefined rules and unreadable lines are refused with their place.

```python
sums = bl.lark('start: NUMBER ("+" NUMBER)*\\n%import common.INT -> NUMBER')
print(bl.match(sums, "1+22").status, bl.match(sums, "1+").status, bl.match(sums, "+").status)
```

```text
full prefix none
```
"""
LIMITS = """
## Limits

A constraint beyond a limit is refused with the limit's name, what was found, and the most that is
allowed. What may take long is compiled in a worker process that is killed at its limit of time or
memory; other requests go on.
"""
COST = """
## What it costs

`branchline bench grammar` measures it here: constrained beside free text, time to the first mask,
masks, forwards for each token; `--schemas FILE.jsonl` takes your own schemas and tells which of
them are exact, `--isolation` shows a stream beside hostile constraints. Text that a grammar
forces takes no forward of its own: `s.meta("x").forced_tokens` and `.forwards` count. Put the
properties that decide most first, and give strings a `maxLength`: a model that does not stop by
itself is stopped.
"""

REFUSALS = """
## What a refusal says

Each of these was given to the code; the last column is its answer.
"""
REASONING = """
## Reasoning

A section of reasoning is free text before the constraint begins. Its format is found by the model's
own chat template; `reasoning_format` or `gen(..., reasoning=)` names one.
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
    ("regex", "(?x)a b"),
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
    keywords = [one for one in supported_keywords() if not one.name.startswith("format: ")]
    formats = [one for one in supported_keywords() if one.name.startswith("format: ")]
    parts = [HEAD, CHOICE, "\n", _table(("constraint", "backend", "why", "covers"), _abilities())]
    parts.append("\nBackends are packages: ")
    parts.append(", ".join(f"{name} is `{PACKAGES[name]}`" for name in BACKENDS))
    parts.append(".\nAll but the first come with `branchline[grammars]`.\n")
    parts += [
        JSON.replace("MOST", str(MOST_ANY_ORDER))
        .replace("FREE", str(REGISTER_BITS))
        .replace("LISTED", str(MOST_LISTED)),
        "\n",
        _table(("keyword", "", "only"), _support(keywords)),
    ]
    parts += ["\n", _table(("format", "", "why"), _support(formats))]
    parts += [WHITE, "\n", _table(("policy", "between items", "after a name"), _layouts())]
    parts += [REGEX, "\n", *(f"- {name}\n" for name in REFUSED_GROUPS.values())]
    parts.append("- word boundary `\\b`, backreference `\\1`, possessive quantifiers\n")
    parts += [GRAMMARS, TAGS, "\n", _table(("type", "fields it must have", "may have"), _tags())]
    parts += [REFUSALS, "\n", _table(("kind", "example", "error"), _refusals())]
    parts += [REASONING, "\n"]
    parts += [_table(("format", "begins", "ends", "also called"), _reasoning())]
    parts += [LIMITS, "\n", _table(("limit", "value", "of"), _limits()), COST]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _refusals() -> list[list[str]]:
    return [
        [f"`{kind}`", f"`{text.replace(chr(10), ' ⏎ ')}`", refusal(kind, text)]
        for kind, text in REFUSED
    ]


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


def _reasoning() -> list[list[str]]:
    rows = []
    for one in FORMATS.values():
        others = ", ".join(name for name, format in ALIASES.items() if format == one.name)
        rows.append([f"`{one.name}`", f"`{one.begin}`", f"`{one.end}`", others])
    return rows


def _abilities() -> list[list[str]]:
    return [
        [
            f"`{kind}`" if at == 0 else "",
            one.backend,
            one.why if one.auto else f"{one.why}; only when asked for by name",
            one.exact or "all that is not refused below",
        ]
        for kind, abilities in ABILITIES.items()
        for at, one in enumerate(abilities)
    ]


def _support(found: Sequence[Support]) -> list[list[str]]:
    return [
        [f"`{one.name.removeprefix('format: ')}`", one.status, one.note]
        for one in sorted(found, key=lambda one: (one.status == "refused", one.name))
    ]


def _layouts() -> list[list[str]]:
    rows = []
    for policy in get_args(Whitespace):
        layout = layout_of(policy, DEFAULT_LIMITS.whitespace_run)
        name = f"`{policy}` (the default)" if policy == "fixed" else f"`{policy}`"
        if layout.white:
            room = f"up to {layout.white} characters around"
            rows.append([name, f"`,` and {room}", f"`:` and {room}"])
        else:
            rows.append([name, f'`"{layout.item}"`', f'`"{layout.key}"`'])
    return rows


def _tags() -> list[list[str]]:
    return [
        [f"`{kind}`", *(", ".join(f"`{name}`" for name in sorted(some)) for some in both)]
        for kind, both in FIELDS.items()
    ]


def _limits() -> list[list[str]]:
    meanings: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(Limits) or "").partition("Attributes:\n")[2].splitlines():
        found = re.fullmatch(r" {4}(\w+): (.*)", line)
        if found is not None:
            name = found[1]
            meanings[name] = found[2]
        elif name:
            meanings[name] += " " + line.strip()
    return [
        [f"`{item.name}`", f"{getattr(DEFAULT_LIMITS, item.name):,}", meanings[item.name].strip()]
        for item in fields(Limits)
    ]
