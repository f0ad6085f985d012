"""Hostile constraints end in a grammar or a typed error, in time, and this process lives on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from branchline.runtime.bench.hostile_constraints import Hostile, corpus
from branchline.runtime.errors import ConstraintError, InvalidRequest
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.limits import Limits

COMPILE_S = 3.0


class ByteVocabulary:
    """256 bytes and an end id."""

    vocab_size = 257
    eos_ids = frozenset({256})
    special_ids: frozenset[int] = frozenset()

    def all_token_bytes(self) -> list[bytes]:
        return [*(bytes([i]) for i in range(256)), b"<eos>"]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.fixture(scope="module")
def backend() -> Iterator[GrammarBackends]:
    made = GrammarBackends(ByteVocabulary(), limits=Limits(compile_s=COMPILE_S))
    yield made
    made.close()


@pytest.mark.parametrize("hostile", corpus(), ids=lambda hostile: hostile.name)
def test_it_ends_in_a_grammar_or_a_clear_error(backend: GrammarBackends, hostile: Hostile) -> None:
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    try:
        matcher = backend.compile(hostile.constraint).matcher()
    except (InvalidRequest, ConstraintError) as error:
        assert error.hint and str(error)
    else:
        mask = np.zeros((1, 9), dtype=np.int32)
        for token in hostile.feed.encode():
            backend.fill_masks([matcher], mask)
            if backend.failure(matcher):
                assert not mask.any()
                break
            if not matcher.accept(token):
                break
    assert time.monotonic() - begun < 3 * COMPILE_S + 5
    assert psutil.Process().memory_info().rss - before < 400 << 20


def test_names_are_distinct() -> None:
    names = [hostile.name for hostile in corpus()]
    assert len(set(names)) == len(names) >= 50
