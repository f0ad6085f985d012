r"""Context-free grammars in GBNF notation: read, checked, and written for xgrammar.

Invariant: what is written means to the engine exactly what the tree says. Literals and classes are
written with escapes of fixed length (the engine reads `\x00a` as one character), classes are
written as ranges of code points without surrogates, and the first rule written is a new one that
nothing refers to (the engine's masks are wrong when its first rule is recursive). Rules that can
never end are refused: they would leave a request without a next token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, exceeded

Ranges = tuple[tuple[int, int], ...]
ANY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
_SURROGATES = ((0xD800, 0xDFFF),)


@dataclass(frozen=True, slots=True)
class Text:
    """A literal; "" matches the empty text."""

    value: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of some inclusive ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Ref:
    """Another rule."""

    name: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None = any number."""

    part: Node
    least: int
    most: int | None


Node = Text | Chars | Ref | Seq | Alt | Repeat


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in sorted((*ranges, *_SURROGATES)):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    if start <= 0x10FFFF:
        found.append((start, 0x10FFFF))
    return tuple(found)


def write(rules: Mapping[str, Node], root: str = "root") -> str:
    """The grammar in the engine's notation."""
    names = {name: f"r{index}" for index, name in enumerate(rules)}
    lines = [f"root ::= {names[root]}"]
    lines += [f"{names[name]} ::= {_written(node, names)}" for name, node in rules.items()]
    return "\n".join(lines) + "\n"


def _written(node: Node, names: Mapping[str, str]) -> str:
    match node:
        case Text(value):
            return f'"{"".join(map(_char, value))}"'
        case Chars(ranges):
            return f"[{''.join(_range(low, high) for low, high in ranges)}]"
        case Ref(name):
            return names[name]
        case Seq(parts):
            return f"({' '.join(_written(part, names) for part in parts)})" if parts else '""'
        case Alt(parts):
            return f"({' | '.join(_written(part, names) for part in parts)})"
        case Repeat(part, least, most):
            return f"({_written(part, names)}){_quantifier(least, most)}"


def _quantifier(least: int, most: int | None) -> str:
    plain = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
    return plain or f"{{{least},{'' if most is None else most}}}"


def _char(char: str) -> str:
    return char if char.isascii() and (char.isalnum() or char == " ") else f"\\U{ord(char):08x}"


def _range(low: int, high: int) -> str:
    return f"\\U{low:08x}" if low == high else f"\\U{low:08x}-\\U{high:08x}"


def read(text: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Node]:
    """Rules of a GBNF text by name; those that `root` does not need are left out.

    Raises:
        InvalidRequest: malformed, or a bound is exceeded; says in which line.
        UnsupportedConstraint: a rule that can never end.
    """
    rules = _Reader(text, limits).rules()
    if "root" not in rules:
        raise InvalidRequest(
            "ebnf: there is no rule named root", value=text, hint="Add `root ::= …`."
        )
    return checked(rules, "ebnf")


def checked(rules: Mapping[str, Node], kind: str) -> dict[str, Node]:
    """The rules that `root` needs, if they make sense.

    Args:
        kind: of the constraint, for messages.

    Raises:
        InvalidRequest: a rule is missing.
        UnsupportedConstraint: a rule can never end, or can stand for itself alone.
    """
    needed, todo = {"root"}, ["root"]
    while todo:
        for ref in _refs(rules[todo.pop()]):
            if ref.name not in rules:
                raise InvalidRequest(
                    f"{kind}: line {ref.line}: there is no rule named {ref.name}",
                    value=ref.name,
                    hint="Define it, or correct the name.",
                )
            if ref.name not in needed:
                needed.add(ref.name)
                todo.append(ref.name)
    found = {name: node for name, node in rules.items() if name in needed}
    _check_ends(found, kind)
    _check_loops(found, kind)
    return found


def _refs(node: Node) -> list[Ref]:
    match node:
        case Ref():
            return [node]
        case Seq(parts) | Alt(parts):
            return [ref for part in parts for ref in _refs(part)]
        case Repeat(part):
            return _refs(part)
        case _:
            return []


def _fixed_point(rules: Mapping[str, Node], holds: Callable[[Node, set[str]], bool]) -> set[str]:
    found: set[str] = set()
    before = -1
    while len(found) != before:
        before = len(found)
        found |= {name for name, node in rules.items() if name not in found and holds(node, found)}
    return found


