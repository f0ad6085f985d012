"""An engine port whose outputs are given texts, cut into deltas as a test wants them.

A token is a byte. Streams bring every id and log-probability once, as a real engine does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from branchline.lang.backends.scripted import EventLoop, PlainTurns
from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.outputs import (
    EmbedResult,
    GenerateDelta,
    GenerateResult,
    Output,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import ChatTurns
from branchline.runtime.core.sequence import sequence_names
from branchline.runtime.errors import BranchlineError
from branchline.runtime.responses.reasoning import ReasoningFormat
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

Reply = Callable[[str, int], str]
"""(prompt, index of the output) to its text."""
Cut = Callable[[str], Sequence[str]]


def by_characters(text: str) -> Sequence[str]:
    """A delta for each character."""
    return list(text)


class SpelledPort:
    """See `EnginePort`.

    Attributes:
        reply, cut: may be changed between requests.
        likely: the log-probability of a token that is scored.
        endless: while set, outputs end only when they are aborted.
    """

    def __init__(self, reply: Reply, cut: Cut = by_characters) -> None:
        self.tokenizer = ByteTokenizer()
        self.turns: ChatTurns = PlainTurns()
        self.model_name = "spelled"
        self.max_context = 4096
        self.heals = False
        self.reasoning: ReasoningFormat | None = None
        self.reply = reply
        self.cut = cut
        self.likely: Callable[[int], float] = lambda token: -1.0
        self.endless = False
        self.requests: list[EngineRequest] = []
        self.aborted = threading.Event()
        self.flushed = 0
        self._loop = EventLoop()
        self._open: dict[str, tuple[GenerateRequest, Callable[[Output], None]]] = {}

    def close(self) -> None:
        self._loop.stop()

    def call_soon(self, fn: Callable[[], None]) -> None:
        self._loop.call_soon(fn)

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        self.requests.append(request)
        if isinstance(request, ScoreRequest):
            on_output(
                ScoreResult(
                    request_id=request.id,
                    token_logprobs=[list(map(self.likely, item)) for item in request.choices],
                    meta=RequestMeta(prompt_tokens=len(request.prompt_ids)),
                )
            )
            return
        if isinstance(request, EmbedRequest):
            meta = RequestMeta(prompt_tokens=len(request.prompt_ids))
            on_output(EmbedResult(request_id=request.id, embedding=[0.6, 0.8], meta=meta))
            return
        self._open[request.id] = (request, on_output)
        self._loop.call_soon(lambda: self._answer(request, on_output))

    def abort(self, request_id: str) -> None:
        if request_id in self._open:
            request, on_output = self._open.pop(request_id)
            for name in sequence_names(request.id, request.sampling.n):
                meta = RequestMeta(finish_reason="abort")
                on_output(GenerateResult(request_id=name, text="", token_ids=[], meta=meta))
            self.aborted.set()

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """Nothing is cached."""

    def release(self, lane_id: str) -> None:
        """Nothing is held."""

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        self.flushed += 1
        on_done(7)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        on_done([])

    def info(self) -> dict[str, Any]:
        return {"model": self.model_name, "settings": {}}

    def _answer(self, request: GenerateRequest, on_output: Callable[[Output], None]) -> None:
        prompt = self.tokenizer.decode(request.prompt_ids, skip_special=False)
        names = sequence_names(request.id, request.sampling.n)
        texts = [self.reply(prompt, index) for index in range(len(names))]
        if request.stream:
            cuts = [list(self.cut(text)) for text in texts]
            for turn in range(max(map(len, cuts))):
                for name, pieces in zip(names, cuts, strict=True):
                    if turn < len(pieces):
                        on_output(self._delta(request, name, pieces[turn]))
        if self.endless:
            return
        self._open.pop(request.id, None)
        for name, text in zip(names, texts, strict=True):
            ids = self.tokenizer.encode(text)
            on_output(
                GenerateResult(
                    request_id=name,
                    text=text,
                    token_ids=ids,
                    logprobs=_logprobs(request, ids),
                    meta=RequestMeta(
                        prompt_tokens=len(request.prompt_ids),
                        cached_tokens=1,
                        output_tokens=len(ids),
                        matched=257,
                    ),
                )
            )

    def _delta(self, request: GenerateRequest, name: str, text: str) -> GenerateDelta:
        ids = self.tokenizer.encode(text)
        logprobs = _logprobs(request, ids)
        return GenerateDelta(request_id=name, text=text, token_ids=ids, logprobs=logprobs)


def _logprobs(request: GenerateRequest, ids: Sequence[int]) -> list[TokenLogprob]:
    count = request.sampling.logprobs
    if count is None:
        return []
    top = [tuple((i + j, -0.5 - j) for j in range(count)) for i in ids]
    return [TokenLogprob(i, -0.5, alternatives) for i, alternatives in zip(ids, top, strict=True)]
