"""From log-probabilities of choices to the choice that is taken. Pure arithmetic, no engine.

Scores of a choice with token log-probabilities l_1 … l_k (natural log, after the lane's tokens):

    token_length_normalized              mean(l)
    total                                sum(l)
    unconditional_likelihood_normalized  mean(l - u), u = log-probabilities of the same tokens
                                         after the start token alone
    greedy_token_selection               no single number: see below

With a baseline, a prompt without content ("Question: N/A. Answer:"), l becomes l - b, b =
log-probabilities of the same tokens after it, and u is b: what the model would say anyway counts
for nothing. With `total` that is contextual calibration (Zhao et al., 2021).

Temperature 0 takes the best score (the first of equals); above 0 a choice is drawn with
probability softmax(score / temperature). Reported probabilities are softmax(score).

Greedy token selection compares token by token, as greedy decoding limited to the choices would: of
the choices left, those with the largest log-probability at the next place stay. A choice that has
run out of tokens is continued with its own mean. Where it has to be a distribution, the same walk
is taken with softmax(log-probability / temperature) over the distinct values at each place; the
choice taken at temperature 0 is the walk's limit and need not be the most probable one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from branchline.runtime.programs.protocol import SelectMethod

Rows = Sequence[Sequence[float]]


class Selection(NamedTuple):
    """Which choice is taken, and how probable each is by the method."""

    winner: int
    probabilities: list[float]


def needs_unconditional(method: SelectMethod) -> bool:
    """True when log-probabilities after the start token alone are wanted too."""
    return method == "unconditional_likelihood_normalized"


def choose(
    method: SelectMethod,
    rows: Rows,
    unconditional: Rows | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    *,
    baseline: Rows | None = None,
) -> Selection:
    """Take one of the choices.

    Args:
        rows: for each choice its token log-probabilities; none empty.
        unconditional: the same after the start token, where `needs_unconditional`.
        baseline: the same after a prompt without content, for methods that have one number for a
            choice.
        seed: of the draw when `temperature` > 0; same seed, same choice.
    """
    if method == "greedy_token_selection":
        padded = _pad(rows)
        probabilities = _walk(padded, 1.0)
        if temperature <= 0.0:
            return Selection(_greedy(padded), probabilities)
        return Selection(_draw(_walk(padded, temperature), seed), probabilities)
    scores = score(method, rows, unconditional, baseline)
    probabilities = softmax(scores)
    if temperature <= 0.0:
        return Selection(max(range(len(scores)), key=scores.__getitem__), probabilities)
    return Selection(_draw(softmax([value / temperature for value in scores]), seed), probabilities)


def score(
    method: SelectMethod,
    rows: Rows,
    unconditional: Rows | None = None,
    baseline: Rows | None = None,
) -> list[float]:
    """Score of each choice by a method that has one number for it."""
    if needs_unconditional(method):
        baseline = unconditional if baseline is None else baseline
        assert baseline is not None, "asked for by needs_unconditional"
    if baseline is not None:
        rows = [
            [_minus(one, other) for one, other in zip(row, base, strict=True)]
            for row, base in zip(rows, baseline, strict=True)
        ]
    if method == "total":
        return [math.fsum(row) for row in rows]
    return [_mean(row) for row in rows]


def softmax(scores: Sequence[float]) -> list[float]:
    """Normalise; equal shares when nothing is possible at all."""
    top = max(scores)
    if top == -math.inf:
        return [1.0 / len(scores)] * len(scores)
    weights = [math.exp(value - top) for value in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _minus(one: float, other: float) -> float:
    return one if one == -math.inf else one - other


def _pad(rows: Rows) -> list[list[float]]:
    longest = max(len(row) for row in rows)
    return [[*row, *[_mean(row)] * (longest - len(row))] for row in rows]


def _greedy(padded: Sequence[Sequence[float]]) -> int:
    left = list(range(len(padded)))
    for place in range(len(padded[0])):
        best = max(padded[index][place] for index in left)
        left = [index for index in left if padded[index][place] == best]
    return left[0]


def _walk(padded: Sequence[Sequence[float]], temperature: float) -> list[float]:
    """Probability of ending at each choice; equals share."""
    result = [0.0] * len(padded)
    places = len(padded[0])
    stack: list[tuple[list[int], int, float]] = [(list(range(len(padded))), 0, 1.0)]
    while stack:
        left, place, probability = stack.pop()
        if place == places or len(left) == 1:
            for index in left:
                result[index] = probability / len(left)
            continue
        groups: dict[float, list[int]] = {}
        for index in left:
            groups.setdefault(padded[index][place], []).append(index)
        shares = softmax([value / temperature for value in groups])
        for members, share in zip(groups.values(), shares, strict=True):
            stack.append((members, place + 1, probability * share))
    return result


def _draw(probabilities: Sequence[float], seed: int | None) -> int:
    """Index drawn by `random.Random(seed)`: the first whose cumulative sum passes one uniform."""
    point = random.Random(seed).random() * math.fsum(probabilities)
    for index, probability in enumerate(probabilities):
        point -= probability
        if point < 0.0:
            return index
    return max(range(len(probabilities)), key=probabilities.__getitem__)
