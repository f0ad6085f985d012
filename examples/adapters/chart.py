"""A bar chart as SVG text: shares in groups, one bar a line. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

LINE = 22
LEFT, WIDTH, RIGHT = 230, 380, 60
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}"
    ".back{fill:#8b949e;fill-opacity:.15}.bar{fill:#8b949e}.marked{fill:#1f6feb}"
)


def bars(groups: Mapping[str, Sequence[tuple[str, float, bool]]], title: str) -> str:
    """A chart.

    Args:
        groups: heading to its bars: (label, share in [0, 1], whether it stands out).
        title: for readers who do not see it.

    Returns:
        One SVG document that needs nothing from elsewhere.
    """
    parts: list[str] = []
    y = 0
    for heading, rows in groups.items():
        y += LINE + 8
        parts.append(f'<text class="title" x="8" y="{y}">{escape(heading)}</text>')
        for label, share, marked in rows:
            y += LINE
            kind = "marked" if marked else "bar"
            width = round(min(max(share, 0.0), 1.0) * WIDTH, 1)
            parts += [
                f'<text x="{LEFT - 10}" y="{y}" text-anchor="end">{escape(label)}</text>',
                f'<rect class="back" x="{LEFT}" y="{y - 12}" width="{WIDTH}" height="15"/>',
                f'<rect class="{kind}" x="{LEFT}" y="{y - 12}" width="{width}" height="15"/>',
                f'<text x="{LEFT + WIDTH + 8}" y="{y}">{share:.0%}</text>',
            ]
    size = f"{LEFT + WIDTH + RIGHT} {y + LINE // 2}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
    lines = [head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", *parts, "</svg>"]
    return "\n".join(lines) + "\n"
