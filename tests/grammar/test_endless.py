"""Where the engine is asked what must follow, it answers; where it might not, it is not asked."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator

import llguidance
import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.endless import may_force_for_ever
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from branchline.runtime.responses import FORMATS, tool_constraint
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from tests.responses.test_constraint import TOOLS
from tests.responses.writing import ALL, Made, block_text

ENDLESS = (
    "W: /a+/",
    'W: "a"+',
    'W: /"/ /a+/ /"/',
    "W: /(ab)*/",
    r"W: /[\x{61}-\x{61}]+/",
    r"W: /[^\x{0}-\x{60}\x{62}-\x{10ffff}]+/",
    "W: /[a]{2,}/",
    "W: /[^b]*/ & /[^c-z]*/",
    "W: ~/(?s:.*)[^a](?s:.*)/",
    "W: /(?s:.+)/ & ~/(?s:.*)(?:[^a])(?s:.*)/",
    "W: /(?s:.+)/ & /a+/",
    "W: %regex {}",
    'w[suffix="a"]: /b*/',
    'w: "a" // "\n  | /a*/ w',
    r"W: /\.+/",
    r"W: /(?x:a +)/",
    r"W: /\u{e9}+/",
    r"W: /[ab]*/ /a+/",
)
SHORT = (
    'w: "a" w "b" | "c"',
    "W: /[a-z]+/",
    'W: "a" | /[^"]*/',
    r'W: /"([^"\\]|x)"/ /[ \n\t]*/',
    "W: /(?s:.*)/",
    r"W: /(?s:.+)/ & ~/(?s:.*)(?:\x{3c}tool|\x{5b}x)(?s:.*)/",
    'w: (A | "b")* A\nA: /[0-9]+/',
    'w: %json {"type": "string"}',
    r"W: /\w+ \d{2,}/",
    "w[lazy]: W\nW: /(?s:.*)end/",
    'w: /.*/ "end" // a+ comment',
)


@pytest.mark.parametrize("grammar", ENDLESS)
def test_what_may_go_on_for_ever_is_told(grammar: str) -> None:
    assert may_force_for_ever(f'start: w "b"\n{grammar}\n')


@pytest.mark.parametrize("grammar", SHORT)
def test_what_ends_or_has_choices_is_told(grammar: str) -> None:
    assert not may_force_for_ever(f'start: w "b"\n{grammar}\n')


@pytest.fixture(scope="module")
def engine() -> Iterator[GrammarBackends]:
    backends = GrammarBackends(ByteTokenizer(), threads=1)
    yield backends
    backends.close()


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", ALL)
def test_calls_beside_text_say_what_must_follow(
    engine: GrammarBackends, name: str, choice: str
) -> None:
    """Behind the first letter of a name, or of a call that has no marker, what follows."""
    form = FORMATS[name]
    matcher = engine.compile(tool_constraint(form, TOOLS, choice, True)).matcher()
    text = block_text(form, [Made("now", {})])
    if form.bare:
        text = text.removeprefix(form.marker)
    bare = form.bare and choice == "auto"  # its first letters may be those of a text
    head = text.index("now") + (len("now" + form.middle) if bare else 1)
    assert all(matcher.accept(byte) for byte in text[:head].encode())
    forced = bytes(matcher.forced_tokens())
    assert forced and text[head:].encode().startswith(forced)


def _random_grammar(rng: random.Random) -> str:
    """A few terminals of short patterns, one behind the other or nested."""
    atoms = ["a", "b", "[ab]", "[a-c]", ".", "(ab|c)", "[^ab]", r"\x{61}", "(?s:.)"]
    names = ["A", "B", "C"]
    lines = [
        "start: "
        + rng.choice(["A B", "A A", 'A "x" B', '"[" start "]" | A B', "(A | B) C", "A* B"])
    ]
    for name in names:
        parts = [
            rng.choice(atoms) + rng.choice(["", "", "", "", "+", "*", "?", "{2,}", "{1,3}"])
            for _ in range(rng.randint(1, 2))
        ]
        other = rng.choice(["", "", "", ' "b"', " & /[^b]+/", " & ~/(?s:.*)(?:ab|b)(?s:.*)/"])
        lines.append(f"{name}: /{''.join(parts)}/{other}")
    return "\n".join(lines) + "\n"


def _walk(grammars: list[str]) -> None:
    """Ask along random texts; does not come back where the engine does not."""
    rng = random.Random(7)
    backend = LLGuidanceBackend(ByteTokenizer(), threads=1)
    for grammar in grammars:
        place = backend._engine(str(llguidance.LLMatcher.grammar_from_lark(grammar)))
        for _ in range(12):
            forced = place.compute_ff_tokens()
            token = forced[0] if forced else rng.choice(b"aabbcx[")
            if place.is_stopped() or place.try_consume_tokens([token]) != 1:
                break


def test_where_it_is_asked_the_engine_comes_back() -> None:
    rng = random.Random(3)
    made = [_random_grammar(rng) for _ in range(8000)]
    asked = [grammar for grammar in made if not may_force_for_ever(grammar)]
    assert 300 < len(asked) < 4000
    process = multiprocessing.get_context("spawn").Process(target=_walk, args=(asked,))
    process.start()
    process.join(90)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == 0


def test_what_is_not_asked_is_no_less_exact(engine: GrammarBackends) -> None:
    text = 'start: W W | "[" start "]"\nW: /a+/\n'
    matcher = engine.compile(Constraint(kind="lark", text=text)).matcher()
    assert matcher.accept(ord("[")) and matcher.accept(ord("a"))
    assert matcher.forced_tokens() == []
