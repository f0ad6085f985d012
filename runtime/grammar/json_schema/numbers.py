"""Sets of numbers and how they are spelled. Invariant: exact; no number is rounded.

A set is an interval of rationals, of multiples of a step or of non-integers, or finite. Spellings
are those of JSON with plain digits; exponents only where every number of such a size is in the
set, a fraction of zeros (`1.0`) only where the set has numbers that are not whole. Knows no schema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, gcd
from typing import NamedTuple

_MOST_LISTED = 2000
_LARGEST_FLOAT_EXACT = 2**53
_INTEGER = "(?:0|[1-9][0-9]*)"
_SMALL = "-?[1-9](?:\\.[0-9]+)?e-(?:0[5-9]|[1-9][0-9]|[12][0-9]{2})"
_LARGE = "[1-9](?:\\.[0-9]+)?e\\+(?:1[6-9]|[2-9][0-9]|[12][0-9]{2})"
INTEGER = f"/-?{_INTEGER}/"
NUMBER = f"/-?{_INTEGER}(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/"


class Numbers(NamedTuple):
    """A set of numbers.

    Attributes:
        low, high: bounds; None = none.
        low_open, high_open: whether the bound itself is outside.
        step: multiples of it only.
        broken: no integers.
        listed: these only; then nothing else is set.
    """

    low: Fraction | None = None
    low_open: bool = False
    high: Fraction | None = None
    high_open: bool = False
    step: Fraction | None = None
    broken: bool = False
    listed: frozenset[Fraction] | None = None

    def has(self, value: Fraction) -> bool:
        """Whether a number is in the set."""
        if self.listed is not None:
            return value in self.listed
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = (
            self.high is None or value < self.high or (value == self.high and not self.high_open)
        )
        fits = self.step is None or (value / self.step).denominator == 1
        return above and below and fits and not (self.broken and value.denominator == 1)


EVERY_NUMBER = Numbers()


def meet(left: Numbers, right: Numbers) -> Numbers | None:
    """Numbers in both; None where there is none."""
    if left.listed is not None or right.listed is not None:
        if left.listed is None:
            left, right = right, left
        kept = frozenset(value for value in left.listed or () if right.has(value))
        return Numbers(listed=kept) if kept else None
    low, low_open = left.low, left.low_open
    if right.low is not None and (low is None or (right.low, right.low_open) > (low, low_open)):
        low, low_open = right.low, right.low_open
    high, high_open = left.high, left.high_open
    if right.high is not None and (
        high is None or (right.high, not right.high_open) < (high, not high_open)
    ):
        high, high_open = right.high, right.high_open
    step = _common(left.step, right.step)
    return _tight(Numbers(low, low_open, high, high_open, step, left.broken or right.broken))


def _common(left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None:
        return left or right
    top = left.numerator * right.denominator, right.numerator * left.denominator
    least = top[0] // gcd(*top) * top[1]
    return Fraction(least, left.denominator * right.denominator)


def _tight(numbers: Numbers) -> Numbers | None:
    low, low_open, high, high_open, step, broken, _ = numbers
    if step is not None:
        if broken and step.denominator == 1:
            return None
        if low is not None:
            count = ceil(low / step)
            low, low_open = step * (count + (low_open and step * count == low)), False
        if high is not None:
            count = floor(high / step)
            high, high_open = step * (count - (high_open and step * count == high)), False
    if low is not None and high is not None:
        if low > high or (low == high and (low_open or high_open)):
            return None
        if low == high:
            value = frozenset({low})
            return None if broken and low.denominator == 1 else Numbers(listed=value)
    return Numbers(low, low_open, high, high_open, step, broken)


def without(numbers: Numbers) -> list[Numbers] | None:
    """Every other number; None where that cannot be said (multiples of no whole number)."""
    if numbers.listed is not None:
        bounds = [None, *sorted(numbers.listed), None]
        return [
            Numbers(low, low is not None, high, high is not None) for low, high in pairwise(bounds)
        ]
    rest = []
    if numbers.low is not None:
        rest.append(Numbers(high=numbers.low, high_open=not numbers.low_open))
    if numbers.high is not None:
        rest.append(Numbers(low=numbers.high, low_open=not numbers.high_open))
    if numbers.step is not None:
        if numbers.step != 1:
            return None
        rest.append(Numbers(broken=True))
    if numbers.broken:
        rest.append(Numbers(step=Fraction(1)))
    return rest


def spelling(numbers: Numbers) -> tuple[str, bool] | None:
    """(expression, whether it is a `%json` rule instead of a terminal); None = not expressible."""
    if numbers.listed is not None:
        return _one_of(sorted(numbers.listed)), False
    if numbers == EVERY_NUMBER:
        return NUMBER, False
    if numbers == Numbers(step=Fraction(1)):
        return INTEGER, False
    multiples = _multiples(numbers)
    if multiples is not None and numbers.step != 1:
        return _one_of(multiples), False
    kind = _kind(numbers)
    if kind is None:
        return _by_engine(numbers)
    options = []
    if numbers.high is None or numbers.high > 0 or (numbers.high == 0 and not numbers.high_open):
        options.append(_side(numbers, kind))
    if numbers.low is None or numbers.low < 0:
        options.append('"-" ' + _side(_mirrored(numbers), kind))
    options.extend(_exponents(numbers))
    return " | ".join(f"({option})" for option in options), False


def _exponents(numbers: Numbers) -> list[str]:
    if numbers.step is not None:
        return []
    low, high, options = numbers.low, numbers.high, []
    least = Fraction(1, 10**4)
    if (low is None or low <= -least) and (high is None or high >= least):
        options.append(f"/{_SMALL}/")
    elif low is not None and -least < low <= 0 and (high is None or high >= least):
        options.append(f"/{_SMALL[2:]}/")
    if not numbers.broken:
        if high is None and (low is None or low < 10**16):
            options.append(f"/{_LARGE}/")
        if low is None and (high is None or high > -(10**16)):
            options.append(f"/-{_LARGE}/")
    return options


def _multiples(numbers: Numbers) -> list[Fraction] | None:
    if numbers.step is None or numbers.low is None or numbers.high is None or numbers.broken:
        return None
    count = (numbers.high - numbers.low) / numbers.step + 1
    if count > _MOST_LISTED:
        return None
    return [numbers.low + numbers.step * i for i in range(int(count))]


def _mirrored(numbers: Numbers) -> Numbers:
    """Magnitudes of the negative members; zero is left to the other side."""
    low = None if numbers.high is None else -numbers.high
    low_open = numbers.high_open
    if low is None or low < 0:
        low, low_open = Fraction(0), True
    elif low == 0:
        low_open = True
    high = None if numbers.low is None else -numbers.low
    return Numbers(low, low_open, high, numbers.low_open, numbers.step, numbers.broken)


def _kind(numbers: Numbers) -> str | None:
    """Regex of the spellings of non-negative numbers with this step; None = none is known."""
    step = numbers.step
    if numbers.broken:
        return f"{_INTEGER}\\.[0-9]*[1-9][0-9]*" if step is None else None
    if step is None:
        return f"{_INTEGER}(?:\\.[0-9]+)?"
    if step.denominator == 1:
        for digits in range(5):
            if 10**digits % step.numerator == 0:
                return _endings(step.numerator, digits)
        return None
    for digits in range(1, 5):
        if step.numerator == 1 and 10**digits % step.denominator == 0:
            parts = {
                f"{i * 10**digits // step.denominator:0{digits}}".rstrip("0")
                for i in range(1, step.denominator)
            }
            listed = "|".join(sorted(parts))
            if step.denominator == 10**digits:
                listed = f"[0-9]{{1,{digits}}}"
            return f"{_INTEGER}(?:\\.(?:{listed})0*|\\.0+)?"
    return None


def _endings(step: int, digits: int) -> str:
    if digits == 0:
        return _INTEGER
    ends = [f"{i:0{digits}}" for i in range(0, 10**digits, step)]
    short = [str(i) for i in range(0, 10**digits, step)]
    return f"(?:[1-9][0-9]*(?:{'|'.join(ends)})|{'|'.join(sorted(set(short)))})"


def _side(numbers: Numbers, kind: str) -> str:
    parts = [f"/{kind}/"]
    whole = numbers.step is not None and numbers.step.denominator == 1
    if numbers.low is not None and (numbers.low > 0 or (numbers.low == 0 and numbers.low_open)):
        parts.append(f"/{_at_least(numbers.low, numbers.low_open, whole)}/")
    if numbers.high is not None:
        parts.append(f"/{_at_most(numbers.high, numbers.high_open, whole)}/")
    return f"({' & '.join(parts)})"


def _digits_of(value: Fraction) -> tuple[str, str]:
    """Digits before and after the point, without trailing zeros. The value is a decimal."""
    whole = floor(value)
    rest, digits = value - whole, ""
    while rest:
        rest *= 10
        digits += str(floor(rest))
        rest -= floor(rest)
    return str(whole), digits


def _at_least(low: Fraction, is_open: bool, whole: bool) -> str:
    if whole:
        return _more(str(ceil(low)), equal=True)
    digits, rest = _digits_of(low)
    options = [f"(?:{_more(digits, equal=False)})(?:\\.[0-9]+)?"]
    if rest:
        options.append(f"{digits}\\.(?:{_tail_more(rest, is_open)})")
    else:
        options.append(digits + ("\\.[0-9]*[1-9][0-9]*" if is_open else "(?:\\.[0-9]+)?"))
    return "|".join(options)


def _tail_more(rest: str, is_open: bool) -> str:
    if not rest:
        return "[0-9]*[1-9][0-9]*" if is_open else "[0-9]*"
    digit = int(rest[0])
    same = f"{digit}(?:{_tail_more(rest[1:], is_open)})"
    return same if digit == 9 else f"[{digit + 1}-9][0-9]*|{same}"


def _at_most(high: Fraction, is_open: bool, whole: bool) -> str:
    if whole:
        return _less(str(floor(high)), equal=True)
    digits, rest = _digits_of(high)
    options = []
    if digits != "0":
        options.append(f"(?:{_less(digits, equal=False)})(?:\\.[0-9]+)?")
    if rest:
        options.append(f"{digits}(?:\\.(?:{_tail_less(rest, is_open)}))?")
    elif not is_open:
        options.append(f"{digits}(?:\\.0+)?")
    return "|".join(options) if options else "[^\\x00-\\x{10ffff}]"


def _tail_less(rest: str, is_open: bool) -> str:
    digit, last = int(rest[0]), len(rest) == 1
    options = [f"[0-{digit - 1}][0-9]*"] if digit else []
    if not last:
        options.append(f"{digit}(?:{_tail_less(rest[1:], is_open)})?")
    elif not is_open:
        options.append(f"{digit}0*")
    return "|".join(options)


def _more(digits: str, *, equal: bool) -> str:
    """Integers without sign that are above (or equal to) the one with these digits."""
    options = [f"[1-9][0-9]{{{len(digits)},}}"]
    for at, digit in enumerate(digits):
        if digit != "9":
            options.append(f"{digits[:at]}[{int(digit) + 1}-9][0-9]{{{len(digits) - at - 1}}}")
    return "|".join([*options, digits] if equal else options)


def _less(digits: str, *, equal: bool) -> str:
    """Integers without sign that are below (or equal to) the one with these digits."""
    options = []
    if len(digits) > 1:
        options.append("0")
        options.append(f"[1-9][0-9]{{0,{len(digits) - 2}}}")
    for at, digit in enumerate(digits):
        least = 1 if at == 0 and len(digits) > 1 else 0
        if int(digit) > least:
            rest = len(digits) - at - 1
            options.append(f"{digits[:at]}[{least}-{int(digit) - 1}][0-9]{{{rest}}}")
    if equal:
        options.append(digits)
    return "|".join(options) if options else "[^\\x00-\\x{10ffff}]"


def _by_engine(numbers: Numbers) -> tuple[str, bool] | None:
    """Left to the engine's own multiples, where its floating point numbers are exact."""
    bounds = [bound for bound in (numbers.low, numbers.high) if bound is not None]
    if numbers.broken or any(abs(bound) > _LARGEST_FLOAT_EXACT for bound in bounds):
        return None
    schema: dict[str, object] = {"type": "number"}
    for key, value in (
        ("exclusiveMinimum" if numbers.low_open else "minimum", numbers.low),
        ("exclusiveMaximum" if numbers.high_open else "maximum", numbers.high),
        ("multipleOf", numbers.step),
    ):
        if value is not None:
            schema[key] = int(value) if value.denominator == 1 else float(value)
    if numbers.step is not None and numbers.step.denominator == 1:
        schema["type"] = "integer"
    return f"%json {json.dumps(schema)}", True


def _one_of(values: Sequence[Fraction]) -> str:
    """Terminal of some numbers: plain digits where all are whole, as those of `integer`."""
    whole = all(value.denominator == 1 for value in values)
    return f"/{'|'.join(str(value) if whole else _spell_one(value) for value in values)}/"


def _spell_one(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    digits, rest = _digits_of(abs(value))
    text = f"{digits}\\.{rest}0*" if rest else f"{digits}(?:\\.0+)?"
    exponent = repr(float(abs(value))) if abs(value) < 10**300 else ""
    if "e" in exponent and Fraction(exponent) == abs(value):
        text = f"(?:{text}|{exponent.replace('.', chr(92) + '.').replace('+', chr(92) + '+')})"
    return sign + text
