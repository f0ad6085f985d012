"""A vocabulary small enough to enumerate, and languages found by trying every text."""

from __future__ import annotations

import itertools
import re
from functools import cache

ALPHABET = "ab1 é\n"
LONGEST = 6
TOKENS: tuple[bytes, ...] = (
    *(bytes([i]) for i in b"ab1 \n"),
    b"\xc3",
    b"\xa9",
    "é".encode(),
    b"ab",
    b"aba",
    b"ba",
    b"1 ",
    b" a",
    b"b\xc3",
    b"\xa9a",
    b"11",
    b"",
    b"<eos>",
    b"<pad>",
    b"<end>",
)
EOS = (len(TOKENS) - 3, len(TOKENS) - 1)
SPECIAL = frozenset(range(len(TOKENS) - 3, len(TOKENS)))


class TinyTokenizer:
    """Longest token first."""

    def __init__(self) -> None:
        self.vocab_size = len(TOKENS)
        self.eos_ids = frozenset(EOS)
        self.special_ids = SPECIAL

    def all_token_bytes(self) -> list[bytes]:
        return list(TOKENS)

    def encode(self, text: str) -> list[int]:
        rest, ids = text.encode(), []
        order = sorted(set(range(len(TOKENS))) - SPECIAL, key=lambda i: -len(TOKENS[i]))
        while rest:
            found = next(i for i in order if TOKENS[i] and rest.startswith(TOKENS[i]))
            ids.append(found)
            rest = rest[len(TOKENS[found]) :]
        return ids


@cache
def texts() -> tuple[str, ...]:
    """Every text over the alphabet, up to the longest."""
    return tuple(
        "".join(chars)
        for length in range(LONGEST + 1)
        for chars in itertools.product(ALPHABET, repeat=length)
    )


@cache
def language(pattern: str) -> frozenset[bytes]:
    """Every text, as bytes, that Python says the pattern matches."""
    compiled = re.compile(pattern)
    return frozenset(text.encode() for text in texts() if compiled.fullmatch(text))


def prefixes(words: frozenset[bytes]) -> frozenset[bytes]:
    """Everything that a word begins with."""
    return frozenset(word[:end] for word in words for end in range(len(word) + 1))


def ids_to_bytes(ids: list[int]) -> bytes:
    """Text of ordinary ids."""
    return b"".join(TOKENS[i] for i in ids)
