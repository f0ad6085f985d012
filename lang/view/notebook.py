"""A state as a notebook shows it: its turns and variables, and what they cost. Static HTML.

Never waits and never fails: what has no value yet, or went wrong, says so.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from branchline.lang.transcript import Piece, RoleMark
from branchline.lang.variables import Slot

if TYPE_CHECKING:
    from branchline.lang.state import State

_BOX = (
    "font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;border:1px solid #8884;"
    "border-radius:6px;padding:8px 12px"
)
_GENERATED = "background:#2e9e4f2e;border-radius:3px"
_CHOSEN = "background:#2b7fd12e;border-radius:3px"
_FAILED = "background:#d13b2b2e;border-radius:3px"
_QUIET = "opacity:.6;font-size:11px"


def state_html(state: State) -> str:
    """Text with generated parts marked, and one line of counts."""
    body = "".join(_piece(piece) for piece in state._transcript.all_pieces())
    usage = state.usage
    counts = (
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
        f"{usage.output_tokens} generated ({usage.forced_tokens} forced)"
    )
    name = escape(state._run.name)
    return (
        f'<div style="{_BOX}"><div style="{_QUIET}">{name}</div>{body}'
        f'<div style="{_QUIET};margin-top:6px">{counts}</div></div>'
    )


def _piece(piece: Piece) -> str:
    if isinstance(piece, str):
        return escape(piece)
    if isinstance(piece, RoleMark):
        if not piece.role:
            return ""
        return f'<div style="{_QUIET};margin-top:4px">{escape(piece.role)}</div>'
    style = _CHOSEN if piece.choices else _GENERATED
    style = _FAILED if piece.failure is not None else style
    return f'<span title="{escape(_title(piece))}" style="{style}">{_text(piece)}</span>'


def _text(slot: Slot) -> str:
    if slot.failure is not None:
        return escape("".join(slot.partial) or "✗")
    return escape(slot.texts[0] if slot.texts else "".join(slot.partial) or "…")


def _title(slot: Slot) -> str:
    if slot.failure is not None:
        return f"{slot.name}: {slot.failure}"
    if slot.request is None:
        return f"{slot.name}: not there yet"
    meta = slot.request
    return (
        f"{slot.name}: {meta.output_tokens} tokens in {meta.latency_s:.2f} s, "
        f"{meta.cached_tokens} of {meta.prompt_tokens} prompt tokens cached"
    )
