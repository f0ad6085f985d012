"""What comes before a grammar, against brute force: a section, its gap, and text taken back."""

from __future__ import annotations

import re
import threading
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.core.section import Section
from branchline.runtime.errors import BranchlineError
from branchline.runtime.grammar.base import GrammarBackend
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend, engine_grammar
from branchline.runtime.grammar.service import GrammarService
from branchline.runtime.grammar.staged import StagedMatcher, Vocabulary
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from tests.grammar.conformance.test_matchers import bits, greedy, state
from tests.grammar.conformance.tiny_backends import tiny_outlines, tiny_xgrammar
from tests.grammar.conformance.tiny_vocabulary import (
    EOS,
    SPECIAL,
    TOKENS,
    TinyTokenizer,
    ids_to_bytes,
)

PAD = len(TOKENS) - 2
PATTERNS = ["1*", "(b|é)?a", "a{1,3}", "(?:1 |11)a*", "ba", ".{0,2}", r"\n?b"]
PREFIXES = ["a", "ab", " ", "1", "b"]
TINY = TinyTokenizer()


@cache
def tiny_llguidance() -> LLGuidanceBackend:
    return LLGuidanceBackend(TINY)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(TINY, len(TOKENS))


BACKENDS = {
    "llguidance": tiny_llguidance,
    "xgrammar": tiny_xgrammar,
    "outlines": tiny_outlines,
}


def staged(
    backend: GrammarBackend, pattern: str | None, prefix: str = "", section: Section | None = None
) -> StagedMatcher:
    inner: TokenMatcher | None = None
    if pattern is not None:
        constraint = Constraint(kind="regex", text=pattern, prefix=prefix)
        inner = backend.compile(constraint).matcher()
    return StagedMatcher(inner, vocabulary().stages(prefix, section), TOKENS)


def viable(text: bytes, pattern: str, prefix: str) -> bool:
    """Whether some match of prefix and pattern begins with `text`, by trying short endings."""
    compiled = re.compile(re.escape(prefix) + f"(?:{pattern})", re.DOTALL)
    for length in range(4):
        for ending in product("ab1 é\n", repeat=length):
            try:
                whole = (text + "".join(ending).encode()).decode()
            except UnicodeDecodeError:
                try:
                    whole = (text + b"\xa9" + "".join(ending).encode()).decode()
                except UnicodeDecodeError:
                    continue
            if compiled.fullmatch(whole):
                return True
    return False


@pytest.mark.parametrize("name", sorted(BACKENDS))
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_first_token_extends_the_text_taken_back_and_can_go_on(
    name: str, prefix: str, pattern: str
) -> None:
    """The oracle: of all tokens that begin with the prefix, those that some match begins with."""
    pattern = pattern.replace(".", r"[\s\S]")
    matcher = staged(BACKENDS[name](), pattern, prefix)
    ordinary = [i for i in range(len(TOKENS)) if i not in SPECIAL and TOKENS[i]]
    begins = {i for i in ordinary if TOKENS[i].startswith(prefix.encode())}
    want = {i for i in begins if viable(TOKENS[i], pattern, prefix)}
    forced = matcher.forced_tokens()
    if forced:
        assert viable(ids_to_bytes(forced), pattern, prefix)
        want = {forced[0]}
    assert bits(matcher) == want
    assert not matcher.is_accepting() and not matcher.is_terminated()
    for token in range(len(TOKENS)):
        twin = matcher.fork()
        assert twin.accept(token) == (token in want), token
        if token in want:
            after = {i for i in ordinary if viable(TOKENS[token] + TOKENS[i], pattern, prefix)}
            assert twin.forced_tokens() or bits(twin) - set(EOS) == after


@pytest.mark.parametrize("prefix", PREFIXES)
def test_free_text_is_free_behind_its_first_token(prefix: str) -> None:
    matcher = staged(tiny_llguidance(), None, prefix)
    first = bits(matcher)
    assert first == {
        i for i, t in enumerate(TOKENS) if i not in SPECIAL and t.startswith(prefix.encode())
    }
    for token in first:
        twin = matcher.fork()
        assert twin.accept(token) and twin.is_accepting() and not twin.is_terminated()
        assert twin.active is None and bits(twin) == set(range(len(TOKENS)))
    assert not matcher.accept(EOS[0]) and not matcher.is_accepting()


