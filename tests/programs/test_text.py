"""Texts that programs append: what is kept of them costs what it may, and is what it was."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from branchline.runtime.programs.text import MAX_TOOL_SET_BYTES, TextEncoder, TurnTexts
from branchline.runtime.responses import ToolSpec
from tests.support.scripted_port import SimpleTurns

TEXTS: dict[str, Callable[[int], str]] = {
    "short": lambda i: f"q {i}",
    "sentences": lambda i: f"Tell me about item {i}, please. " * 3,
    "pages": lambda i: f"Tell me about item {i}, please. " * 200,
    "wide": lambda i: f"{i} 漢字漢字漢字" * 10,
}
MAX_BYTES = 400_000


class Words:
    """Ids far above those that Python keeps once; counts what it encodes."""

    eos_ids: frozenset[int] = frozenset()
    bos_id = None
    vocab_size = 1 << 20

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self.encoded += 1
        step = 4 if text.isascii() else 1
        return [100_000 + ord(char) + special for char in text[::step]]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        raise AssertionError("nothing is decoded")


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_kept_takes_no_more_memory_than_it_may(kind: str) -> None:
    make = TEXTS[kind]
    count = 8 * MAX_BYTES // (300 + 10 * len(make(0)))
    encoder = TextEncoder(Words(), max_bytes=MAX_BYTES)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for index in range(count):
        encoder.encode(make(index))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert MAX_BYTES / 2 < after - before < 1.15 * MAX_BYTES


def test_a_text_that_comes_again_is_not_tokenized_again() -> None:
    words = Words()
    encoder = TextEncoder(words, max_bytes=3000)
    for _ in range(3):
        assert encoder.encode("constant") == tuple(Words().encode("constant"))
        for index in range(4):
            encoder.encode(f"text {index}")
    assert words.encoded == 5
    assert encoder.encode("constant", True) != encoder.encode("constant")
    assert (encoder.tokens_tokenized, encoder.tokens_cached) == (
        2 * 2 + 4 * 2,
        2 * 2 + 2 * 4 * 2 + 2,
    )


def test_texts_used_longest_ago_go_first_and_one_too_long_is_not_kept() -> None:
    words = Words()
    encoder = TextEncoder(words, max_bytes=1500)
    for text in ("a", "b", "c", "a", "d", "x" * 2000, "a"):
        encoder.encode(text)
    assert words.encoded == 5
    encoder.encode("b")
    assert words.encoded == 6, "made room for d"


def test_turns_are_made_once_for_each_set_of_tools_but_for_large_ones() -> None:
    made: list[int] = []

    class Counted(SimpleTurns):
        def with_tools(self, tools: Sequence[ToolSpec]) -> Counted:
            made.append(len(tools))
            return self

    turns = TurnTexts(Counted(), TextEncoder(Words()))
    small, large = ToolSpec(name="f"), ToolSpec(name="f", description="d" * MAX_TOOL_SET_BYTES)
    for tools in ((), (small,), (small,), (large,), (large,)):
        assert turns.begin([], "user", tools)[0].endswith("<|turn|>user\n")
    assert made == [1, 1, 1]
