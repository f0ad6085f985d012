"""Grammars in Lark's notation as the engine reads them."""

from __future__ import annotations

from branchline.lang.errors import UnsupportedConstraint


def translate(text: str, prefix: str = "") -> str:
    """The engine's text for a grammar.

    Raises `UnsupportedConstraint` for a grammar that is part of a composition (it has a prefix).
    """
    if prefix:
        raise UnsupportedConstraint(
            "a Lark grammar cannot be part of a composition", value=text, hint="Use it alone."
        )
    return text
