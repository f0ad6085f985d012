"""From ids to what the reader sees: text deltas, stop strings, the final result.

Laws: text, kept ids and finish reason are the same however the ids were split into steps; one
final output for every sequence. Requests with a `stop_regex` are read on a thread of their own, so
that no pattern can delay a step: the scheduler hears of their stop a little later, and what was
generated meanwhile is dropped. Knows nothing of memory, models or sampling.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from branchline.runtime.core.messages import EngineRequest, GenerateRequest
from branchline.runtime.core.outputs import (
    FinishReason,
    GenerateDelta,
    GenerateResult,
    Output,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.request import Request
from branchline.runtime.errors import BranchlineError, DeadlineExceeded
from branchline.runtime.tokenizer.detokenizer import TextState
from branchline.runtime.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

OnOutput = Callable[[Output], None]
Abort = Callable[[str, FinishReason], None]


@dataclass(slots=True)
class _Stream:
    """One sequence being read.

    Attributes:
        text: None when nobody needs text before the end.
        shown: ids already read.
        given: of those, ids that a delta has brought.
        held: log-probabilities of ids that no delta has brought yet.
        offloaded: read on the side thread.
        stopped: its text has ended; later ids are ignored.
    """

    on_output: OnOutput
    text: TextState | None
    stream: bool
    offloaded: bool
    shown: int = 0
    given: int = 0
    held: list[TokenLogprob] = field(default_factory=list)
    stopped: bool = False


class OutputProcessor:
    """Reads outputs for all requests of an engine.

    Args:
        tokenizer: of the model.
        model_name: for the meta data of results.
    """

    def __init__(self, tokenizer: Tokenizer, model_name: str) -> None:
        self._tokenizer = tokenizer
        self.model_name = model_name
        self._streams: dict[str, _Stream] = {}
        self._abort: Abort = _not_connected
        self._forget: Callable[[Request], None] = _not_connected
        self._call_soon: Callable[[Callable[[], None]], None] = _not_connected
        self._side: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

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
        count = 1
        if isinstance(request, GenerateRequest):
            count = request.sampling.n
        for index in range(count):
            name = request.id if index == 0 else f"{request.id}#{index}"
            self._streams[name] = self._stream(request, on_output)

    def discard(self, request_id: str) -> None:
        """The request was refused: forget it and its siblings."""
        self._streams.pop(request_id, None)
        index = 1
        while self._streams.pop(f"{request_id}#{index}", None) is not None:
            index += 1

    def push(self, request: Request) -> bool:
        """Ids were added; True when the text has ended by a stop string."""
        stream = self._streams[request.id]
        if stream.text is None:
            return False
        start = stream.shown
        ids = request.ids[request.prompt_len + start : request.length].tolist()
        stream.shown += len(ids)
        found = request.progress.logprobs
        logprobs = found[start : stream.shown] if found else []
        if stream.offloaded:
            self._side.put(lambda: self._push_aside(request, stream, ids, logprobs))
            return False
        self._deliver(stream, self._read(request.id, stream, ids, logprobs))
        return stream.stopped

    def finish(self, request: Request) -> None:
        """The sequence has ended: send its result."""
        self._forget(request)
        stream = self._streams.pop(request.id)
        if stream.offloaded:
            self._side.put(lambda: self._finish_aside(request, stream))
            return
        self._deliver(stream, self._result(request, stream))

    def close(self) -> None:
        """End the side thread."""
        if self._thread is not None:
            self._side.put(None)
            self._thread.join(5.0)

    def _stream(self, request: EngineRequest, on_output: OnOutput) -> _Stream:
        if not isinstance(request, GenerateRequest):
            return _Stream(on_output, None, False, False)
        sampling = request.sampling
        needs_text = request.stream or bool(sampling.stop) or sampling.stop_regex is not None
        text = (
            TextState(
                self._tokenizer,
                stop=sampling.stop,
                stop_regex=sampling.stop_regex,
                min_tokens=sampling.min_tokens,
            )
            if needs_text
            else None
        )
        offloaded = sampling.stop_regex is not None
        if offloaded and self._thread is None:
            self._thread = threading.Thread(
                target=self._run_side, name="branchline-detokenizer", daemon=True
            )
            self._thread.start()
        return _Stream(on_output, text, request.stream, offloaded)

    # -- reading ---------------------------------------------------------------------------------

    def _read(
        self, request_id: str, stream: _Stream, ids: list[int], logprobs: list[TokenLogprob]
    ) -> list[Output]:
        if stream.stopped or stream.text is None:
            return []
        text, hit = stream.text.push(ids)
        stream.stopped = hit is not None
        if not stream.stream:
            return []
        stream.held += logprobs
        if not text:
            return []
        delta = GenerateDelta(request_id=request_id, text=text)
        if stream.text.settled:
            delta.token_ids, stream.given = stream.text.ids_from(stream.given), stream.text.length
            delta.logprobs, stream.held = stream.held, []
        return [delta]

    def _result(self, request: Request, stream: _Stream) -> list[Output]:
        if request.score is not None:
            scores = ScoreResult(
                request_id=request.id,
                token_logprobs=request.score.results,
                meta=self._meta(request, request.finish or "error", 0),
                error=_error(request),
            )
            return [scores]
        outputs: list[Output] = []
        reason = request.finish or "error"
        ids = request.output_ids()
        if stream.text is None:
            text, kept = self._tokenizer.decode(ids), ids
        else:
            tail, hit = ("", None) if stream.stopped else stream.text.push([], finished=True)
            stream.stopped = stream.stopped or hit is not None
            text, kept = stream.text.text, stream.text.kept_ids()
            rest = kept[stream.given :]
            if stream.stream and (tail or rest):
                outputs.append(
                    GenerateDelta(
                        request_id=request.id,
                        text=tail,
                        token_ids=rest,
                        logprobs=request.progress.logprobs[stream.given : len(kept)],
                    )
                )
            if stream.stopped and reason in ("length", "constraint", "abort"):
                reason = "stop"
        outputs.append(
            GenerateResult(
                request_id=request.id,
                text=text,
                token_ids=kept,
                meta=self._meta(request, reason, len(kept)),
                logprobs=request.progress.logprobs[: len(kept)],
                prompt_logprobs=request.progress.prompt_logprobs,
                error=None if reason == "stop" else _error(request),
            )
        )
        return outputs

    def _meta(self, request: Request, reason: FinishReason, output_tokens: int) -> RequestMeta:
        times, progress = request.times, request.progress
        end = times.finished or time.monotonic()
        return RequestMeta(
            finish_reason=reason,
            prompt_tokens=request.prompt_len,
            cached_tokens=min(progress.cached_tokens, request.prompt_len),
            output_tokens=output_tokens,
            forced_tokens=progress.forced_tokens,
            forwards=progress.forwards,
            retractions=progress.retractions,
            ttft_s=(times.first_token or end) - times.created,
            latency_s=end - times.created,
            queue_s=(times.admitted or end) - times.created,
            seed=None if request.score is not None else request.seed,
            model=self.model_name,
        )

    @staticmethod
    def _deliver(stream: _Stream, outputs: list[Output]) -> None:
        for output in outputs:
            try:
                stream.on_output(output)
            except Exception:
                logger.exception("a reader of request %s failed", output.request_id)

    # -- the side thread -------------------------------------------------------------------------

    def _run_side(self) -> None:
        while (job := self._side.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("reading an output failed")

    def _push_aside(
        self,
        request: Request,
        stream: _Stream,
        ids: list[int],
        logprobs: list[TokenLogprob],
    ) -> None:
        had_stopped = stream.stopped
        outputs = self._read(request.id, stream, ids, logprobs)
        self._call_soon(lambda: self._deliver(stream, outputs))
        if stream.stopped and not had_stopped:
            self._call_soon(lambda: self._abort(request.id, "stop"))

    def _finish_aside(self, request: Request, stream: _Stream) -> None:
        outputs = self._result(request, stream)
        self._call_soon(lambda: self._deliver(stream, outputs))


def _error(request: Request) -> dict[str, str | bool] | None:
    error: BranchlineError | None = request.progress.error
    if error is None and request.finish == "deadline":
        error = DeadlineExceeded(
            "the deadline passed before the output was complete", hint="Raise deadline_s."
        )
    return None if error is None else error.to_wire()


def _not_connected(*_: object) -> None:
    raise AssertionError("the output processor is not connected to a scheduler")
