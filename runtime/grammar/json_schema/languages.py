"""Regular languages over code points, closed under union, intersection and complement.

Invariant: a language is an immutable node, made only by a `Languages`, and two nodes of one
`Languages` that were built alike are one object. Membership and emptiness are decided by
derivatives (Brzozowski, "Derivatives of Regular Expressions", 1964). Half surrogates are in no
language. Knows neither JSON nor the syntax of patterns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from branchline.runtime.patterns.ranges import (
    EVERY,
    Ranges,
    in_ranges,
    intersect_ranges,
    ranges_of,
)


class Language:
    """One node. `op` is one of: none, empty (the empty text), set, cat, any, all, not, rep.

    `parts` are the operands; `ranges` of a set; `least` and `most` (None = no bound) of a rep.
    """

    __slots__ = ("least", "most", "nullable", "op", "parts", "plain", "ranges", "serial")

    plain: bool

    def __init__(
        self,
        op: str,
        serial: int,
        parts: tuple[Language, ...] = (),
        ranges: Ranges = (),
        least: int = 0,
        most: int | None = None,
    ) -> None:
        self.op = op
        self.serial = serial
        self.parts = parts
        self.ranges = ranges
        self.least = least
        self.most = most
        self.plain = op not in ("all", "not") and all(part.plain for part in parts)
        self.nullable = self._is_nullable()

    def _is_nullable(self) -> bool:
        match self.op:
            case "empty":
                return True
            case "cat" | "all":
                return all(part.nullable for part in self.parts)
            case "any":
                return any(part.nullable for part in self.parts)
            case "not":
                return not self.parts[0].nullable
            case "rep":
                return self.least == 0 or self.parts[0].nullable
        return False


class Languages:
    """Makes languages and answers questions about them. One thread at a time.

    Args:
        budget: derivatives that one question about emptiness may take before it is given up.
    """

    def __init__(self, budget: int = 3000) -> None:
        self._nodes: dict[tuple[object, ...], Language] = {}
        self._derived: dict[tuple[Language, int], Language] = {}
        self._firsts: dict[Language, tuple[int, ...]] = {}
        self.patterns: dict[str, Language] = {}  # for those who translate patterns
        self._known_empty: dict[Language, bool | None] = {}
        self._chars: dict[str, Language] = {}
        self._words: dict[frozenset[str], Language] = {}
        self._texts: dict[tuple[Language, int], frozenset[str] | None] = {}
        self._budget = budget
        self.none = self._make("none")
        self.empty = self._make("empty")
        self.char = self._make("set", ranges=EVERY)
        self.every = self.repeat(self.char, 0, None)

    def _make(
        self,
        op: str,
        parts: tuple[Language, ...] = (),
        ranges: Ranges = (),
        least: int = 0,
        most: int | None = None,
    ) -> Language:
        key = (op, parts, ranges, least, most)
        node = self._nodes.get(key)
        if node is None:
            node = Language(op, len(self._nodes), parts, ranges, least, most)
            self._nodes[key] = node
        return node

    def chars(self, ranges: Ranges) -> Language:
        """Texts of one of these code points."""
        return self._make("set", ranges=ranges) if ranges else self.none

    def word(self, text: str) -> Language:
        """One text."""
        result = self.empty
        for char in reversed(text):
            one = self._chars.get(char)
            if one is None:
                one = self._chars[char] = self.chars(((ord(char), ord(char)),))
            result = one if result is self.empty else self._make("cat", (one, result))
        return result

    def words(self, texts: Iterable[str]) -> Language:
        """A finite set of texts, as a tree of their beginnings; kept."""
        key = frozenset(texts)
        found = self._words.get(key)
        if found is None:
            found = self._words[key] = self._tree(sorted(key), 0)
        return found

    def _tree(self, texts: Sequence[str], start: int) -> Language:
        """What follows `start` characters that sorted, different texts share."""
        if len(texts) == 1:
            return self.word(texts[0][start:])
        branches, ends = [], bool(texts) and len(texts[0]) == start
        first = at = int(ends)
        while first < len(texts):
            head = texts[first][start]
            while at < len(texts) and texts[at][start] == head:
                at += 1
            shared = start + 1 + _shared_length(texts[first], texts[at - 1], start + 1)
            rest = self._tree(texts[first:at], shared)
            branches.append(self.cat([self.word(texts[first][start:shared]), rest]))
            first = at
        return self.any([*branches, *([self.empty] if ends else [])])

    def cat(self, parts: Sequence[Language]) -> Language:
        """One after the other."""
        result = self.empty
        for part in reversed(parts):
            if part is self.none or result is self.none:
                return self.none
            if part is self.empty:
                continue
            if result is self.empty:
                result = part
            elif part.op == "cat":
                result = self._make("cat", (part.parts[0], self.cat([part.parts[1], result])))
            elif part is self.every and result is self.every:
                continue
            else:
                result = self._make("cat", (part, result))
        return result

    def any(self, parts: Iterable[Language]) -> Language:
        """In at least one."""
        flat: set[Language] = set()
        ranges: list[tuple[int, int]] = []
        for part in parts:
            for one in part.parts if part.op == "any" else (part,):
                if one is self.every:
                    return self.every
                if one.op == "set":
                    ranges.extend(one.ranges)
                elif one is not self.none:
                    flat.add(one)
        if ranges:
            flat.add(self.chars(ranges_of(ranges)))
        if any(part.op == "not" and part.parts[0] in flat for part in flat):
            return self.every
        if self.empty in flat and any(part.nullable for part in flat if part is not self.empty):
            flat.discard(self.empty)
        if not flat:
            return self.none
        if len(flat) == 1:
            return flat.pop()
        return self._make("any", tuple(sorted(flat, key=lambda node: node.serial)))

    def all(self, parts: Iterable[Language]) -> Language:
        """In every one."""
        flat: set[Language] = set()
        for part in parts:
            flat.update(part.parts if part.op == "all" else (part,))
        flat.discard(self.every)
        if self.none in flat or any(p.op == "not" and p.parts[0] in flat for p in flat):
            return self.none
        if self.empty in flat:
            return self.empty if all(part.nullable for part in flat) else self.none
        sets = [part for part in flat if part.op == "set"]
        if len(sets) > 1:
            ranges = sets[0].ranges
            for one in sets[1:]:
                ranges = intersect_ranges(ranges, one.ranges)
            return self.all([*(flat - set(sets)), self.chars(ranges)])
        if not flat:
            return self.every
        if len(flat) == 1:
            return flat.pop()
        return self._make("all", tuple(sorted(flat, key=lambda node: node.serial)))

    def complement(self, part: Language) -> Language:
        """Every other text."""
        if part.op == "not":
            return part.parts[0]
        if part is self.every:
            return self.none
        return self.every if part is self.none else self._make("not", (part,))

    def minus(self, left: Language, right: Language) -> Language:
        """In the one and not in the other."""
        return self.all([left, self.complement(right)])

    def repeat(self, part: Language, least: int, most: int | None) -> Language:
        """`least` to `most` times (None: without bound)."""
        if most == 0 or part is self.empty:
            return self.empty
        if part is self.none:
            return self.empty if least == 0 else self.none
        if part.nullable:
            least = 0
        if least == most == 1:
            return part
        if part.op == "rep" and part.least <= 1 and part.most is None and most is None:
            return self.repeat(part.parts[0], 0 if part.least == 0 else least, None)
        return self._make("rep", (part,), least=least, most=most)

    def length(self, least: int, most: int | None) -> Language:
        """Texts of so many code points."""
        return self.repeat(self.char, least, most)

    def derive(self, node: Language, char: int) -> Language:
        """What may follow after `char`."""
        key = (node, char)
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = self._derive(node, char)
        return found

    def _derive(self, node: Language, char: int) -> Language:
        parts = node.parts
        match node.op:
            case "set":
                return self.empty if in_ranges(node.ranges, char) else self.none
            case "cat":
                first = self.cat([self.derive(parts[0], char), parts[1]])
                if not parts[0].nullable:
                    return first
                return self.any([first, self.derive(parts[1], char)])
            case "any":
                return self.any([self.derive(part, char) for part in parts])
            case "all":
                return self.all([self.derive(part, char) for part in parts])
            case "not":
                return self.complement(self.derive(parts[0], char))
            case "rep":
                most = None if node.most is None else node.most - 1
                rest = self.repeat(parts[0], max(node.least - 1, 0), most)
                return self.cat([self.derive(parts[0], char), rest])
        return self.none

    def has(self, node: Language, text: str) -> bool:
        """Whether a text is in the language."""
        for char in text:
            node = self.derive(node, ord(char))
            if node is self.none:
                return False
        return node.nullable

    def texts(self, node: Language, most: int) -> frozenset[str] | None:
        """All texts of a language; None where they are, or may be, more than `most`."""
        key = (node, most)
        if key not in self._texts:
            self._texts[key] = self._list(node, most)
        return self._texts[key]

    def _list(self, node: Language, most: int) -> frozenset[str] | None:
        found: frozenset[str] | None = None
        match node.op:
            case "none":
                return frozenset()
            case "empty":
                return frozenset({""})
            case "set":
                if sum(high - low + 1 for low, high in node.ranges) <= most:
                    found = frozenset(
                        chr(char) for low, high in node.ranges for char in range(low, high + 1)
                    )
            case "cat":
                found = self._joined([self.texts(part, most) for part in node.parts], most)
            case "rep" if node.most is not None and node.most <= most:
                part = self.texts(node.parts[0], most)
                again = None if part is None else part | {""} if node.least == 0 else part
                times = node.most if node.least in (0, node.most) else None
                found = None if times is None else self._joined([again] * times, most)
            case "any":
                lists = [self.texts(part, most) for part in node.parts]
                if None not in lists:
                    found = frozenset(text for each in lists if each for text in each)
            case "all":
                lists = [self.texts(part, most) for part in node.parts]
                short = next((each for each in lists if each is not None), None)
                if short is not None:
                    found = frozenset(text for text in short if self.has(node, text))
        return found if found is not None and len(found) <= most else None

    @staticmethod
    def _joined(lists: Sequence[frozenset[str] | None], most: int) -> frozenset[str] | None:
        found = frozenset({""})
        for each in lists:
            if each is None or len(found) * len(each) > most * most:
                return None
            found = frozenset(begin + end for begin in found for end in each)
        return found

    def firsts(self, node: Language) -> tuple[int, ...]:
        """One code point of each kind that the language tells apart at its start."""
        found = self._firsts.get(node)
        if found is None:
            sets: set[Ranges] = set()
            self._first_sets(node, sets)
            found = self._firsts[node] = _representatives(sorted(sets))
        return found

    def _first_sets(self, node: Language, into: set[Ranges]) -> None:
        match node.op:
            case "set":
                into.add(node.ranges)
            case "cat":
                self._first_sets(node.parts[0], into)
                if node.parts[0].nullable:
                    self._first_sets(node.parts[1], into)
            case _:
                for part in node.parts:
                    self._first_sets(part, into)

    def is_empty(self, node: Language) -> bool | None:
        """Whether no text is in the language; None where the budget did not suffice."""
        if node is self.none or node.nullable or node.plain:
            return node is self.none
        if node not in self._known_empty:
            self._known_empty[node] = self._search(node)
        return self._known_empty[node]

    def _search(self, start: Language) -> bool | None:
        seen, queue = {start}, [start]
        steps = 0
        for node in queue:
            for char in self.firsts(node):
                steps += 1
                if steps > self._budget:
                    return None
                after = self.derive(node, char)
                if after.nullable or (after.plain and after is not self.none):
                    return False
                if after not in seen and after is not self.none:
                    seen.add(after)
                    queue.append(after)
        return True


def _shared_length(left: str, right: str, start: int) -> int:
    """How many characters from `start` on are the same."""
    for at in range(start, min(len(left), len(right))):
        if left[at] != right[at]:
            return at - start
    return min(len(left), len(right)) - start


def _representatives(sets: Sequence[Ranges]) -> tuple[int, ...]:
    """One code point for each combination of sets that some code point is in."""
    flips = {0: 0, 0xE000: 0}  # code point -> the sets (bits) that begin or end there
    for at, ranges in enumerate(sets):
        for low, high in ranges:
            flips[low] = flips.get(low, 0) ^ (1 << at)
            flips[high + 1] = flips.get(high + 1, 0) ^ (1 << at)
    kinds: dict[int, int] = {}
    inside = 0
    for cut in sorted(flips):
        inside ^= flips[cut]
        if in_ranges(EVERY, cut):
            kinds.setdefault(inside, cut)
    return tuple(kinds.values())
