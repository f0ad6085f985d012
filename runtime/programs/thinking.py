"""Reasoning of a generate node: whether the model thinks first, and the answer told from it.

Law: where a model thinks, a section is open before the first token, so that constraint and stop
rules know where they begin to hold; the lane's tokens keep the section, the variable's text and the
turn's content leave it out. Without being told, a node thinks where the model's own template means
it to: first in a turn of the assistant, unless the template has closed the section.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import UnsupportedFeature
from branchline.runtime.responses.reasoning import ReasoningFormat, format_named

if TYPE_CHECKING:
    from branchline.runtime.programs.lane import Lane
    from branchline.runtime.programs.program import RunningProgram
    from branchline.runtime.programs.protocol import Generate


class Thinking(NamedTuple):
    """How a node's output is read and sampled, and what was written to open the section.

    Attributes:
        written: tokens appended to the lane.
    """

    format: ReasoningFormat | None
    sampling: SamplingParams
    written: int = 0


def think(program: RunningProgram, lane: Lane, op: Generate, sampling: SamplingParams) -> Thinking:
    """Bring the lane to where the node begins: into a section, or behind one.

    Raises:
        UnsupportedFeature: reasoning is asked for, and the model's template has none.
        InvalidRequest: no format has the name.
    """
    wanted = op.reasoning
    format = format_named(wanted) if isinstance(wanted, str) else program.port.reasoning
    if format is None:
        if wanted:
            raise UnsupportedFeature(
                "the model's chat template has no reasoning section",
                value="reasoning=True",
                hint="Name its format, reasoning='think', or leave reasoning out.",
            )
        return Thinking(None, sampling)
    position = format.position(lane.turn_text())
    assistant = lane.role == "assistant"
    first = assistant and not any(lane.content)
    if wanted is None:
        undecided = position == "undecided" and first and format.by_default
        wanted = assistant and (position == "open" or undecided)
    if not wanted:
        closing = ""
        if position == "open" and op.reasoning is False:
            closing = format.end + format.gap
        elif position == "undecided" and first and op.reasoning is False:
            closing = format.off
        return Thinking(None, sampling, _write(program, lane, closing))
    opening = "" if position == "open" else format.begin
    encode = program.encoder.encode
    end = encode(format.end, True)
    shown = program.port.tokenizer.decode(end) == format.end
    sampling = msgspec.structs.replace(
        sampling,
        section=format.section(lambda text: encode(text, True)),
        skip_special_tokens=sampling.skip_special_tokens and shown,
    )
    return Thinking(format, sampling, _write(program, lane, opening))


def _write(program: RunningProgram, lane: Lane, markup: str) -> int:
    """Append markup; the number of its tokens."""
    before = len(lane.ids)
    if markup:
        lane.append(markup, program.encoder.encode(markup, True), program.encoder)
    return len(lane.ids) - before
