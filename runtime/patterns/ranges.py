"""Sets of code points as ranges.

Invariant: ranges are sorted, disjoint and closed, none touches the next, and half surrogates are in
none.
"""

from __future__ import annotations

from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, non-adjacent closed ranges of code points."""

EVERY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and merge ranges; half surrogates drop out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if low > high:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return intersect_ranges(tuple(merged), EVERY)


def invert_ranges(ranges: Ranges) -> Ranges:
    """All code points that are not in `ranges`."""
    gaps, start = [], 0
    for low, high in ranges:
        gaps.append((start, low - 1))
        start = high + 1
    gaps.append((start, 0x10FFFF))
    return intersect_ranges(tuple(pair for pair in gaps if pair[0] <= pair[1]), EVERY)


def intersect_ranges(left: Ranges, right: Ranges) -> Ranges:
    """Code points in both."""
    out, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            out.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def in_ranges(ranges: Ranges, char: int) -> bool:
    """Whether a code point is in `ranges`."""
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle][1] < char:
            low = middle + 1
        else:
            high = middle
    return low < len(ranges) and ranges[low][0] <= char
