"""Nodes that are running in the engine: a generate (n sequences) or a select (choices
that are decoded, then 1 or 2 scorings).

Invariant: a run is over when every final output it was promised has arrived; only then does its
program hear of it, once. Lives on the loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from branchline.runtime.core.outputs import (
    GenerateDelta,
    GenerateResult,
    Output,
    RequestMeta,
    ScoreResult,
)
from branchline.runtime.errors import (
    BackendError,
    BranchlineError,
    Cancelled,
    DeadlineExceeded,
    from_wire,
    wrap,
)
from branchline.runtime.programs.healing import Seam, strip
from branchline.runtime.programs.protocol import CallMade, Generate, ReasoningDelta, TextDelta
from branchline.runtime.programs.thinking import Thinking
from branchline.runtime.programs.tools import ReplyBuilder, output_parser
from branchline.runtime.responses.reasoning import (
    AnswerPiece,
    Piece,
    ReasoningParser,
    ReasoningPiece,
    Split,
    split,
)

if TYPE_CHECKING:
    from branchline.runtime.programs.intake import SelectChoices
    from branchline.runtime.programs.lane import Lane
    from branchline.runtime.programs.program import RunningProgram
    from branchline.runtime.programs.protocol import ToolCall, ToolReply


class GenerateRun:
    """A generate node between its submission and its last final output.

    Attributes:
        seam: the prompt's last token, if it was taken back; readers never see its text again.
        thinking: how reasoning is told from the answer.
    """

    __slots__ = (
        "_builder",
        "_hidden",
        "_parser",
        "lane",
        "op",
        "program",
        "request_id",
        "results",
        "seam",
        "start",
        "thinking",
    )

    def __init__(
        self,
        program: RunningProgram,
        lane: Lane,
        op: Generate,
        request_id: str,
        start: float,
        seam: Seam | None,
        thinking: Thinking,
    ) -> None:
        self.program = program
        self.lane = lane
        self.op = op
        self.request_id = request_id
        self.start = start
        self.seam = seam
        self.thinking = thinking
        format = thinking.format
        self._parser = None if format is None else ReasoningParser(format, "open")
        self._hidden = 0 if seam is None else len(seam.text)
        self.results: dict[str, GenerateResult] = {}
        self._builder: ReplyBuilder | None = None
        if op.tools is not None and op.stream:
            form = program.turns.tool_format
            self._builder = ReplyBuilder(output_parser(op, form, op.tools.tools))

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests to abort."""
        return (self.request_id,)

    def on_output(self, output: Output) -> None:
        """The engine's callback. With n > 1 only the first sequence is streamed."""
        if isinstance(output, GenerateResult):
            if self._parser is not None and output.request_id == self.request_id:
                self._show(self._parser.finish())
            result = output if self.seam is None else strip(output, self.seam)
            self.results[output.request_id] = result
            if self._builder is not None and output.request_id == self.request_id:
                self._say(self._builder.finish())
            if len(self.results) >= self.op.sampling.n:
                self.program.run_ended(self)
        elif (
            isinstance(output, GenerateDelta)
            and self.op.stream
            and output.text
            and output.request_id == self.request_id
        ):
            text = output.text[self._hidden :]
            self._hidden = max(0, self._hidden - len(output.text))
            if not text:
                return
            self._show([AnswerPiece(text)] if self._parser is None else self._parser.feed(text))

    def _show(self, pieces: list[Piece]) -> None:
        if not self.op.stream:
            return
        for piece in pieces:
            if isinstance(piece, ReasoningPiece):
                place = (self.op.lane, self.op.node, self.op.name)
                self.program.emit_delta(self, ReasoningDelta(*place, piece.text))
            else:
                builder = self._builder
                self._say([piece.text] if builder is None else builder.feed(piece.text))

    def _say(self, parts: list[str] | list[str | ToolCall]) -> None:
        place = (self.op.lane, self.op.node, self.op.name)
        for part in parts:
            event = TextDelta(*place, part) if isinstance(part, str) else CallMade(*place, part)
            self.program.emit_delta(self, event)

    @property
    def reply(self) -> ToolReply | None:
        """What the streamed output says; None where none is streamed, or there are no tools."""
        return None if self._builder is None else self._builder.reply()

    def ordered(self) -> list[GenerateResult]:
        """Results in the order `id`, `id#1`, …"""
        first = self.request_id
        names = [first, *(f"{first}#{index}" for index in range(1, self.op.sampling.n))]
        return [self.results[name] for name in names]

    def divided(self) -> list[Split]:
        """Reasoning and answer of each result, in order."""
        texts = [result.text for result in self.ordered()]
        format = self.thinking.format
        if format is None:
            return [Split("", text, True) for text in texts]
        return [split(format, text, "open") for text in texts]


