"""What was encoded leaves nothing behind, on however many threads: servers run for months."""

from __future__ import annotations

import random
import string
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec
import psutil
import pytest

from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import source_of, spaced_metadata

THREADS = 4
TEXTS = 3000
"""For each thread. What is kept of one text of `CHARS` letters would be 1 to 7 kB."""
CHARS = 200
MOST_PER_TEXT = 150
"""Bytes; 0 but for the allocator's own arenas."""


def byte_level_source() -> TokenizerSource:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    return _source(
        {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
    )


def unigram_source() -> TokenizerSource:
    pieces = [["<unk>", 0.0], *([char, -1.0] for char in "\u2581" + string.ascii_lowercase)]
    return _source(
        {"type": "Unigram", "unk_id": 0, "vocab": pieces},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"},
    )


def _source(model: dict[str, object], steps: dict[str, object]) -> TokenizerSource:
    parts = {"version": "1.0", "added_tokens": [], "model": model}
    return TokenizerSource(msgspec.json.encode(parts | {"pre_tokenizer": steps, "decoder": steps}))


SOURCES = {
    "byte-level": byte_level_source,
    "spaced": lambda: source_of(spaced_metadata()),
    "unigram": unigram_source,
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("special", [False, True])
def test_texts_that_were_encoded_are_not_kept(kind: str, special: bool) -> None:
    tokenizer = Tokenizer(SOURCES[kind]())
    rng = random.Random(3)
    texts = ["".join(rng.choices("abcdefgh", k=CHARS)) for _ in range(THREADS * TEXTS)]
    all_here = Barrier(THREADS)

    def encode(some: list[str]) -> None:
        all_here.wait(30)  # so that each part is a thread's own
        for text in some:
            assert tokenizer.encode(text, special=special)

    process = psutil.Process()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(encode, [[texts[0]] * 500] * THREADS))
        before = process.memory_info().rss
        list(pool.map(encode, [texts[i::THREADS] for i in range(THREADS)]))
        grown = process.memory_info().rss - before
    assert grown / len(texts) < MOST_PER_TEXT
