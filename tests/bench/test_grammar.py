"""The benchmarks of constraints run to the end on a tiny scale."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from branchline.runtime.bench import grammar_cost
from branchline.runtime.bench.grammar import grammar
from branchline.runtime.bench.grammar_cost import cases, figures
from branchline.runtime.bench.grammar_isolation import isolation, varied
from branchline.runtime.bench.grammar_schemas import verdicts
from branchline.runtime.bench.hostile_constraints import corpus
from branchline.runtime.bench.schema_set import Instance, Sample, own, read
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.grammar.choice import installed
from tests.grammar.json_schema.harness import valid
from tests.support.byte_vocabulary import ByteVocabulary


@pytest.mark.timeout(300)  # workers compile when nobody else wants the core
def test_costs_are_reported_for_every_backend_and_the_bare_packages() -> None:
    stream = io.StringIO()
    costs = grammar_cost.grammar_cost(ByteVocabulary(), 257, repeats=1, stream=stream)
    bare = ["llguidance bare", "xgrammar bare"]
    assert [cost.backend for cost in costs] == ["auto", *installed(), *bare]
    assert len(costs[0].compiles) == len(cases())
    assert all(len(cost.compiles) >= 5 and cost.masks for cost in costs)
    found = figures(costs)
    assert found["auto"]["mask_max_us"] >= found["auto"]["mask_p99_us"] > 0
    assert all(cost.backend in stream.getvalue() for cost in costs)


def test_the_set_of_schemas_holds_for_its_values() -> None:
    samples = own()
    assert len({sample.id for sample in samples}) == len(samples) > 10
    for sample in samples:
        assert [valid(sample.schema, one.data) for one in sample.tests] == [True, False], sample
    found = verdicts(samples)
    assert (found.exact, found.leaks, found.refuse, found.refused) == (len(samples), {}, {}, {})


def test_verdicts_name_what_is_not_exact() -> None:
    wrong = [
        Sample("leak", {"type": "integer"}, [Instance(False, 1)]),
        Sample("refuse", {"type": "integer"}, [Instance(True, "a"), Instance(True, "b")]),
        Sample("refused", {"$dynamicRef": "#a"}, []),
    ]
    found = verdicts(wrong)
    assert (found.exact, found.leaks, found.refuse) == (0, {"leak": "1"}, {"refuse": '"a"'})
    assert "$dynamicRef" in found.refused["refused"]


def test_a_set_of_schemas_is_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(
        '{"id": "a", "split": "x", "schema": {}, "tests": [{"valid": true, "data": [1]}]}\n\n'
        '{"id": "b\u2028", "schema": false}\n',
        encoding="utf-8",
    )
    assert read(str(path)) == [Sample("a", {}, [Instance(True, [1])]), Sample("b\u2028", False)]
    for text in ("[", '{"id": 1, "schema": {}}', '{"id": "a"}'):
        path.write_text(text)
        with pytest.raises(InvalidRequest, match="no set of schemas") as raised:
            read(str(path))
        assert "JSON lines" in raised.value.hint
    with pytest.raises(InvalidRequest, match="No such file"):
        read(str(tmp_path / "nothing"))


@pytest.mark.timeout(300)
def test_one_command_reports_all_in_its_last_line(
    default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [case for case in cases() if case.kind in ("choices", "structural_tag")]
    monkeypatch.setattr(grammar_cost, "cases", lambda: few[::2])
    stream = io.StringIO()
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(sample) for sample in own()[:3]))
    settings = {"model": str(default_model), "kv_tokens": 9000}
    grammar(settings, schemas=str(path), at_once=2, repeats=1, stream=stream)
    line = msgspec.json.decode(stream.getvalue().splitlines()[-1])
    assert line["work"] == "grammar" and line["schemas"] == line["exact"] == 3
    assert line["leaks"] == line["refused"] == 0
    runs = line["throughput"]
    assert runs["free"]["out_tok"] == 2 * 120 and runs["free"]["forwards_per_tok"] == 1.0
    for name in ("json32", "json32, compact", "tool call"):
        assert runs[f"free, as long as {name}"]["out_tok"] == runs[name]["out_tok"]
        assert runs[name]["forwards_per_tok"] < 0.9 and runs[name]["forced"] > 0.1
        assert runs[name]["throughput_to_free_cpu"] > 0
    assert line["first_mask_p99_ms_wall"] > 0 and line["first_mask_p99_ms_cpu"] > 0
    assert line["backends"]["auto"]["compile_p99_ms"] > 0


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
