"""Split laws: text and stops do not depend on how ids or characters arrive."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from branchline.runtime.core.section import Section
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.detokenizer import TextState
from branchline.runtime.tokenizer.incremental import IncrementalDecoder, StopChecker, StopHit
from branchline.runtime.tokenizer.stop_regex import compile_stop_regex
from branchline.runtime.tokenizer.tokenizer import Tokenizer

LAW = settings(deadline=None, derandomize=True, max_examples=200)
SHORT = st.text(alphabet="ab", min_size=1, max_size=4)


def cut(items: Sequence[int] | str, sizes: list[int]) -> Iterator[Sequence[int] | str]:
    at = 0
    for size in sizes:
        yield items[at : at + size]
        at += size
    yield items[at:]


SIZES = st.lists(st.integers(0, 4), max_size=12)


@LAW
@given(ids=st.lists(st.integers(0, 259), max_size=30), sizes=SIZES)
def test_any_split_of_bytes_decodes_to_the_same_text(ids: list[int], sizes: list[int]) -> None:
    tokenizer = ByteTokenizer()
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push(list(part)) for part in cut(ids, sizes)]
    parts.append(decoder.push([], finished=True))
    assert "".join(parts) == tokenizer.decode(ids)
    assert not decoder.pending


@LAW
@given(data=st.data(), sizes=SIZES)
def test_any_split_of_model_tokens_decodes_to_the_same_text(
    smol: Tokenizer, data: st.DataObject, sizes: list[int]
) -> None:
    ids = data.draw(st.lists(st.integers(0, smol.vocab_size - 1), max_size=20))
    decoder = IncrementalDecoder(smol)
    parts = [decoder.push(list(part)) for part in cut(ids, sizes)]
    parts.append(decoder.push([], finished=True))
    assert "".join(parts) == smol.decode(ids)


def test_incomplete_characters_are_held_back() -> None:
    decoder = IncrementalDecoder(ByteTokenizer())
    assert [decoder.push([byte]) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert decoder.push([0xF0]) == ""
    assert decoder.pending
    assert decoder.push([], finished=True) == "\ufffd"


def earliest(text: str, stops: list[str], pattern: str | None) -> tuple[int, int] | None:
    """(end, start) of the stop that is complete first, by trying everything."""
    compiled = re.compile(pattern, re.DOTALL) if pattern else None
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if compiled is not None:
            starts += [s for s in range(end) if compiled.fullmatch(text, s, end)][:1]
        if starts:
            return end, min(starts)
    return None


@LAW
@given(text=st.text(alphabet="abc", max_size=20), stops=st.lists(SHORT, max_size=3), sizes=SIZES)
def test_stop_strings_are_found_where_brute_force_finds_them(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    checker = StopChecker(stops)
    out, hits = "", []
    for part in cut(text, sizes):
        delta, hit = checker.feed(str(part))
        out += delta
        hits += [hit] if hit else []
    if not hits:
        delta, hit = checker.feed("", finished=True)
        assert hit is None
        out += delta
    expected = earliest(text, stops, None)
    if expected is None:
        assert (out, hits) == (text, [])
    else:
        end, start = expected
        assert hits == [StopHit("string", text[start:end], start)]
        assert out == text[:start]


def regexes() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\w", r"\d", "(?:ab)", "^a", ""])

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        counts = st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?", "+?"])
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
            st.tuples(inner, counts).map(lambda pair: f"({pair[0]}){pair[1]}"),
        )

    return st.recursive(atoms, extend, max_leaves=6)


@LAW
@given(text=st.text(alphabet="abc1\n", max_size=12), pattern=regexes(), sizes=SIZES)
def test_stop_patterns_agree_with_re_and_hold_back_enough(
    text: str, pattern: str, sizes: list[int]
) -> None:
    pattern = f"(?s){pattern}"
    try:
        checker = StopChecker([], compile_stop_regex(pattern))
    except InvalidRequest as error:
        assert "empty text" in str(error)
        assert re.match(pattern, "") is not None
        return
    out, hits = "", []
    for part in cut(text, sizes):
        delta, hit = checker.feed(str(part))
        out += delta
        hits += [hit] if hit else []
    if not hits:
        out += checker.feed("", finished=True)[0]
    expected = earliest(text, [], pattern)
    if expected is None:
        assert (out, hits) == (text, [])
    else:
        end, start = expected
        assert hits == [StopHit("regex", text[start:end], start)]
        assert out == text[:start]


def test_text_that_cannot_begin_a_match_is_shown_at_once() -> None:
    checker = StopChecker(["END"], compile_stop_regex(r"\n\d+\."))
    fed = ["one", "\n", "1", "x EN", "D"]
    shown = [checker.feed(piece) for piece in fed]
    assert [text for text, _ in shown] == ["one", "", "", "\n1x ", ""]
    assert shown[-1][1] == StopHit("string", "END", 7)
    assert checker.feed("more") == ("", None)


def test_patterns_are_linear_where_backtracking_explodes() -> None:
    import time

    checker = StopChecker([], compile_stop_regex("(a+)+b"))
    started = time.monotonic()
    checker.feed("a" * 20000)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a*", "empty text"),
        ("(", "without its '\\)'"),
        (")", "without its '\\('"),
        ("[a", "without its '\\]'"),
        ("a$", "not generated yet"),
        (r"\bword", "not generated yet"),
        (r"(a)\1", "back-reference"),
        ("(?=a)b", "a group that is not"),
        ("a**", "repetition of a repetition"),
        ("*a", "nothing to repeat"),
        ("a++", "possessive"),
        ("a{3,2}", "below the lower"),
        ("a{1001}", "more than 1000"),
        ("(a{100}){100}", "too large"),
        ("[z-a]", "no order"),
        (r"\q", "unknown escape"),
        (r"\x1", "hexadecimal"),
        ("(" * 40 + "a" + ")" * 40, "deep"),
        ("a" * 1001, "longer than 1000"),
    ],
)
def test_patterns_that_cannot_be_kept_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        compile_stop_regex(pattern)


@pytest.mark.parametrize("pattern", [r"(?i)stop[x-z]", r"[\d\-\]]\s\S", r"\x41\u00e9\t\.", "a{x}"])
def test_syntax_agrees_with_re(pattern: str) -> None:
    for text in ["xxSTOPY", "stopz", "9 x", "- y", "]\nz", "Aé\t.", "a{x}", "a"]:
        checker = StopChecker([], compile_stop_regex(pattern))
        hit = checker.feed(text)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = re.search(pattern, text)
        assert (hit is None) == (found is None)
        if hit is not None and found is not None:
            assert hit.offset == found.start()


STOPS = st.lists(SHORT, max_size=2)
BYTES = st.lists(st.sampled_from([*b"abab\xc3\xa9", 257, 259]), max_size=16)


@LAW
@given(
    ids=BYTES,
    stops=STOPS,
    pattern=st.sampled_from([None, "ab+a", "b.a"]),
    stop_ids=st.sampled_from([(), (259,)]),
    min_tokens=st.integers(0, 5),
    keep=st.booleans(),
    sizes=SIZES,
)
def test_outputs_do_not_depend_on_the_split(
    ids: list[int],
    stops: list[str],
    pattern: str | None,
    stop_ids: tuple[int, ...],
    min_tokens: int,
    keep: bool,
    sizes: list[int],
) -> None:
    tokenizer = ByteTokenizer()

    def run(parts: list[list[int]], stream: bool) -> tuple[str, str, StopHit | None, list[int]]:
        state = TextState(
            tokenizer,
            stop=stops,
            stop_regex=pattern,
            keep_stop=keep,
            stop_ids=stop_ids,
            min_tokens=min_tokens,
            stream=stream,
        )
        deltas, found = [], None
        for part in parts:
            delta, hit = state.push(part)
            deltas.append(delta)
            found = found or hit
        delta, hit = state.push([], finished=True)
        deltas.append(delta)
        found = found or hit
        assert state.hit == found
        assert state.push([97]) == ("", None)
        return "".join(deltas), state.text, found, state.kept_ids()

    whole = run([ids], True)
    pieces = [list(part) for part in cut(ids, sizes)]
    assert run(pieces, True) == run([[i] for i in ids], True) == whole
    assert run(pieces, False) == whole
    joined, text, hit, kept = whole
    assert joined == text
    assert tokenizer.decode(kept) == text
    if hit is None:
        assert kept == ids
    elif hit.kind != "id":
        assert text[hit.offset :] == (hit.matched if keep else "")
        assert hit.offset + (len(hit.matched) if keep else 0) == len(text)
    if not min_tokens and not stop_ids:
        expected = earliest(tokenizer.decode(ids), stops, pattern)
        assert (None if hit is None else hit.offset) == (expected and expected[1])


def test_min_tokens_lets_early_stops_pass() -> None:
    state = TextState(ByteTokenizer(), stop=["ab"], min_tokens=3)
    assert state.push(list(b"abxaby")) == ("abx", StopHit("string", "ab", 3))
    assert state.kept_ids() == list(b"abx")


@LAW
@given(
    thought=st.text("ab>", max_size=6),
    answer=st.text("ab", max_size=8),
    stops=st.lists(SHORT, min_size=1, max_size=3),
    sizes=SIZES,
)
def test_stops_count_behind_a_section_only(
    thought: str, answer: str, stops: list[str], sizes: list[int]
) -> None:
    thought = thought.replace(">", "") + ">b"
    ids = ByteTokenizer().encode(thought + answer)
    alone = TextState(ByteTokenizer(), stop=stops)
    alone.push(ByteTokenizer().encode(answer), finished=True)
    state = TextState(ByteTokenizer(), stop=stops, section=Section(end=">", gap="b"))
    shown = "".join(state.push(list(part))[0] for part in cut(ids, sizes))
    shown += state.push([], finished=True)[0]
    assert state.text == shown == thought + alone.text
    assert (state.hit is None) == (alone.hit is None)
    if state.hit is not None and alone.hit is not None:
        assert state.hit.offset == alone.hit.offset + len(thought)


def test_special_tokens_are_shown_where_that_is_asked_for() -> None:
    ids = ByteTokenizer().encode("a<|end|>b", special=True)
    assert TextState(ByteTokenizer(), skip_special=False).push(ids)[0] == "a<|end|>b"
    assert TextState(ByteTokenizer()).push(ids)[0] == "ab"


def test_kept_ids_are_the_generated_ones_up_to_the_cut(smol: Tokenizer) -> None:
    ids = smol.encode("The answer is forty-two. Wonderful news, everyone")
    state = TextState(smol, stop=["onder"])
    text, hit = state.push(ids)
    assert (text, hit) == ("The answer is forty-two. W", StopHit("string", "onder", 26))
    kept = state.kept_ids()
    assert smol.decode(kept) == text
    whole = smol.encode("The answer is forty-two.")
    assert kept == [*whole, *smol.encode(" W")]


@LAW
@given(data=st.data())
def test_kept_ids_spell_the_kept_text(smol: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(20, 3000), min_size=1, max_size=20))
    text = smol.decode(ids)
    assume(len(text) > 3)
    at = data.draw(st.integers(0, len(text) - 2))
    stop = text[at : at + data.draw(st.integers(1, 3))]
    state = TextState(smol, stop=[stop])
    state.push(ids, finished=True)
    assert state.hit is not None
    assert smol.decode(state.kept_ids()) == state.text == text[: state.hit.offset]