def outside(text: bytes, end: bytes) -> bool:
    """Whether the section has ended before the end of `text`."""
    at = text.find(end)
    return at >= 0 and at + len(end) < len(text)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_a_section_is_free_text_that_ends_at_the_end_of_a_token(data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["a", "ab", "aba", "b1", "1 a", "<pad>"]))
    gap = data.draw(st.sampled_from([(), (3,), (4, 4), (PAD,)]))
    matcher = staged(tiny_llguidance(), "1+", "", Section(end=end, gap_ids=gap))
    marker, text, ids = end.encode(), b"", list[int]()
    while not text.endswith(marker) and len(ids) < 8:
        allowed = bits(matcher)
        want = {i for i in range(len(TOKENS)) if i not in EOS}
        want -= {i for i in want if outside(text + TOKENS[i], marker)}
        assert allowed == want, (text, end)
        assert not matcher.is_accepting() and matcher.forced_tokens() == []
        token = data.draw(st.sampled_from(sorted(allowed)))
        assert matcher.accept(token)
        ids.append(token)
        text += TOKENS[token]
    if not text.endswith(marker):
        return
    assert matcher.forced_tokens()[: len(gap)] == list(gap)
    for token in gap:
        assert bits(matcher) == {token} and not matcher.accept((token + 1) % len(TOKENS))
        assert matcher.accept(token)
    one, two = TOKENS.index(b"1"), TOKENS.index(b"11")
    assert bits(matcher) == {one, two} and not matcher.is_accepting()
    assert matcher.accept(one) and matcher.is_accepting()
    assert bits(matcher) == {one, two, *EOS}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rollback_and_forks_leave_no_trace(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from([None, Section(end="ab", gap_ids=(3, 4))]))
    prefix = "" if section is not None else data.draw(st.sampled_from(PREFIXES))
    pattern = data.draw(st.sampled_from([None, "[1a]{0,3}b", "1*"]))
    matcher = staged(tiny_llguidance(), pattern, prefix, section)
    states = [state(matcher)]
    for _ in range(data.draw(st.integers(0, 9))):
        token = data.draw(st.sampled_from(sorted(bits(matcher))))
        twin = matcher.fork()
        assert matcher.accept(token)
        assert state(twin) == states[-1]
        states.append(state(matcher))
        if matcher.is_terminated():
            break
    while len(states) > 1:
        back = data.draw(st.integers(1, len(states) - 1))
        matcher.rollback(back)
        del states[-back:]
        assert state(matcher) == states[-1]
    with pytest.raises(ValueError, match="take back"):
        matcher.rollback(1)


@pytest.mark.parametrize("pattern", ["ab1", "(ab|ba)1 a", "1+a"])
@pytest.mark.parametrize("prefix", ["", "b", "ab"])
def test_forced_tokens_change_nothing(pattern: str, prefix: str) -> None:
    section = None if prefix else Section(end="ba", gap_ids=(4, 4))
    matcher = staged(tiny_llguidance(), pattern, prefix, section)
    for salt in "abcdef":
        plain = greedy(matcher.fork(), salt, jump=False)
        assert greedy(matcher.fork(), salt, jump=True)[:12] == plain[:12]


# ---- the service


def served(constraint: Constraint, section: Section | None = None) -> TokenMatcher:
    there = threading.Event()
    got: list[TokenMatcher | BranchlineError] = []
    SERVICE.request(constraint, lambda result: (got.append(result), there.set())[0], section)
    assert there.wait(20)
    assert not isinstance(got[0], BranchlineError), got[0]
    return got[0]


SERVICE = GrammarService(
    lambda: LLGuidanceBackend(ByteTokenizer()), ByteTokenizer(), vocab_size=260, limit_s=10.0
)


def test_a_vocabulary_that_cannot_be_read_is_told_to_who_asked() -> None:
    class Broken(ByteTokenizer):
        def all_token_bytes(self) -> list[bytes]:
            raise KeyError("bug")

    service = GrammarService(
        lambda: LLGuidanceBackend(ByteTokenizer()), Broken(), vocab_size=260, limit_s=10.0
    )
    got: list[TokenMatcher | BranchlineError] = []
    arrived = threading.Event()

    def ready(result: TokenMatcher | BranchlineError) -> None:
        got.append(result)
        arrived.set()

    service.request(Constraint(kind="text", text="", prefix="x"), ready)
    assert arrived.wait(10)
    assert isinstance(got[0], BranchlineError) and "bug" in str(got[0])
    service.close()


