"""A scripted engine: answers requests from given replies, byte by byte, on a thread of its own.

It keeps the rules of a real one (`EnginePort`): stop strings, max_tokens (a byte is a token),
constraints, deadlines, aborts. Knows nothing of programs.
"""

from __future__ import annotations

import heapq
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from branchline.lang import matching
from branchline.lang.errors import (
    AdapterNotFound,
    BackendError,
    BranchlineError,
    ConstraintError,
    UnsupportedFeature,
    wrap,
)
from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.outputs import (
    FinishReason,
    GenerateDelta,
    GenerateResult,
    Output,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import ChatTurns, TextTokenizer
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.section import SectionScan
from branchline.runtime.grammar.regex_dialect import to_automaton_regex
from branchline.runtime.responses import DECLARED, ToolSpec
from branchline.runtime.responses.reasoning import ReasoningFormat
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from branchline.runtime.tokenizer.stop_regex import compile_stop_regex

MAX_CONTEXT = 1 << 20
OnOutput = Callable[[Output], None]


class PlainTurns:
    """Chat turns as `<|turn|>role` … `<|end|>`, special tokens of the byte tokenizer."""

    tool_format = DECLARED

    def begin(self, history: Sequence[tuple[str, str]], role: str) -> str:
        """Text that opens a turn."""
        return f"<|turn|>{role}\n"

    def end(self, history: Sequence[tuple[str, str]], role: str) -> str:
        """Text that closes it."""
        return "<|end|>\n"

    def with_tools(self, tools: Sequence[ToolSpec]) -> PlainTurns:
        """They have no place for tools."""
        return self


class EventLoop:
    """A thread that runs callbacks in order, and later ones at their time.

    It starts when it is needed, and again after it was stopped, so that nobody waits in vain.
    """

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._lock = threading.RLock()  # collecting garbage may post while it is held
        self._running = False

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Any thread."""
        with self._lock:
            self._inbox.put(callback)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="branchline-mock", daemon=True).start()

    def call_at(self, moment: float, callback: Callable[[], None]) -> None:
        """Loop thread only; `moment` on the monotonic clock."""
        heapq.heappush(self._timers, (moment, next(self._order), callback))

    def stop(self) -> None:
        """End the thread once it has run what is queued."""
        with self._lock:
            if self._running:
                self._inbox.put(None)

    def _run(self) -> None:
        while True:
            timeout = None
            if self._timers:
                timeout = self._timers[0][0] - time.monotonic()
                if timeout <= 0:
                    heapq.heappop(self._timers)[2]()
                    continue
            try:
                callback = self._inbox.get(timeout=timeout)
            except Empty:
                continue
            if callback is not None:
                callback()
            elif self._may_end():
                return

    def _may_end(self) -> bool:
        with self._lock:
            self._running = not self._inbox.empty()
            return not self._running


_Answerable = GenerateRequest | ScoreRequest


class _Running(NamedTuple):
    request: _Answerable
    on_output: OnOutput
    started: float


class ScriptedEngine:
    """See `EnginePort`.

    Args:
        reply: (variable name, text so far) to a text or an exception; called on the loop thread,
            once for each output; may raise.
        latency_s: time from a request to its final output, seconds.
        reasoning: see `EnginePort`.
        adapters: names of those it has; None = any name will do.
    """

    model_name = "mock"
    heals = False
    max_context = MAX_CONTEXT

    def __init__(
        self,
        reply: Callable[[str, str], str | None],
        loop: EventLoop,
        latency_s: float,
        reasoning: ReasoningFormat | None = None,
        adapters: frozenset[str] | None = None,
    ) -> None:
        self.tokenizer: TextTokenizer = ByteTokenizer()
        self.turns: ChatTurns = PlainTurns()
        self.reasoning = reasoning
        self._adapters = adapters
        self._reply = reply
        self._loop = loop
        self._latency_s = latency_s
        self._running: dict[str, _Running] = {}

    # ---- EnginePort

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `EnginePort`."""
        self._loop.call_soon(fn)

    def submit(self, request: EngineRequest, on_output: OnOutput) -> None:
        """See `EnginePort`; there is no model whose states could be embeddings."""
        if isinstance(request, EmbedRequest):
            raise UnsupportedFeature(
                "a scripted engine has no embeddings", value=request.id, hint="Use an Engine."
            )
        known = self._adapters
        if request.adapter and known is not None and request.adapter not in known:
            raise AdapterNotFound(
                "the mock has no adapter of this name",
                value=request.adapter,
                hint=f"It has {', '.join(sorted(known)) or 'none'}.",
            )
        running = _Running(request, on_output, time.monotonic())
        self._running[request.id] = running
        outputs = self._outputs(request, running.started)
        if not self._latency_s:
            self._loop.call_soon(lambda: self._send(request.id, outputs))
            return
        end = running.started + self._latency_s
        if request.deadline is not None and request.deadline < end:
            self._loop.call_at(request.deadline, lambda: self._end(request.id, "deadline"))
            return
        pieces = list(outputs)
        deltas = sum(isinstance(piece, GenerateDelta) for piece in pieces)
        for index, piece in enumerate(pieces):
            share = min(1.0, (index + 1) / (deltas + 1))
            self._loop.call_at(
                running.started + self._latency_s * share,
                partial(self._send, request.id, iter((piece,))),
            )

    def abort(self, request_id: str) -> None:
        """See `EnginePort`."""
        self._loop.call_soon(lambda: self._end(request_id, "abort"))

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """Nothing is cached, so nothing is held."""

    def release(self, lane_id: str) -> None:
        """See `hold`."""

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        """See `hold`."""
        on_done(0)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """See `hold`."""
        on_done([])

    def info(self) -> dict[str, Any]:
        """What this is."""
        return {"model": self.model_name, "max_context": self.max_context}

    # ---- answering

    def _send(self, request_id: str, outputs: Iterator[Output]) -> None:
        for output in outputs:
            running = self._running.get(request_id)
            if running is None:
                return
            if not isinstance(output, GenerateDelta) and self._is_last(running.request, output):
                del self._running[request_id]
            running.on_output(output)

    @staticmethod
    def _is_last(request: _Answerable, output: Output) -> bool:
        count = request.sampling.n if isinstance(request, GenerateRequest) else 1
        last = request.id if count == 1 else f"{request.id}#{count - 1}"
        return output.request_id == last

    def _end(self, request_id: str, reason: FinishReason) -> None:
        running = self._running.pop(request_id, None)
        if running is None:
            return
        request = running.request
        meta = self._meta(request, 0, reason, running.started)
        if isinstance(request, ScoreRequest):
            running.on_output(ScoreResult(request_id=request_id, token_logprobs=[], meta=meta))
            return
        for output_id in _output_ids(request):
            running.on_output(
                GenerateResult(request_id=output_id, text="", token_ids=[], meta=meta)
            )

    def _outputs(self, request: _Answerable, started: float) -> Iterator[Output]:
        if isinstance(request, ScoreRequest):
            yield self._scores(request, started)
            return
        for output_id in _output_ids(request):
            found, error = self._text(request)
            text = found.text
            if request.stream and output_id == request.id:
                for piece in re.findall(r"\s*\S{1,8}|\s+", text):
                    yield GenerateDelta(request_id=output_id, text=piece)
            ids = self.tokenizer.encode(text)
            logprobs = request.sampling.logprobs
            yield GenerateResult(
                request_id=output_id,
                text=text,
                token_ids=ids,
                meta=self._meta(request, len(ids), found.reason, started, found.matched),
                logprobs=[] if logprobs is None else [TokenLogprob(i, 0.0) for i in ids],
                error=error.to_wire() if error is not None else None,
            )

    def _text(self, request: GenerateRequest) -> tuple[Cut, BranchlineError | None]:
        try:
            text = self._reply(request.name, self._text_of(request.prompt_ids))
            if text is None:
                raise BackendError(
                    "the mock has no reply for this variable",
                    value=request.name,
                    variable=request.name,
                    hint="Give Mock a reply for it.",
                )
            found, constraint = cut(text, request.sampling), request.sampling.constraint
            if constraint is not None and found.reason != "length":
                answer = divided(found.text, request.sampling)[1]
                stopped = found.matched is not None
                check_constraint(answer, constraint, request.name, begun=stopped)
                found = found if stopped else found._replace(reason="constraint")
        except Exception as error:
            return Cut("", "error"), wrap(error)
        return found, None

    def _scores(self, request: ScoreRequest, started: float) -> ScoreResult:
        texts = [self.tokenizer.decode(ids) for ids in request.choices]
        error: BranchlineError | None = None
        rows: list[list[float]] = []
        try:
            if not request.lane_id:  # the same choices without their prompt: nothing to prefer
                rows = [[-1.0] * len(ids) for ids in request.choices]
            else:
                wanted = self._reply(request.name, self._text_of(request.prompt_ids))
                rows = [score_row(text, texts, wanted) for text in texts]
        except Exception as failure:
            error = wrap(failure)
        return ScoreResult(
            request_id=request.id,
            token_logprobs=rows,
            meta=self._meta(request, 0, "stop", started),
            error=error.to_wire() if error is not None else None,
        )

    def _text_of(self, ids: Sequence[int]) -> str:
        """Text with turn markup, without the start token that an empty lane begins with."""
        begin = 1 if ids and ids[0] == self.tokenizer.bos_id else 0
        return self.tokenizer.decode(ids[begin:], skip_special=False)

    def _meta(
        self,
        request: _Answerable,
        output: int,
        reason: FinishReason,
        started: float,
        matched: str | int | None = None,
    ) -> RequestMeta:
        spent = time.monotonic() - started
        return RequestMeta(
            finish_reason=reason,
            matched=matched,
            seed=request.sampling.seed if isinstance(request, GenerateRequest) else None,
            prompt_tokens=len(request.prompt_ids),
            output_tokens=output,
            forwards=output,
            ttft_s=spent,
            latency_s=spent,
            model=self.model_name,
            adapter=request.adapter,
        )


class Cut(NamedTuple):
    """What is left of a reply, and why; `matched` as in `RequestMeta`."""

    text: str
    reason: FinishReason = "stop"
    matched: str | int | None = None


def cut(text: str, sampling: SamplingParams) -> Cut:
    """Where stop strings, stop_regex, stop ids and max_tokens (bytes) end a text.

    Raises `InvalidRequest` for a stop_regex that an engine does not take.
    """
    head, text = divided(text, sampling)
    begin, end, matched = len(text), len(text), None
    for stop in sampling.stop:
        at = text.find(stop)
        if at >= 0 and at + len(stop) <= end:
            begin, end, matched = min(begin, at), at + len(stop), stop
    if sampling.stop_regex is not None:
        compile_stop_regex(sampling.stop_regex)
        match = re.search(sampling.stop_regex, text)
        if match is not None and match.end() <= end:
            begin, end, matched = min(begin, match.start()), match.end(), match.group()
    whole = head + text
    stopped = Cut(head + text[: end if sampling.keep_stop else begin], "stop", matched)
    ids, last = whole.encode("utf-8"), len((head + text[:end]).encode("utf-8"))
    for at in range(sampling.min_tokens, last):
        if ids[at] in sampling.stop_token_ids:
            stopped, last = Cut(_whole_characters(ids[:at]), "stop", ids[at]), at
            break
    limit = sampling.max_tokens
    if limit is not None and last > limit:
        return Cut(_whole_characters(ids[:limit]), "length")
    return stopped


def _whole_characters(text: bytes) -> str:
    return text.decode("utf-8", "ignore")


def divided(text: str, sampling: SamplingParams) -> tuple[str, str]:
    """What belongs to the section that a text begins with, and what stands behind it."""
    return ("", text) if sampling.section is None else SectionScan(sampling.section).feed(text)


def check_constraint(text: str, constraint: Constraint, name: str, *, begun: bool = False) -> None:
    """Raise `ConstraintError` when a reply is not what a real engine could have written.

    Without the packages of the grammar engine, of JSON and grammars only the value is checked, when
    it is read.

    Args:
        begun: a stop has cut the text, so that it may be the beginning of a match.

    Raises `InvalidRequest` and `UnsupportedConstraint` for a pattern that an engine does not take.
    """
    where = ""
    if constraint.kind == "regex":
        to_automaton_regex(constraint.text)
    if constraint.kind == "choices":
        choices = json.loads(constraint.text)
        fits = text in choices or (begun and any(each.startswith(text) for each in choices))
    elif constraint.kind == "regex" and re.fullmatch(constraint.text, text) is not None:
        fits = True
    elif (constraint.kind != "regex" or begun) and matching.installed():
        found = matching.engine_match(constraint, text)
        fits = found.status == "full" or (begun and found.status == "prefix")
        where = ": it is cut short" if found.error_at is None else f" at character {found.error_at}"
    else:
        fits = begun or constraint.kind != "regex"
    if not fits:
        raise ConstraintError(
            f"the mock's reply does not match the {constraint.kind} constraint{where}",
            value=text,
            variable=name,
            hint=f"A model could not write it under {constraint.text!r}.",
        )


def score_row(text: str, texts: Sequence[str], wanted: str | None) -> list[float]:
    """Log-probabilities of one choice's bytes: the wanted one wins by every method.

    Where nothing is wanted, scores are an arbitrary but fixed function of the text.
    """
    size = len(text.encode("utf-8"))
    if wanted is not None and wanted not in texts:
        wanted = next((other for other in texts if other.strip() == wanted.strip()), None)
    if wanted == text:
        return [-0.001 / size] * size
    return [-1.0 - zlib.crc32(text.encode("utf-8")) / 2**32] * size


def _output_ids(request: GenerateRequest) -> list[str]:
    return [request.id, *(f"{request.id}#{index}" for index in range(1, request.sampling.n))]
