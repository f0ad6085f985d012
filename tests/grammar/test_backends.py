"""The choice of a backend, mixed batches, and matchers that are given up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np
import pytest

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar import choice
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.base import Bitmask
from branchline.runtime.grammar.choice import ABILITIES, BACKENDS, candidates
from branchline.runtime.grammar.limits import Limits
from branchline.runtime.grammar.state_matcher import StateMatcher
from tests.support.byte_vocabulary import ByteVocabulary

SAMPLES: dict[ConstraintKind, tuple[str, str, str]] = {
    "regex": ("a{2}b*", "aab", "ab"),
    "choices": ('["ab", "abc"]', "abc", "a"),
    "lark": ('start: "(" start ")" | "x"', "((x))", "((x)"),
    "ebnf": ('root ::= "(" root ")" | "x"', "((x))", "((x)"),
    "json_schema": ('{"type": "array", "items": {"type": "null"}}', "[null, null]", "[1]"),
    "structural_tag": (
        '{"format": {"type": "sequence", "elements": [{"type": "const_string", "value": "ab"}]}}',
        "ab",
        "a",
    ),
}
"""Kind -> a constraint, a text that it allows, one that it does not."""


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, GrammarBackends]]:
    made = {name: GrammarBackends(ByteVocabulary(), setting=name) for name in ("auto", *BACKENDS)}
    yield made
    for one in made.values():
        one.close()


def spells(matcher: TokenMatcher, text: str) -> bool:
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.accept(256)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("setting", ["auto", *BACKENDS])
def test_every_backend_enforces_what_the_table_says_and_refuses_the_rest(
    backends: dict[str, GrammarBackends], setting: str, kind: ConstraintKind
) -> None:
    text, yes, no = SAMPLES[kind]
    constraint = Constraint(kind=kind, text=text)
    able = [ability.backend for ability in ABILITIES[kind]]
    if setting != "auto" and setting not in able:
        with pytest.raises(UnsupportedConstraint, match=f"{setting}: does not enforce {kind}"):
            backends[setting].compile(constraint)
        return
    grammar = backends[setting].compile(constraint)
    assert grammar.choice.backend == (able[0] if setting == "auto" else setting)
    assert grammar.choice.why and grammar.constraint == constraint and grammar.memory_bytes > 0
    assert spells(grammar.matcher(), yes) and not spells(grammar.matcher(), no)


def test_the_choice_says_who_was_not_taken(backends: dict[str, GrammarBackends]) -> None:
    grammar = backends["auto"].compile(Constraint(kind="regex", text="a"))
    assert [refusal.backend for refusal in grammar.choice.refused] == ["xgrammar", "outlines"]
    assert all("by name" in refusal.why for refusal in grammar.choice.refused)


def test_a_backend_that_is_not_installed_is_named() -> None:
    with pytest.raises(UnsupportedConstraint, match="xgrammar: not installed") as caught:
        candidates(Constraint(kind="ebnf", text="x"), "auto", ("llguidance",))
    assert "branchline[grammars]" in caught.value.hint
    assert choice.installed() == BACKENDS


def test_errors_name_the_constraint_and_not_what_was_made_of_it(
    backends: dict[str, GrammarBackends],
) -> None:
    hasty = GrammarBackends(ByteVocabulary(), setting="outlines", limits=Limits(compile_s=0.5))
    with pytest.raises(UnsupportedConstraint, match="limit") as caught:
        hasty.compile(Constraint(kind="regex", text="(.*a.{14}){3}"))
    hasty.close()
    assert caught.value.value == "(.*a.{14}){3}"
    with pytest.raises(InvalidRequest, match="line 1"):
        backends["auto"].compile(Constraint(kind="ebnf", text="root ::= x"))


def test_the_report_names_kinds_limits_and_workers(backends: dict[str, GrammarBackends]) -> None:
    report = backends["auto"].report()
    assert report["setting"] == "auto" and "llguidance" in str(report["loaded"])
    assert json.loads(json.dumps(report))["kinds"]["ebnf"][0]["backend"] == "xgrammar"


def test_matchers_of_all_backends_share_a_batch(backends: dict[str, GrammarBackends]) -> None:
    """Rows of one bitmask, whoever fills them, as if each were filled alone."""
    backend = backends["auto"]
    matchers: list[TokenMatcher | None] = [None]
    for kind, (text, _, _) in SAMPLES.items():
        matcher = backend.compile(Constraint(kind=kind, text=text)).matcher()
        matchers += [matcher, None, matcher.fork()]
    mask: Bitmask = np.full((len(matchers), 9), 0x0F0F0F0F, dtype=np.int32)
    need = backend.fill_masks(matchers, mask)
    for row, one in enumerate(matchers):
        if one is None:
            assert not need[row] and (mask[row] == 0x0F0F0F0F).all()
            continue
        alone = np.zeros((1, 9), dtype=np.int32)
        assert need[row] and one.fill(alone, 0)
        assert (alone[0] == mask[row]).all()
        assert backend.failure(one) == ""
    with pytest.raises(TypeError):
        backend.failure(object())  # type: ignore[arg-type]


def test_a_slow_matcher_is_given_up_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = GrammarBackends(ByteVocabulary(), limits=Limits(mask_s=0.02))
    try:
        kinds: tuple[ConstraintKind, ...] = ("ebnf", "ebnf", "regex")
        slow, other, third = (
            backend.compile(Constraint(kind=kind, text=SAMPLES[kind][0])).matcher()
            for kind in kinds
        )
        assert isinstance(slow, StateMatcher)
        fill = type(slow.state).fill

        def dawdle(state: object, words: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
            if state is slow.state:
                until = time.thread_time() + 0.05
                while time.thread_time() < until:
                    pass
            fill(state, words)  # type: ignore[arg-type]

        monkeypatch.setattr(type(slow.state), "fill", dawdle)
        backend._slow.add("xgrammar")
        mask = np.zeros((3, 9), dtype=np.int32)
        for _ in range(4):
            backend.fill_masks([slow, other, third], mask)
            if backend.failure(slow):
                break
        assert "limit mask_s" in backend.failure(slow)
        assert not mask[0].any() and mask[1].any() and mask[2].any()
        assert not slow.accept(ord("x")) and not slow.is_accepting() and not slow.is_terminated()
        assert slow.forced_tokens() == [] and backend.failure(slow.fork())
        assert not backend.failure(other) and not backend.failure(third)
    finally:
        backend.close()


@pytest.mark.parametrize("prefix", ["", " "])
def test_a_constraint_that_no_text_satisfies_is_refused(
    backends: dict[str, GrammarBackends], prefix: str
) -> None:
    for text in ("start: a\na: a\n", "start: A\nA: /a/ & /b/\n"):
        constraint = Constraint(kind="lark", text=text, prefix=prefix)
        with pytest.raises(UnsupportedConstraint, match="no text satisfies"):
            backends["llguidance"].compile(constraint)
    for text in ('start: "a"?', "start: /a*/", 'start: " " "a"'):
        constraint = Constraint(kind="lark", text=text, prefix=prefix)
        backends["llguidance"].compile(constraint)
