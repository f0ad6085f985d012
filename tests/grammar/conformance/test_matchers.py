"""What every grammar backend must do, against languages enumerated with Python's `re`.

A new backend adds a factory to `BACKENDS`. Where text is forced only its canonical tokens are
allowed; everywhere else the mask must equal the enumeration token by token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.base import GrammarBackend
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from tests.grammar.conformance.tiny_backends import tiny_outlines, tiny_xgrammar
from tests.grammar.conformance.tiny_vocabulary import (
    EOS,
    LONGEST,
    TOKENS,
    TinyTokenizer,
    ids_to_bytes,
    language,
    prefixes,
)

BACKENDS: dict[str, Callable[[], GrammarBackend]] = {
    "llguidance": lambda: LLGuidanceBackend(TinyTokenizer()),
    "xgrammar": tiny_xgrammar,
    "outlines": tiny_outlines,
}
EXCLUDED = {"xgrammar": {"(?i)AB?": "flag 'i'"}}
"""Patterns that a backend refuses, as `choice.ABILITIES` says; by what it names."""

WORDS = -(-len(TOKENS) // 32)

PATTERNS = [
    r"ab",
    r"^ab$",
    r"a|ab|aba",
    r"(ab)*",
    r"a?b?1?",
    r"a{2,3}b",
    r"(?:a|b){3}",
    r"\d\d? a",
    r"\w+",
    r"\s?a\S",
    r"[^a\n]{1,3}",
    r".{2}",
    r"(?s).{1,2}",
    r"é+",
    r"(aé|bé)1",
    r"[aé]b",
    r"(?i)AB?",
    r"ab 1|ab 11|ab",
    r"(a|b)*?1",
    r"",
    r"a*",
    r"[ ]\w",
    r"ab(?:ab1|b)",
    r"\n+b{2}",
    r"[\D]b",
    r"^a|b$",
    r"\x61\u0062\141",
    r"ab{,2}",
]


def bits(matcher: TokenMatcher) -> set[int]:
    mask = np.full((3, WORDS), 0x55555555, dtype=np.int32)
    if not matcher.fill(mask, 1):
        return set(range(len(TOKENS)))
    assert (mask[[0, 2]] == 0x55555555).all()
    row = np.unpackbits(mask[1].view(np.uint8), bitorder="little")
    assert not row[len(TOKENS) :].any()
    return set(np.flatnonzero(row).tolist())


def start(backend: GrammarBackend, pattern: str) -> TokenMatcher:
    why = EXCLUDED.get(backend.name, {}).get(pattern)
    if why is not None:
        with pytest.raises(UnsupportedConstraint, match=why):
            backend.compile(Constraint(kind="regex", text=pattern))
        pattern = "[aA][bB]?"
    return backend.compile(Constraint(kind="regex", text=pattern)).matcher()


def state(matcher: TokenMatcher) -> tuple[object, ...]:
    return (
        tuple(sorted(bits(matcher))),
        matcher.is_accepting(),
        matcher.is_terminated(),
        tuple(matcher.forced_tokens()),
    )


def expected(
    matcher: TokenMatcher, text: bytes, words: frozenset[bytes], viable: frozenset[bytes]
) -> set[int]:
    """Ids that must be allowed after `text`."""
    want = {i for i, token in enumerate(TOKENS[:-3]) if token and text + token in viable}
    want |= set(EOS) if text in words else set()
    forced = matcher.forced_tokens()
    if forced:
        assert forced[0] in want and text not in words
        return {forced[0]}
    return want


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> GrammarBackend:
    return BACKENDS[request.param]()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_mask_is_sound_and_complete(backend: GrammarBackend, pattern: str) -> None:
    """At every place reached: a token is allowed exactly when some match goes on with its bytes."""
    words = language(pattern)
    viable = prefixes(words)
    # Completions of a longer text may lie beyond the texts tried, unless there are none so long.
    deepest = LONGEST - 4 if any(len(word.decode()) == LONGEST for word in words) else LONGEST
    todo: list[tuple[TokenMatcher, bytes]] = [(start(backend, pattern), b"")]
    seen: set[bytes] = set()
    while todo:
        matcher, text = todo.pop()
        if text in seen or len(text.decode(errors="replace")) > deepest:
            continue
        seen.add(text)
        want = expected(matcher, text, words, viable)
        assert bits(matcher) == want, text
        assert matcher.is_accepting() == (text in words)
        assert matcher.is_terminated() == (want == set(EOS))
        for token in range(len(TOKENS)):
            twin = matcher.fork()
            assert twin.accept(token) == (token in want), (text, token)
            if token in want and token not in EOS:
                todo.append((twin, text + TOKENS[token]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_of_the_language_and_no_other_can_be_written(
    backend: GrammarBackend, pattern: str
) -> None:
    longest = 7
    found: set[bytes] = set()
    todo: list[tuple[TokenMatcher, bytes]] = [(start(backend, pattern), b"")]
    while todo:
        matcher, text = todo.pop()
        allowed = bits(matcher)
        if allowed & set(EOS):
            found.add(text)
        for token in allowed - set(EOS):
            longer = text + TOKENS[token]
            if len(longer) <= longest and len(todo) < 20_000:
                twin = matcher.fork()
                assert twin.accept(token)
                todo.append((twin, longer))
    short = {word for word in language(pattern) if len(word.decode()) <= 4 and len(word) <= 4}
    assert {word for word in found if len(word) <= 4} == short


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rollback_leaves_no_trace_and_forks_are_independent(
    backend: GrammarBackend, pattern: str
) -> None:
    rng = np.random.default_rng(len(pattern))
    for _ in range(5):
        matcher = start(backend, pattern)
        states = [state(matcher)]
        for _ in range(6):
            allowed = sorted(bits(matcher))
            token = int(rng.choice(allowed))
            assert not matcher.accept(TOKENS.index(b""))
            assert state(matcher) == states[-1]
            twin = matcher.fork()
            assert matcher.accept(token)
            assert state(twin) == states[-1]
            states.append(state(matcher))
            if token in EOS:
                assert matcher.is_terminated() and not matcher.accept(token)
                break
        end = matcher.fork()
        while len(states) > 1:
            back = int(rng.integers(1, len(states)))
            matcher.rollback(back)
            del states[-back:]
            assert state(matcher) == states[-1]
            assert state(end) != () and end.fork().is_terminated() == end.is_terminated()
        matcher.rollback(0)
        with pytest.raises(ValueError, match="take back"):
            matcher.rollback(1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_ahead_is_what_accepting_makes_of_a_fork(
    backend: GrammarBackend, pattern: str
) -> None:
    rng = np.random.default_rng(len(pattern))
    matcher = start(backend, pattern)
    for _ in range(5):
        before, going_on = state(matcher), []
        for token in range(len(TOKENS)):
            twin = matcher.fork()
            accepted = twin.accept(token)
            ahead = matcher.after(token)
            assert state(matcher) == before
            assert (ahead is not None) == accepted
            here, free = matcher.fork(), bool(rng.integers(2))
            mask = np.full((3, WORDS), 0x55555555, dtype=np.int32)
            seen = here.visit(token, mask, 1, free=free)
            assert (seen is not None) == accepted
            if ahead is None or seen is None:
                assert state(here) == before
                continue
            assert state(ahead) == state(twin) == state(here)
            ends, forced = twin.is_terminated(), twin.forced_tokens()
            assert list(seen.forced) == ([] if ends else forced)
            assert seen.masked == (not (ends or forced or (free and twin.is_accepting())))
            words = np.full((1, WORDS), 0x55555555, dtype=np.int32)
            if seen.masked:
                twin.fill(words, 0)
            assert np.array_equal(mask[1], words[0]) and (mask[[0, 2]] == 0x55555555).all()
            here.rollback(1)
            ahead.rollback(1)
            assert state(here) == state(ahead) == before
            if token not in EOS:
                going_on.append(twin)
        if not going_on:
            break
        matcher = going_on[int(rng.integers(len(going_on)))]


def greedy(matcher: TokenMatcher, salt: str, jump: bool) -> list[int]:
    """Decode with scores that depend on the tokens before; take forced tokens unseen if asked."""
    ids: list[int] = []
    while len(ids) < 12:
        forced = matcher.forced_tokens() if jump else []
        for token in forced:
            assert matcher.accept(token)
            ids.append(token)
        if not forced:
            key = f"{salt}{ids}".encode()
            score = hashlib.sha256(key).digest()
            token = max(bits(matcher), key=lambda i: score[i])
            assert matcher.accept(token)
            ids.append(token)
            if token in EOS:
                break
    return ids


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "ab(ab|1)abab", "(aba|bab)ab1 a", "b(ébab| 1 )aba11"]
)
def test_forced_tokens_never_change_greedy_output(backend: GrammarBackend, pattern: str) -> None:
    matcher = start(backend, pattern)
    for salt in "abcdefgh":
        plain = greedy(matcher.fork(), salt, jump=False)
        assert greedy(matcher.fork(), salt, jump=True)[:12] == plain[:12]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forced_tokens_begin_every_match(backend: GrammarBackend, pattern: str) -> None:
    words = language(pattern)
    matcher = start(backend, pattern)
    forced = ids_to_bytes(matcher.forced_tokens())
    assert all(word.startswith(forced) for word in words)
    for token in bits(matcher) - set(EOS):
        twin = matcher.fork()
        twin.accept(token)
        ahead = TOKENS[token] + ids_to_bytes(twin.forced_tokens())
        assert all(w.startswith(ahead) for w in words if w.startswith(TOKENS[token]))


@pytest.mark.parametrize(
    "choices",
    [
        ["a"],
        ["a", "ab", "aba"],
        ["", "a"],
        ["a1", "b1", "a1"],
        ["é", "éa", " é\n"],
        ["a b", "a\nb"],
    ],
)
def test_choices_are_exact(backend: GrammarBackend, choices: list[str]) -> None:
    matcher = backend.compile(Constraint(kind="choices", text=json.dumps(choices))).matcher()
    words = frozenset(choice.encode() for choice in choices)
    viable = prefixes(words)
    todo = [(matcher, b"")]
    while todo:
        matcher, text = todo.pop()
        want = expected(matcher, text, words, viable)
        assert bits(matcher) == want
        for token in want - set(EOS):
            twin = matcher.fork()
            assert twin.accept(token)
            todo.append((twin, text + TOKENS[token]))


def test_batch_filling_equals_filling_one_by_one(backend: GrammarBackend) -> None:
    matchers: list[TokenMatcher | None] = [None]
    for pattern in PATTERNS:
        matcher = start(backend, pattern)
        matchers += [matcher, None]
        moved = matcher.fork()
        moved.accept(min(bits(moved)))
        matchers.append(moved)
    mask = np.full((len(matchers), WORDS), 0x0F0F0F0F, dtype=np.int32)
    need = backend.fill_masks(matchers, mask)
    for row, matcher in enumerate(matchers):
        if matcher is None:
            assert not need[row] and (mask[row] == 0x0F0F0F0F).all()
            continue
        one = np.zeros((1, WORDS), dtype=np.int32)
        assert matcher.fill(one, 0) == need[row]
        assert (one[0] == mask[row]).all()
        assert backend.failure(matcher) == ""