class Written(NamedTuple):
    """A choice as text; without ids where it cannot be taken."""

    text: str
    ids: tuple[int, ...]


class SelectRun:
    """A select node between its submission and its last final output.

    Attributes:
        prompt: the lane's ids.
        written: each choice; None while it is being decoded.
        score: submits the scorings; called once, when every choice is written.
        branches: request -> index of the choice it decodes.
        score_ids: requests of the scorings.
        error: what went wrong between the two (wire form).
    """

    __slots__ = (
        "_score",
        "branch_results",
        "branches",
        "deadline",
        "error",
        "lane",
        "program",
        "prompt",
        "results",
        "score_ids",
        "start",
        "step",
        "written",
    )

    def __init__(
        self,
        program: RunningProgram,
        lane: Lane,
        step: SelectChoices,
        start: float,
        prompt: list[int],
        written: list[Written | None],
        *,
        score: Callable[[SelectRun], None],
    ) -> None:
        self.program = program
        self.lane = lane
        self.step = step
        self.start = start
        self.prompt = prompt
        self.written = written
        self.deadline: float | None = None
        self.branches: dict[str, int] = {}
        self.branch_results: dict[str, GenerateResult] = {}
        self.score_ids: tuple[str, ...] = ()
        self.results: dict[str, ScoreResult] = {}
        self.error: dict[str, Any] | None = None
        self._score = score

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests to abort."""
        return self.score_ids or tuple(self.branches)

    def on_output(self, output: Output) -> None:
        """The engine's callback."""
        if isinstance(output, ScoreResult):
            self.results[output.request_id] = output
            if len(self.results) >= len(self.score_ids):
                self.program.run_ended(self)
        elif isinstance(output, GenerateResult):
            self.branch_results[output.request_id] = output
            if len(self.branch_results) == len(self.branches) and self.lane.waiting is self:
                self._go_on()

    def _go_on(self) -> None:
        try:
            self._score(self)
        except Exception as error:
            self.error = wrap(error).to_wire()
            self.lane.waiting = self
            self.program.run_ended(self)

    def ordered(self) -> list[ScoreResult]:
        """Conditional scores, then those of the baseline if they were asked for."""
        return [self.results[name] for name in self.score_ids if name in self.results]


Run = GenerateRun | SelectRun


def failure_of(error: dict[str, Any] | None, meta: RequestMeta) -> BranchlineError | None:
    """What a final output says went wrong, if anything."""
    if error is not None:
        return from_wire(error)
    if meta.finish_reason == "abort":
        return Cancelled("the engine ended the request", hint="Run the program again.")
    if meta.finish_reason == "deadline":
        return DeadlineExceeded(
            "the deadline passed before the value was complete", hint="Raise deadline_s."
        )
    if meta.finish_reason == "error":
        return BackendError("the engine failed without saying why", hint="See the engine's log.")
    return None


def total_meta(results: list[GenerateResult]) -> RequestMeta:
    """Meta of n sequences: the first one's, with output counts and forwards of all of them."""
    first = results[0].meta
    if len(results) == 1:
        return first
    return msgspec.structs.replace(
        first,
        **{
            field: sum(getattr(result.meta, field) for result in results)
            for field in (
                "output_tokens",
                "forced_tokens",
                "drafted_tokens",
                "accepted_tokens",
                "forwards",
            )
        },
    )
