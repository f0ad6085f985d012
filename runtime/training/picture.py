"""Curves of a training run as an SVG picture, drawn without a plotting library.

Invariant: the same curves give the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

_WIDTH, _HEIGHT, _GAP = 430, 250, 56
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bc4c00", "#0a7ea4")


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel: a point (x, y) after another; those without a finite y are left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    x_name: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    width = len(panels) * (_WIDTH + _GAP) + _GAP // 2
    height = _HEIGHT + 2 * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        left = _GAP + number * (_WIDTH + _GAP)
        parts.append(f'<g transform="translate({left} {_GAP})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    drawn = [[point for point in curve.points if isfinite(point[1])] for curve in panel.curves]
    points = [point for curve in drawn for point in curve]
    if not points:
        return [_text(0, -20, f"{panel.title}: nothing yet", bold=True)]
    x_ticks = _ticks(0.0, max(x for x, _ in points))
    y_ticks = _ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return across * _WIDTH, _HEIGHT - up * _HEIGHT

    parts = [_text(0, -26, panel.title, bold=True)]
    for y in y_ticks:
        _, level = place(x_ticks[0], y)
        line = f'<path d="M0 {level:.1f}H{_WIDTH}" stroke="#d8dee4"/>'
        parts += [line, _text(-6, level + 4, f"{y:g}", anchor="end")]
    for x in x_ticks:
        parts.append(_text(place(x, y_ticks[0])[0], _HEIGHT + 18, f"{x:g}", anchor="middle"))
    parts.append(_text(_WIDTH / 2, _HEIGHT + 38, panel.x_name, anchor="middle"))
    for number, (curve, own) in enumerate(zip(panel.curves, drawn, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in own))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        across, down = (number % 4) * 105, -10 + (number // 4) * 13
        parts.append(f'<path d="M{across} {down - 4}h14" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(across + 18, down, curve.name))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round values that include the range."""
    span = max(high - low, 1e-9)
    step = 10.0 ** floor(log10(span / 4))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= 5:
            step *= factor
            break
    first = int(low // step)
    count = 1
    while (first + count) * step < high:
        count += 1
    return [(first + i) * step for i in range(count + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#24292f"{weight}>'
        f"{escape(text)}</text>"
    )
