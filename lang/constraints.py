"""Constraint objects a program can give as a `type`: `regex(p)` and `choices([...])`.

They only carry what was asked for; `types.resolve` turns them into what a backend enforces.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from branchline.lang.errors import InvalidRequest, UnsupportedConstraint
from branchline.lang.markers import reject

MAX_CHOICES = 4096


class Regex(msgspec.Struct, frozen=True):
    """Output that matches a pattern as a whole. The value is the text."""

    pattern: str


class Choices(msgspec.Struct, frozen=True):
    """Output that is one of some texts, sampled under a mask. The value is the text."""

    items: tuple[str, ...]


def regex(pattern: str) -> Regex:
    """Output must match `pattern` as a whole.

    Raises `InvalidRequest` for an empty pattern and `UnsupportedConstraint` for anything but a str.
    """
    if not isinstance(pattern, str):
        raise UnsupportedConstraint(
            "a regex must be a str", value=pattern, hint="Give the pattern as text."
        )
    pattern = reject(pattern, "a regex")
    if not pattern:
        raise InvalidRequest("an empty regex allows no output", value=pattern, hint="Drop it.")
    return Regex(pattern)


def choices(items: Iterable[str]) -> Choices:
    """Output must be one of `items`, sampled under a mask (where `select` scores every item).

    Raises `InvalidRequest` for an empty, repeated or non-text item, or no item at all.
    """
    return Choices(checked_choices(items))


def checked_choices(items: Iterable[str]) -> tuple[str, ...]:
    """`items` as a tuple; `InvalidRequest` names what is wrong with them."""
    if isinstance(items, str):
        raise InvalidRequest(
            "choices is a single text", value=items, hint="Give a list of texts: choices=[...]."
        )
    texts = tuple(items)
    if not texts:
        raise InvalidRequest("choices is empty", value="[]", hint="Give at least one choice.")
    if len(texts) > MAX_CHOICES:
        raise InvalidRequest(
            "too many choices", value=len(texts), hint=f"Give at most {MAX_CHOICES}."
        )
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(
                f"a choice is a {type(text).__name__}", value=text, hint="Choices are texts."
            )
        if not text:
            raise InvalidRequest("a choice is empty", value=repr(texts), hint="Drop it.")
    texts = tuple(reject(text, "a choice") for text in texts)
    if len(set(texts)) != len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise InvalidRequest("a choice is given twice", value=twice, hint="Drop one of them.")
    return texts
