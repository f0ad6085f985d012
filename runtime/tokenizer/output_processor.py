"""From ids to what the reader sees, in the engine's own process.

Law: one final output for every sequence. Requests with a `stop_regex` are read on a thread of
their own, so that no pattern can delay a step: the scheduler hears of their stop a little later,
and what was generated meanwhile is dropped. Knows nothing of memory, models or sampling; how text
is read is `SequenceReader`'s.
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
from branchline.runtime.tokenizer.sequence_reader import SequenceReader
from branchline.runtime.tokenizer.side_thread import SideThread
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

logger = logging.getLogger(__name__)

OnOutput = Callable[[Output], None]
Abort = Callable[[str, FinishReason], None]


@dataclass(slots=True)
class _Stream:
    """One sequence being read.

    Attributes:
        reader: None for what has no text.
        needs_text: ids are handed over as they come, not at the end.
        offloaded: read on the side thread.
        shown: ids already handed over.
    """

    on_output: OnOutput
    reader: SequenceReader | None = None
    needs_text: bool = False
    offloaded: bool = False
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
            self._streams[opened.request_id] = _Stream(
                on_output,
                SequenceReader(self._tokenizer, opened),
                needs_text=opened.needs_text,
                offloaded=opened.stop_regex is not None,
            )

    def discard(self, request: EngineRequest) -> None:
        """The request was refused: forget it and its siblings."""
        for name in names_of(request):
            self._streams.pop(name, None)

    def started(self, request: Request) -> None:
        """See `Outbox.started`; nobody here needs to know."""

    def push(self, request: Request) -> bool:
        """Ids were added; True when the text has ended by a stop string."""
        stream = self._streams[request.id]
        if not stream.needs_text or stream.reader is None:
            return False
        reader, tokens = stream.reader, tokens_since(request, stream.shown)
        stream.shown += len(tokens.token_ids)
        if stream.offloaded:
            self._side.put(lambda: self._push_aside(stream, reader, tokens))
            return False
        self._deliver(stream, reader.push(tokens))
        return reader.stopped

    def finish(self, request: Request) -> None:
        """The sequence has ended: send its result."""
        self._forget(request)
        stream = self._streams.pop(request.id)
        reader = stream.reader
        if reader is None:
            self._deliver(stream, [reading_of(request, self.model_name)])
            return
        end = end_of(request, stream.shown, self.model_name)
        if stream.offloaded:
            self._side.put(lambda: self._end_aside(stream, reader, end))
            return
        self._deliver(stream, reader.end(end))

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

    def _push_aside(self, stream: _Stream, reader: SequenceReader, tokens: SequenceTokens) -> None:
        had_stopped = reader.stopped
        outputs = reader.push(tokens)
        self._call_soon(lambda: self._deliver(stream, outputs))
        if reader.stopped and not had_stopped:
            self._call_soon(lambda: self._abort(tokens.request_id, "stop"))

    def _end_aside(self, stream: _Stream, reader: SequenceReader, end: SequenceEnd) -> None:
        outputs = reader.end(end)
        self._call_soon(lambda: self._deliver(stream, outputs))


def _not_connected(*_: object) -> None:
    raise AssertionError("the output processor is not connected to a scheduler")