def _can_end(node: Node, ending: set[str]) -> bool:
    match node:
        case Ref(name):
            return name in ending
        case Seq(parts):
            return all(_can_end(part, ending) for part in parts)
        case Alt(parts):
            return any(_can_end(part, ending) for part in parts)
        case Repeat(part, least):
            return least == 0 or _can_end(part, ending)
        case Chars(ranges):
            return bool(ranges)
        case _:
            return True


def _nullable(node: Node, empty: set[str]) -> bool:
    match node:
        case Ref(name):
            return name in empty
        case Seq(parts):
            return all(_nullable(part, empty) for part in parts)
        case Alt(parts):
            return any(_nullable(part, empty) for part in parts)
        case Repeat(part, least):
            return least == 0 or _nullable(part, empty)
        case Text(value):
            return not value
        case _:
            return False


def _check_ends(rules: Mapping[str, Node], kind: str) -> None:
    """A rule that no finite text matches would be a trap: text enters it and cannot end."""
    ending = _fixed_point(rules, _can_end)
    for name in rules:
        if name not in ending:
            raise UnsupportedConstraint(
                f"{kind}: rule {name} can never end",
                value=name,
                hint="Give it an alternative that does not lead back to itself.",
            )


def _check_loops(rules: Mapping[str, Node], kind: str) -> None:
    """A rule that can be itself and nothing else has no end of readings of every text."""
    empty = _fixed_point(rules, _nullable)

    def alone(node: Node) -> set[str]:
        match node:
            case Ref(name):
                return {name}
            case Alt(parts):
                return set().union(*(alone(part) for part in parts))
            case Seq(parts):
                return {
                    name
                    for index, part in enumerate(parts)
                    if all(
                        _nullable(other, empty) for other in (*parts[:index], *parts[index + 1 :])
                    )
                    for name in alone(part)
                }
            case Repeat(part):
                return alone(part)
            case _:
                return set()

    direct = {name: alone(node) for name, node in rules.items()}
    for name in rules:
        seen: set[str] = set()
        todo = list(direct[name])
        while todo:
            other = todo.pop()
            if other == name:
                raise UnsupportedConstraint(
                    f"{kind}: rule {name} can stand for itself alone",
                    value=name,
                    hint="Remove the alternative that leads back without any text.",
                )
            if other not in seen:
                seen.add(other)
                todo += direct[other]


_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r]|\#[^\n]*)+)|(?P<newline>\n)|(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<define>::=)|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<chars>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<bounds>\{[ ]*(?:[0-9]+[ ]*(?:,[ ]*[0-9]*[ ]*)?|,[ ]*[0-9]+[ ]*)\})|(?P<sign>[|()*+?.])""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


