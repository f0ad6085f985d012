r"""ECMA-262 patterns as languages. Invariant: a text is in the language iff a search finds the
pattern in it, as JSON Schema's `pattern` asks.

Assertions (anchors, word boundaries, lookahead) are resolved here: a pattern is translated from
its end to its start, each part with what may follow it, once for each kind of place (start of the
text, after a word character, after another). Knows no JSON and no syntax.
"""

from __future__ import annotations

from typing import NamedTuple

from branchline.runtime.grammar.json_schema.languages import Language, Languages
from branchline.runtime.patterns.ecma import WORD, Part, PatternError, parse
from branchline.runtime.patterns.ranges import EVERY

_MOST_UNROLLED = 8


class _Places(NamedTuple):
    """What may follow at the start of the text, after a word character, after another."""

    start: Language
    word: Language
    other: Language


def search_language(languages: Languages, pattern: str) -> Language:
    """Texts in which the pattern is found.

    Raises:
        PatternError: malformed, or not a regular language in this reading.
    """
    found = languages.patterns.get(pattern)
    if found is None:
        everything = Part("rep", (Part("set", ranges=EVERY),))
        whole = Part("seq", (everything, parse(pattern)))
        rest = _Places(languages.every, languages.every, languages.every)
        found = languages.patterns[pattern] = _Translator(languages).run(whole, rest).start
    return found


class _Translator:
    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._word_next = languages.cat([languages.chars(WORD), languages.every])
        self._after_word = languages.cat([languages.every, languages.chars(WORD)])

    def run(self, part: Part, rest: _Places) -> _Places:
        """`part`, then `rest`."""
        if part.plain:
            return self._plain(self._language(part), rest)
        make = self._languages
        match part.kind:
            case "seq":
                for one in reversed(part.parts):
                    rest = self.run(one, rest)
                return rest
            case "or":
                options = [self.run(one, rest) for one in part.parts]
                return _Places(*(make.any(column) for column in zip(*options, strict=True)))
            case "start":
                return _Places(rest.start, make.none, make.none)
            case "end":
                return _Places(*(make.all([one, make.empty]) for one in rest))
            case "edge":
                return self._edge(part.negated, rest)
            case "look":
                every = _Places(make.every, make.every, make.every)
                seen = self.run(part.parts[0], every)
                if part.negated:
                    seen = _Places(*(make.complement(one) for one in seen))
                return _Places(*(make.all(pair) for pair in zip(seen, rest, strict=True)))
        return self._repeated(part, rest)

    def _edge(self, negated: bool, rest: _Places) -> _Places:
        make = self._languages
        into, away = self._word_next, make.complement(self._word_next)
        if negated:
            into, away = away, into
        return _Places(
            make.all([rest.start, into]), make.all([rest.word, away]), make.all([rest.other, into])
        )

    def _repeated(self, part: Part, rest: _Places) -> _Places:
        if part.most is None or part.most > _MOST_UNROLLED:
            raise PatternError("an assertion inside a repetition")
        make, after = self._languages, rest
        for count in range(part.most, 0, -1):
            once = self.run(part.parts[0], after)
            if count > part.least:
                once = _Places(*(make.any(pair) for pair in zip(once, rest, strict=True)))
            after = once
        return after

    def _plain(self, part: Language, rest: _Places) -> _Places:
        make = self._languages
        if rest.word is rest.other:
            moved = make.cat([part, rest.word])
        else:
            by_word = make.all([part, self._after_word])
            by_other = make.all([part, make.complement(self._after_word)])
            by_other = make.minus(by_other, make.empty)
            moved = make.any([make.cat([by_word, rest.word]), make.cat([by_other, rest.other])])
        if not part.nullable:
            return _Places(moved, moved, moved)
        if rest.start is rest.word is rest.other:
            return _Places(moved, moved, moved)
        some = moved
        if rest.word is rest.other:
            # `start` may differ from `word`: only the empty text keeps the place.
            some = make.cat([_not_empty(make, part), rest.word])
        return _Places(*(make.any([stay, some]) for stay in rest))

    def _language(self, part: Part) -> Language:
        make = self._languages
        match part.kind:
            case "set":
                return make.chars(part.ranges)
            case "seq":
                return make.cat([self._language(one) for one in part.parts])
            case "or":
                return make.any([self._language(one) for one in part.parts])
        return make.repeat(self._language(part.parts[0]), part.least, part.most)


def _not_empty(make: Languages, part: Language) -> Language:
    if part.op == "rep" and not part.parts[0].nullable:
        return make.repeat(part.parts[0], max(part.least, 1), part.most)
    return make.minus(part, make.empty)
