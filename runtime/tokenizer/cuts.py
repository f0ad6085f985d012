"""Where a text may be cut so that the ids of its parts, joined, are the text's.

A cut lies before a line break, behind a character after which this vocabulary always begins a new
piece there. That is tried out on samples once; what it rests on (pieces depend on nothing before
them, nothing is rewritten across a line break, no added token reaches over one) is read off the
vocabulary's own description. Where any of that is open, nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

_ENDS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    ".,:;!?)]}\"'`*-=/|_%"  # how lines end
)
_SAMPLES = ("ab{c}\nab", "ab{c}\n\nab", "ab {c}\n ab", "{c}{c}\n\tab", "ab{c}\n12", "a1{c}\n{c}a")
_LOCAL = frozenset({"Sequence", "Split", "ByteLevel", "Digits", "Punctuation"})
"""Pre-tokenizers that look at nothing but the characters around a place."""
_ANCHORS = ("(?<", "^", "$", "\\b", "\\B", "\\A", "\\G", "\\K", "\\z", "\\Z")
"""What in a pattern may see the beginning or end of a part, or what is before it."""
_SHORTEST = 64
"""Characters of a part at least: shorter ones are not worth a place in a cache."""


class Cuts:
    """Cuts texts for one vocabulary.

    Args:
        tokenizer: of the `tokenizers` package.
        text: its JSON.
    """

    def __init__(self, tokenizer: Any, text: bytes) -> None:
        self._ends = frozenset(_ends(tokenizer, text))

    def parts(self, text: str) -> list[str]:
        """The text in parts, joined the text itself; the first parts of two texts that begin alike
        are the same ones."""
        ends = self._ends
        if not ends or len(text) < 2 * _SHORTEST:
            return [text]
        found: list[str] = []
        start, at = 0, text.find("\n", _SHORTEST)  # a pattern would be tried at every character
        while at >= 0:
            if text[at - 1] in ends:
                found.append(text[start:at])
                start = at
                at = text.find("\n", at + _SHORTEST)
            else:
                at = text.find("\n", at + 1)
        found.append(text[start:])
        return found


def _ends(tokenizer: Any, text: bytes) -> str:
    """Characters after which a line break begins a new piece whatever is around them."""
    parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    normalizer, cutter = (
        msgspec.json.decode(parts[name]) if name in parts else None
        for name in ("normalizer", "pre_tokenizer")
    )
    if cutter is None or not _local(cutter) or not _composes_only(normalizer):
        return ""
    added = tokenizer.get_added_tokens_decoder().values()
    if any("\n" in token.content for token in added):
        return ""
    reaching = {token.content[-1:] for token in added if token.rstrip}
    cut = tokenizer.pre_tokenizer.pre_tokenize_str
    return "".join(c for c in _ENDS if c not in reaching and _always_cut(cut, c))


def _always_cut(pre_tokenize: Any, end: str) -> bool:
    """Whether all samples are cut between `end` and a line break."""
    for sample in _SAMPLES:
        text = sample.format(c=end)
        place = text.index("\n")
        if all(begin != place for _, (begin, _) in pre_tokenize(text)):
            return False
    return True


def _composes_only(normalizer: Any) -> bool:
    """Whether at most characters that combine are joined, which a line break does not."""
    if normalizer is None or normalizer.get("type") == "NFC":
        return True
    parts = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else None
    return parts is not None and all(map(_composes_only, parts))


def _local(cutter: Any) -> bool:
    """Whether no piece depends on anything before it."""
    return all(
        node["type"] in _LOCAL and not node.get("add_prefix_space") and not _looks_back(node)
        for node in _nodes(cutter)
    )


def _looks_back(node: dict[str, Any]) -> bool:
    """Whether a pattern asks for more than the characters it takes and those behind them."""
    pattern = node.get("pattern") or {}
    regex = pattern.get("Regex", "") if isinstance(pattern, dict) else pattern
    # an end of the text that only white space runs up to is no end of a part
    regex = regex.replace("[^", "[").replace("\\s+$", "").replace("\\s++$", "")
    return any(mark in regex for mark in _ANCHORS)


def _nodes(cutter: Any) -> Iterable[dict[str, Any]]:
    """A pre-tokenizer and all that it is made of."""
    yield cutter
    for child in cutter.get("pretokenizers", ()):
        yield from _nodes(child)
