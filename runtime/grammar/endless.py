r"""Whether what must follow, by a grammar in the engine's notation, has an end.

The engine reads terminals by longest match: in `W W` with W = /a+/ nothing but another "a" may
come, and another, for ever; asking what must come would not return. That cannot be where all that
is repeated without an end is of many characters: the engine stops where there is a choice, so
within one round. Invariant: `may_force_for_ever` is true too often, never too rarely.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r'//.*|/((?:\\.|[^/\\])+)/([a-z]*)|"(?:\\.|[^"\\])*"')
"""A comment, a pattern with its flags, or a literal."""

_RULE = re.compile(r"[a-z]\w*(?:\[lazy\])?:.*")
_TERMINAL = re.compile(r"[A-Z]\w*:.*")
_PLAIN_RULE = re.compile(r"[a-z]\w*:[^/%]*")
"""A rule of names and literals: what it repeats is counted against the engine's limits."""

_SCHEMA = re.compile(r"\w+: %json \{.*\}")
_UNENDING = re.compile(r"[+*%~&]|\{\s*\d*\s*,")
"""What repeats without an end, or is read otherwise than as it stands, is written with these."""

_MANY = "|".join(
    (
        r"\.",
        r"\(\?s:\.\)",
        r"\(\.\|\\n\)",
        r"""\[\^(?:[ -,./0-Z_a-z]|\\[nrtfv\\\]"'/])*\]""",  # all but the few that are listed
        r"\[[^\]\\^-]*(?:a-z|A-Z|0-9)[^\]\\]*\]",
        r"\[ (?:\\[nrt])+\]",
        r"\\[dws]",
    )
)
"""One of many characters, so that no byte of it must come."""

_HARMLESS = re.compile(rf"\(\?s:\.[*+]\)|(?:{_MANY})(?:[*+]|\{{\d*,\}})|(\\.)")
"""Many characters, repeated; or one that is escaped, which stays."""

_TEXT = r"(?:[A-Za-z0-9]|\\x\{[0-9a-f]+\}|\[ \\t\\r\\n\]\*)+"
_FREE = re.compile(rf"/\(\?s:\.[*+]\)(?:{_TEXT})?/")
"""Any text, or any text up to a marker."""

_AVOIDED = re.compile(rf"/(?:\(\?s:\.\*\))?\(\?:({_TEXT}(?:\|{_TEXT})*)\)\(\?s:\.\*\)/")
"""What begins with one of some texts, or has one in it."""

_MOST_AVOIDED = 100
"""Each takes one byte from those that may come at a place."""


def may_force_for_ever(grammar: str) -> bool:
    """Whether to ask the engine what must follow by a grammar in its notation may not return."""
    return not all(map(_ends, grammar.splitlines()))


def _ends(line: str) -> bool:
    if '"x-guidance"' not in line and (_PLAIN_RULE.fullmatch(line) or _SCHEMA.fullmatch(line)):
        return True
    if not _UNENDING.search(line):
        return True
    body = line.partition(":")[2].strip()
    patterns = [token for token in _TOKEN.finditer(body) if token[1]]
    outside = _TOKEN.sub("", body)
    if _RULE.fullmatch(line):  # what rules repeat is counted against the engine's limits
        ends = not re.search("[%~&]", outside)
    elif _TERMINAL.fullmatch(line):
        if "&" in outside:
            return _is_any_text_but(body)
        ends = not _UNENDING.search(outside)
    else:
        return False
    return ends and all(_has_choices(pattern[1], pattern[2]) for pattern in patterns)


def _has_choices(pattern: str, flags: str) -> bool:
    """Whether all that a pattern repeats without an end is of many characters."""
    return not flags.strip("is") and not _UNENDING.search(_HARMLESS.sub(r"\1", pattern))


def _is_any_text_but(body: str) -> bool:
    """Whether a terminal is any text but certain ones: nearly any byte may come in it."""
    first, *others = re.split(r"(?<=/) & (?=~/)", body)
    avoided = [_AVOIDED.fullmatch(part.removeprefix("~")) for part in others]
    count = sum(found[1].count("|") + 1 for found in avoided if found)
    return bool(_FREE.fullmatch(first)) and all(avoided) and count <= _MOST_AVOIDED
