"""`match`: what it calls full is what constrained decoding may end with, offline."""

from __future__ import annotations

import datetime
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang import types
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.base import ids_of
from tests.lang import typed_values
from tests.lang.test_compositions import CARD, nodes, spelled
from tests.lang.typed_values import Node, Person, Point

WORDS = ["".join(word) for size in range(5) for word in product("ab", repeat=size)]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(nodes)
def test_status_agrees_with_brute_force_on_a_small_alphabet(node: Any) -> None:
    pattern = re.compile(spelled(node))
    full = {word for word in WORDS if pattern.fullmatch(word)}
    for word in WORDS:
        found = bl.match(bl.seq(node), word)
        assert (found.status == "full") == (word in full), (node, word)
        if any(other.startswith(word) for other in full):
            assert found.status != "none", (node, word)
        if found.status == "none":
            assert found.error_at is not None
            assert bl.match(bl.seq(node), word[: found.error_at]).status != "none"
            assert bl.match(bl.seq(node), word[: found.error_at + 1]).status == "none"


@settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_instances_written_as_json_match_and_come_back(data: st.DataObject) -> None:
    wanted, values = data.draw(typed_values.pairs)
    value = data.draw(values)
    text = json.dumps([typed_values.plain(value)], ensure_ascii=False)
    found = bl.match(list[wanted], text)
    assert found.status == "full"
    assert found.value == [value]
    assert bl.match(list[wanted], text[:-1]).status == "prefix"


@pytest.mark.parametrize(
    ("wanted", "text", "status", "value", "error_at"),
    [
        (str, "anything", "full", "anything", None),
        (None, "", "full", "", None),
        (int, "12", "full", 12, None),
        (int, "-", "prefix", None, None),
        (int, "1x", "none", None, 1),
        ("ab", "a", "prefix", None, None),
        (Literal["yes", "no"], "yes", "full", "yes", None),
        (datetime.date, "2023-02-29", "none", None, 9),
        (list[int], "[1, 2]", "full", [1, 2], None),
        (list[int], "[1,2]", "none", None, 3),
        (list[Literal[1, 2]], "[1, 2]", "full", [1, 2], None),
        (list[Literal[1, 2]], "[1.0]", "none", None, 2),
        ({"type": "boolean"}, "true", "full", True, None),
        (Person, '{"name": "é", "age": 151', "none", None, 23),
        (Node, '{"value": 1, "children": [{"value": 2}]}', "full", Node(1, [Node(2)]), None),
        (bl.regex("é+"), "éé", "full", "éé", None),
        (bl.regex("é+"), "é\udc00", "none", None, 1),
        (bl.choices(["a", "ab"]), "abc", "none", None, 2),
        (bl.until("."), "a.b", "none", None, 2),
        (bl.ebnf('root ::= "a" root | "b"'), "aab", "full", "aab", None),
        (int | bl.regex("x"), "x", "full", "x", None),
    ],
)
def test_match(wanted: Any, text: str, status: str, value: Any, error_at: int | None) -> None:
    found = bl.match(wanted, text)
    assert (found.status, found.value, found.error_at) == (status, value, error_at)
    assert bool(found) == (status == "full")


def test_captures_of_a_match() -> None:
    found = bl.match(CARD, 'Name: Bo\nAge: 41\n{"x": 1} a 7')
    assert found.captures == {"name": "Bo", "age": 41, "at": Point(1), "tags": ["a", 7]}
    assert bl.match(CARD, "Name: Bo\nAge: 4x").captures == {}


