"""The benchmarks of constraints run to the end on a tiny scale."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec

from branchline.runtime.bench.grammar_cost import cases, grammar_cost
from branchline.runtime.bench.grammar_isolation import isolation, varied
from branchline.runtime.bench.hostile_constraints import corpus
from branchline.runtime.grammar.choice import installed


class ByteVocabulary:
    """256 bytes and an end id."""

    vocab_size = 257
    eos_ids = frozenset({256})
    special_ids: frozenset[int] = frozenset()

    def all_token_bytes(self) -> list[bytes]:
        return [*(bytes([i]) for i in range(256)), b"<eos>"]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_costs_are_reported_for_every_backend() -> None:
    stream = io.StringIO()
    costs = grammar_cost(ByteVocabulary(), 257, repeats=1, stream=stream)
    assert [cost.backend for cost in costs] == ["auto", *installed()]
    assert len(costs[0].compiles) == len(cases())
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("{")]
    assert {msgspec.json.decode(line)["work"] for line in lines} == {"grammar"}
    assert len(lines) == len(costs)


def test_hostile_constraints_can_be_varied_without_end() -> None:
    for hostile in corpus():
        texts = {varied(hostile.constraint, number).text for number in range(5)}
        assert len(texts) == 5
        assert all(hostile.constraint.text in text for text in texts)


def test_a_stream_lives_beside_hostile_constraints(default_model: Path) -> None:
    stream = io.StringIO()
    rows = isolation({"model": str(default_model)}, tokens=60, threads=2, repeats=1, stream=stream)
    assert [row.name for row in rows] == ["nothing", "first use", "plain", "hostile"]
    assert all(len(row.gaps) == 58 for row in rows)
    assert rows[3].ends.total() > 0
    assert stream.getvalue().splitlines()[-1].startswith("{")
