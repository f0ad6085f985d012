"""From ids to what the reader sees, in the engine's own process.

Law: one final output for every sequence. Requests with a `stop_regex` are read on a thread of
their own, so that no pattern can delay a step: the scheduler hears of their stop a little later,
and what was generated meanwhile is dropped. Knows nothing of memory, models or sampling; how text
is read is `Reading`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from branchline.runtime.core.messages import EngineRequest, GenerateRequest
from branchline.runtime.core.outputs import FinishReason, Output
from branchline.runtime.core.request import Request
from branchline.runtime.core.sequence import (
    SequenceEnd,
    SequenceTokens,
    end_of,
    names_of,
    openings,
    reading_of,
    tokens_since,
)
from branchline.runtime.tokenizer.reading import Reading
from branchline.runtime.tokenizer.side_thread import SideThread
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

logger = logging.getLogger(__name__)

OnOutput = Callable[[Output], None]
Abort = Callable[[str, FinishReason], None]


@dataclass(slots=True)
class _Stream:
    """One sequence being read.

    Attributes:
        reading: None for what has no text.
        shown: ids already handed over.
    """

    on_output: OnOutput
    reading: Reading | None = None
    shown: int = 0


class OutputProcessor:
    """Reads outputs for all requests of an engine.

    Args:
        tokenizer: of the model.
        model_name: for the meta data of results.
    """

    def __init__(self, tokenizer: TokenizerLike, model_name: str) -> None:
        self._tokenizer = tokenizer
        self.model_name = model_name
        self._streams: dict[str, _Stream] = {}
        self._abort: Abort = _not_connected
        self._forget: Callable[[Request], None] = _not_connected
        self._call_soon: Callable[[Callable[[], None]], None] = _not_connected
        self._side = SideThread("branchline-detokenizer")

    def connect(
        self,
        abort: Abort,
        forget: Callable[[Request], None],
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        """Name the scheduler's side: end a request, forget an ended one, post to the loop."""
        self._abort, self._forget, self._call_soon = abort, forget, call_soon

    def open(self, request: EngineRequest, on_output: OnOutput) -> None:
        """Outputs of `request` (and of its siblings `id#i`) go to `on_output`.

        Raises:
            InvalidRequest: the stop pattern cannot be used.
        """
        if not isinstance(request, GenerateRequest):
            self._streams[request.id] = _Stream(on_output)
            return
        for opened in openings(request):
            self._streams[opened.request_id] = _Stream(on_output, Reading(self._tokenizer, opened))

    def discard(self, request: EngineRequest) -> None:
        """The request was refused: forget it and its siblings."""
        for name in names_of(request):
            self._streams.pop(name, None)

    def started(self, request: Request) -> None:
        """See `Outbox.started`; nobody here needs to know."""

    def push(self, request: Request) -> bool:
        """Ids were added; True when no more of the text are wanted."""
        stream = self._streams[request.id]
        reading = stream.reading
        if reading is None or not reading.as_it_comes:
            return False
        tokens = tokens_since(request, stream.shown)
        stream.shown += len(tokens.token_ids)
        if reading.aside:
            self._side.put(lambda: self._push_aside(stream, reading, tokens))
            return False
        outputs, over = reading.push(tokens)
        self._deliver(stream, outputs)
        return over is not None

    def quiet(self, request: Request) -> bool:
        """See `Outbox.quiet`: its text is read at its end."""
        reading = self._streams[request.id].reading
        return reading is None or not reading.as_it_comes

    def finish(self, request: Request) -> None:
        """The sequence has ended: send its result."""
        self._forget(request)
        stream = self._streams.pop(request.id)
        reading = stream.reading
        if reading is None:
            self._deliver(stream, [reading_of(request, self.model_name)])
            return
        end = end_of(request, stream.shown, self.model_name)
        if reading.aside:
            self._side.put(lambda: self._end_aside(stream, reading, end))
            return
        self._deliver(stream, reading.end(end))

    def close(self) -> None:
        """End the side thread."""
        self._side.close()

    @staticmethod
    def _deliver(stream: _Stream, outputs: list[Output]) -> None:
        for output in outputs:
            try:
                stream.on_output(output)
            except Exception:
                logger.exception("a reader of request %s failed", output.request_id)

    # -- the side thread -------------------------------------------------------------------------

    def _push_aside(self, stream: _Stream, reading: Reading, tokens: SequenceTokens) -> None:
        outputs, over = reading.push(tokens)
        self._call_soon(lambda: self._deliver(stream, outputs))
        if over is not None:
            self._call_soon(lambda: self._abort(tokens.request_id, over))

    def _end_aside(self, stream: _Stream, reading: Reading, end: SequenceEnd) -> None:
        outputs = reading.end(end)
        self._call_soon(lambda: self._deliver(stream, outputs))


def _not_connected(*_: object) -> None:
    raise AssertionError("the output processor is not connected to a scheduler")