class _Reader:
    """Recursive descent over the tokens; nesting is bounded."""

    def __init__(self, text: str, limits: Limits) -> None:
        self._text = text
        self._limits = limits
        self._tokens = self._split(text)
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        """Every rule, in order."""
        found: dict[str, Node] = {}
        while self._skip_lines().kind != "end":
            name = self._next()
            if name.kind != "name" or self._next().kind != "define":
                self._fail(name, "a rule begins with `name ::=`")
            if name.text in found:
                self._fail(name, f"rule {name.text} is defined twice")
            if len(found) == self._limits.rules:
                raise exceeded("ebnf", "rules", "rules", f"line {name.line}", self._limits.rules)
            found[name.text] = self._alternatives(top=True)
        return found

    def _split(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        at, line = 0, 1
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                self._fail(_Token("", text[at], line), f"unexpected character {text[at]!r}")
            if found.lastgroup != "space":
                tokens.append(_Token(found.lastgroup, found[0], line))
            line += found[0].count("\n")
            at = found.end()
        return [*tokens, _Token("end", "", line)]

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += token.kind != "end"
        return token

    def _skip_lines(self) -> _Token:
        while self._peek().kind == "newline":
            self._at += 1
        return self._peek()

    def _fail(self, token: _Token, message: str) -> NoReturn:
        raise InvalidRequest(
            f"ebnf: line {token.line}: {message}",
            value=token.text or self._text,
            hint='Write rules as `name ::= "text" | [a-z]+ other-name`.',
        )

    def _at_rule(self) -> bool:
        """Does a new rule begin at the next token that is not a line end?"""
        at = self._at
        while self._tokens[at].kind == "newline":
            at += 1
        follows = self._tokens[at : at + 2]
        return len(follows) < 2 or (follows[0].kind == "name" and follows[1].kind == "define")

    def _alternatives(self, *, top: bool) -> Node:
        parts = [self._sequence(top=top)]
        while self._peek_over_lines(top=top).text == "|":
            self._skip_lines()
            self._next()
            parts.append(self._sequence(top=top))
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def _peek_over_lines(self, *, top: bool) -> _Token:
        """The next token; at the top level a line end counts only where a rule begins after it."""
        if top and self._at_rule():
            return _Token("end", "", self._peek().line)
        at = self._at
        while self._tokens[at].kind == "newline":
            at += 1
        return self._tokens[at]

    def _sequence(self, *, top: bool) -> Node:
        parts: list[Node] = []
        while True:
            token = self._peek_over_lines(top=top)
            if token.kind == "end" or token.text in ("|", ")"):
                break
            self._skip_lines()
            parts.append(self._repeated(self._item()))
        if not parts:
            self._fail(self._peek(), 'an alternative is empty (write "" for the empty text)')
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _item(self) -> Node:
        token = self._next()
        if token.kind == "name":
            return Ref(token.text, token.line)
        if token.kind == "text":
            return Text("".join(map(chr, self._characters(token, token.text[1:-1]))))
        if token.kind == "chars":
            return self._class(token)
        if token.text == ".":
            return Chars(ANY)
        if token.text != "(":
            self._fail(token, f"unexpected {token.text or 'end'!r}")
        self._depth += 1
        if self._depth > self._limits.depth:
            raise exceeded("ebnf", "depth", "groups", f"line {token.line}", self._limits.depth)
        node = self._alternatives(top=False)
        if self._skip_lines().text != ")":
            self._fail(token, "a group is not closed")
        self._next()
        self._depth -= 1
        return node

    def _repeated(self, node: Node) -> Node:
        token = self._peek()
        if token.kind != "bounds" and token.text not in ("*", "+", "?"):
            return node
        self._next()
        if token.kind == "bounds":
            low, comma, high = token.text[1:-1].replace(" ", "").partition(",")
            least = int(low or 0)
            most = least if not comma else (int(high) if high else None)
        else:
            least, most = int(token.text == "+"), 1 if token.text == "?" else None
        if max(least, most or 0) > self._limits.repeat:
            raise exceeded("ebnf", "repeat", "repeated", token.text, self._limits.repeat)
        if most is not None and most < least:
            self._fail(token, "a repetition whose least is above its most")
        if self._peek().kind == "bounds" or self._peek().text in ("*", "+", "?"):
            self._fail(self._peek(), "a repetition of a repetition needs a group")
        return Repeat(node, least, most)

    def _class(self, token: _Token) -> Node:
        inside = token.text[1:-1]
        negated = inside.startswith("^")
        inside = inside[negated:]
        codes = self._characters(token, inside, dashes=True)
        ranges: list[tuple[int, int]] = []
        at = 0
        while at < len(codes):
            low = high = abs(codes[at])
            # A dash counts as one unless it is escaped, first or last: such a one is negative.
            if at + 2 < len(codes) and codes[at + 1] == -ord("-"):
                high = abs(codes[at + 2])
                at += 2
            if low > high:
                self._fail(token, "a range whose ends are in the wrong order")
            ranges.append((low, high))
            at += 1
        if not ranges:
            self._fail(token, "an empty class")
        return Chars(
            complement(tuple(ranges)) if negated else complement(complement(tuple(ranges)))
        )

    def _characters(self, token: _Token, text: str, *, dashes: bool = False) -> list[int]:
        """Code points of a literal's inside; bare dashes negative when asked for."""
        codes: list[int] = []
        at = 0
        while at < len(text):
            char = text[at]
            at += 1
            if char == "-" and dashes:
                codes.append(-ord("-"))
                continue
            if char == "\\":
                name = text[at]
                at += 1
                if name in _HEX:
                    digits = text[at : at + _HEX[name]]
                    at += _HEX[name]
                    codes.append(self._code(token, digits, _HEX[name]))
                    continue
                if name not in _ESCAPES and (name.isalnum() or not name.isascii()):
                    self._fail(token, f"unknown escape \\{name}")
                char = _ESCAPES.get(name, name)
            codes.append(ord(char))
        return codes

    def _code(self, token: _Token, digits: str, length: int) -> int:
        if len(digits) != length or re.fullmatch(r"[0-9a-fA-F]+", digits) is None:
            self._fail(token, f"an escape needs {length} hexadecimal digits")
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._fail(token, f"U+{code:X} is no character")
        return code


def alternatives(texts: Sequence[str]) -> dict[str, Node]:
    """A grammar of literals."""
    return {"root": Alt(tuple(map(Text, texts)))}
