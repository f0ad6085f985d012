"""Matching a text against a constraint without a model: the engine of decoding, byte by byte.

Invariant: what is called full is exactly what decoding under the constraint may end with, since the
same backends compile it; each byte is a token here. Needs no torch and no model, but the packages
of the grammar engines, which are loaded at the first match.
"""

from __future__ import annotations

import atexit
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from branchline.lang.errors import InvalidRequest, UnsupportedFeature
from branchline.lang.grammar import as_grammar
from branchline.lang.types import resolve
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from branchline.runtime.grammar.backends import ChosenGrammar, GrammarBackends

Status = Literal["full", "prefix", "none"]
KEPT = 256
"""Compiled constraints that are kept."""


class Match(msgspec.Struct, frozen=True):
    """How a text matches a constraint.

    Attributes:
        status: "full" = as it is; "prefix" = with more text; "none" = never.
        value: the typed instance when full.
        captures: value of each capture by name, when full.
        error_at: offset of the first impossible character when "none".
    """

    status: Status
    value: Any = None
    captures: dict[str, Any] = {}
    error_at: int | None = None

    def __bool__(self) -> bool:
        return self.status == "full"


class Found(NamedTuple):
    """What the engine says of a text; see `Match`."""

    status: Status
    error_at: int | None = None


def match(constraint: object, text: str) -> Match:
    """How `text` matches anything that `gen` takes as a type; a str is that text.

    Raises:
        InvalidRequest: `text` is none.
        UnsupportedConstraint: the constraint cannot be enforced; names what.
        ConstraintError: the text matches, but a class's own validation refuses it.
        UnsupportedFeature: the grammar engine is not installed.
    """
    if not isinstance(text, str):
        raise InvalidRequest(
            "only a text can match", value=text, hint="Call match(constraint, text)."
        )
    kind = resolve(str if constraint is None else as_grammar(constraint))
    found = Found("full") if kind.constraint is None else engine_match(kind.constraint, text)
    if found.status != "full":
        return Match(found.status, error_at=found.error_at)
    value = kind.value(text, truncated=False)
    return Match("full", value, kind.captured(text, truncated=False))


def engine_match(constraint: Constraint, text: str) -> Found:
    """What the engine says of `text`. Raises as `match`, and InvalidRequest beyond a limit."""
    matcher = _compiled(constraint).matcher()
    for at, char in enumerate(text):
        if "\ud800" <= char <= "\udfff":  # half a character: no output has one
            return Found("none", at)
        if not all(matcher.accept(byte) for byte in char.encode()):
            return Found("none", at)
    return Found("full" if matcher.is_accepting() else "prefix")


def installed() -> bool:
    """Whether texts can be matched here."""
    try:
        _engine()
    except UnsupportedFeature:
        return False
    return True


@cache
def _engine() -> GrammarBackends:
    """The process's engine for bytes: compiled constraints are worth keeping."""
    try:
        from branchline.runtime.grammar.backends import GrammarBackends
    except ImportError as error:
        raise UnsupportedFeature(
            "matching needs the grammar engine, which is not installed",
            value=error.name,
            hint="Install it: pip install 'branchline[runtime]'.",
        ) from error
    engine = GrammarBackends(ByteTokenizer(), threads=1)
    atexit.register(engine.close)  # it may have a worker process
    return engine


@lru_cache(maxsize=KEPT)
def _compiled(constraint: Constraint) -> ChosenGrammar:
    return _engine().compile(constraint)