class PairTokenizer:
    """Bytes and many pairs and triples of them, as a trained tokenizer has."""

    def __init__(self, texts: Sequence[str]) -> None:
        data = [text.encode() for text in texts]
        parts = {t[i : i + size] for t in data for i in range(len(t)) for size in (2, 3)}
        self._tokens = [bytes([i]) for i in range(256)] + sorted(p for p in parts if len(p) > 1)
        self._tokens.append(b"<end>")
        self.vocab_size = len(self._tokens)
        self.eos_ids = frozenset({self.vocab_size - 1})
        self.special_ids = self.eos_ids
        self._longest = sorted(range(self.vocab_size - 1), key=lambda i: -len(self._tokens[i]))

    def all_token_bytes(self) -> list[bytes]:
        return self._tokens

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            ids.append(next(i for i in self._longest if data.startswith(self._tokens[i])))
            data = data[len(self._tokens[ids[-1]]) :]
        return ids


@pytest.mark.parametrize(
    "wanted",
    [
        CARD,
        Person,
        list[Point],
        int | None,
        datetime.datetime,
        bl.seq("<", bl.until("ab"), bl.repeat(int | bl.regex("[a-c]"), 1, 3), ">"),
        bl.seq(bl.capture("a", list[bool]), "\n", bl.capture("b", dict[str, int])),
    ],
)
def test_whatever_constrained_decoding_ends_with_is_a_full_match(wanted: Any) -> None:
    kind = types.resolve(wanted)
    assert kind.constraint is not None
    tokenizer = PairTokenizer(['{"name": "x", "born": "2020-02-29"}', "Name: Age: 12ab[], "])
    backends = GrammarBackends(tokenizer, threads=1)
    grammar = backends.compile(kind.constraint)
    mask = np.zeros((1, (tokenizer.vocab_size + 31) // 32), dtype=np.int32)
    source = random.Random(7)
    ended = 0
    for _ in range(12):
        matcher, data = grammar.matcher(), b""
        for _ in range(300):
            backends.fill_masks([matcher], mask)
            allowed = ids_of(mask[0], tokenizer.vocab_size)
            end = set(allowed) & tokenizer.eos_ids
            if matcher.is_terminated() or end == set(allowed) or (end and source.random() < 0.7):
                ended += 1
                assert bl.match(wanted, data.decode()).status == "full"
                break
            choice = [i for i in allowed if i not in end]
            short = [i for i in choice if tokenizer.all_token_bytes()[i] in b'ab"}],>\n']
            plain = [i for i in choice if tokenizer.all_token_bytes()[i].isascii()] or choice
            token = source.choice(short if short and source.random() < 0.5 else plain)
            assert matcher.accept(token)
            data += tokenizer.all_token_bytes()[token]
            text = data.decode(errors="ignore")
            assert bl.match(wanted, text).status in ("prefix", "full")
    backends.close()
    assert ended > 3


def test_the_mock_refuses_replies_that_no_model_could_write() -> None:
    @bl.function
    def program(s: bl.State, schema: dict[str, Any]) -> Any:
        s += bl.gen("x", json_schema=schema)
        return s["x"]

    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert program.run(schema, backend=bl.Mock('{"a": 1}')).result == {"a": 1}
    with pytest.raises(bl.ConstraintError, match="json_schema"):
        program.run(schema, backend=bl.Mock('{"a": 2}'))


def test_a_keyword_that_cannot_be_enforced_is_refused_by_name() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}
    with pytest.raises(bl.UnsupportedConstraint, match="uniqueItems"):
        bl.match(schema, "[]")


def test_matching_needs_no_torch_and_says_what_it_needs() -> None:
    program = """
import sys
sys.modules["torch"] = None
import branchline as bl
print(bl.match(list[int], "[1]").value, bl.match(int, "x").error_at)
"""
    absent = """
import sys
sys.modules["llguidance"] = None
import branchline as bl
try:
    bl.match(int, "1")
except bl.UnsupportedFeature as error:
    print("branchline[runtime]" in str(error))
"""
    shown = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        for text in (program, absent)
    ]
    assert [one.stdout.split() for one in shown] == [["[1]", "0"], ["True"]]


def test_only_a_text_can_match() -> None:
    with pytest.raises(bl.InvalidRequest, match="only a text"):
        bl.match(int, 5)  # type: ignore[arg-type]
