"""Lists of literal choices: read once for every backend. Knows no backend."""

from __future__ import annotations

import json

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits


def read_choices(text: str, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """The distinct choices, in order.

    Args:
        text: a JSON array of strings.

    Raises:
        InvalidRequest: it is not, or has none or too many.
    """
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"choices: not JSON ({error})", value=text, hint="Give a JSON array of strings."
        ) from error
    if (
        not isinstance(choices, list)
        or not 1 <= len(choices) <= limits.enum_values
        or not all(isinstance(choice, str) for choice in choices)
    ):
        raise InvalidRequest(
            "choices: not a list of texts within the limit enum_values",
            value=text,
            hint=f"Give a JSON array of 1 to {limits.enum_values} strings.",
        )
    for choice in choices:
        if any("\ud800" <= char <= "\udfff" for char in choice):
            raise InvalidRequest(
                "a constraint holds half a surrogate pair, which no UTF-8 text can hold",
                value=repr(choice),
                hint="Use whole characters.",
            )
    return list(dict.fromkeys(choices))