def test_the_service_fills_rows_of_every_stage_at_once() -> None:
    digits = Constraint(kind="regex", text="[0-9]+")
    section = Section(end=">", gap_ids=(10,))
    thinking = served(digits, section)
    waiting = served(digits, section)
    assert waiting.accept(ord(">"))
    answering = served(digits, section)
    assert answering.accept(ord(">")) and answering.accept(10)
    healed = served(Constraint(kind="text", text="", prefix="x"))
    free = served(Constraint(kind="text", text="", prefix="x"))
    assert free.accept(ord("x"))
    plain = served(digits)
    rows = [thinking, None, waiting, answering, healed, free, plain]
    bitmask = SERVICE.fill(rows, len(rows))
    assert bitmask is not None
    found = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little")[:, :260]
    numbers = set(range(ord("0"), ord("9") + 1))
    assert set(np.flatnonzero(found[0]).tolist()) == set(range(260)) - ByteTokenizer().eos_ids
    assert found[1].all() and found[5].all()
    assert set(np.flatnonzero(found[2]).tolist()) == {10}
    assert set(np.flatnonzero(found[3]).tolist()) == numbers
    assert set(np.flatnonzero(found[4]).tolist()) == {ord("x")}
    assert set(np.flatnonzero(found[6]).tolist()) == numbers
    assert SERVICE.fill([free, None], 2) is None
    forced = SERVICE.fill([free, 65, plain, 255], 4)
    assert forced is not None
    found = np.unpackbits(forced.view(np.uint8), axis=1, bitorder="little")[:, :260]
    assert [np.flatnonzero(row).tolist() for row in found[[1, 3]]] == [[65], [255]]
    assert found[0].all() and set(np.flatnonzero(found[2]).tolist()) == numbers
    assert SERVICE.failure(thinking) == SERVICE.failure(free) == ""


def test_masks_do_not_depend_on_what_was_in_their_memory() -> None:
    digits = Constraint(kind="regex", text="[0-9]+")
    started, free = served(digits), served(Constraint(kind="text", text="", prefix="x"))
    assert started.accept(ord("1")) and free.accept(ord("x"))
    thinking = served(digits, Section(end="</t>", gap_ids=(10,)))
    rows: list[TokenMatcher | int | None] = [started, None, thinking, 70, free]
    wanted = SERVICE.fill(rows, len(rows))
    assert wanted is not None
    memory = np.full((9, wanted.shape[1]), 0x5A5A5A5A, dtype=np.int32)
    there = GrammarService(
        lambda: LLGuidanceBackend(ByteTokenizer()),
        ByteTokenizer(),
        vocab_size=260,
        limit_s=10.0,
        memory=lambda count: memory[:count],
    )
    there._manager = SERVICE._manager  # whose matchers these are
    found = there.fill(rows, len(rows))
    assert found is not None and np.shares_memory(found, memory)
    assert (found == wanted).all()


@pytest.mark.parametrize(
    ("constraint", "yes", "no"),
    [
        (Constraint(kind="json_schema", text='{"type": "integer"}', prefix="\n"), "\n12", "12"),
        (Constraint(kind="json_schema", text='{"enum": ["a"]}', prefix=' "'), ' ""a"', '"a"'),
        (Constraint(kind="lark", text='start: "a" "b"\n%ignore / +/', prefix=" "), " a b", "a b"),
        (Constraint(kind="choices", text='["a", "ab"]', prefix="a"), "aab", "ab "),
        (Constraint(kind="regex", text="(?i)ab", prefix="ab"), "abAB", "ABab"),
    ],
)
def test_every_kind_can_stand_behind_a_text(constraint: Constraint, yes: str, no: str) -> None:
    matcher = served(constraint)
    assert all(matcher.accept(byte) for byte in yes.encode()) and matcher.is_accepting()
    other = served(constraint)
    assert not (all(other.accept(byte) for byte in no.encode()) and other.is_accepting())


def test_a_constraint_is_tried_once_whatever_stands_before_it() -> None:
    tried: list[Constraint] = []

    def try_first(constraint: Constraint) -> bytes:
        tried.append(constraint)
        return engine_grammar(constraint).encode()

    backend = LLGuidanceBackend(ByteTokenizer(), try_first=try_first)
    large = Constraint(kind="regex", text="(?:[a-z]{1,200}[0-9]{1,200})")
    for prefix in ("", " ", "\n", " "):
        matcher = backend.compile(
            Constraint(kind="regex", text=large.text, prefix=prefix)
        ).matcher()
        assert all(matcher.accept(byte) for byte in f"{prefix}ab7".encode())
        assert matcher.is_accepting()
    assert tried == [large]
