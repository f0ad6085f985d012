"""An engine port without an engine: answers are scripted, time and steps move only on demand.

It keeps the promises of `EnginePort` (one final output for each sequence, errors at submit) and
records everything, so that tests can say what the executor asked for and what it left behind.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from branchline.runtime.core.messages import EngineRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import (
    FinishReason,
    GenerateDelta,
    GenerateResult,
    Output,
    RequestMeta,
    ScoreResult,
)
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.errors import BranchlineError, InvalidRequest
from branchline.runtime.responses import DECLARED, ToolSpec
from branchline.runtime.responses.reasoning import ReasoningFormat

SPECIALS = {"<|bos|>": 1, "<|end|>": 2, "<|turn|>": 3}
_PIECE = re.compile(r"[A-Za-z]{1,3}|[0-9]|\s+|.", re.DOTALL)
_SPECIAL = re.compile("|".join(re.escape(name) for name in SPECIALS))


class ChunkTokenizer:
    """Up to three letters a token, so that joined texts have other tokens than their parts."""

    def __init__(self, *, bos: bool = False, add_bos: bool = False) -> None:
        self.eos_ids = frozenset({2})
        self.bos_id = 1 if bos else None
        self.add_bos = add_bos
        self.vocab_size = 1 << 20
        self.encoded: list[tuple[str, bool]] = []
        self._ids: dict[str, int] = {}
        self._pieces: dict[int, str] = {number: name for name, number in SPECIALS.items()}
        self._lock = threading.Lock()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self.encoded.append((text, special))
        text.encode("utf-8")  # a lone surrogate is an error, as in real tokenizers
        if not special:
            return self._plain(text)
        ids: list[int] = []
        end = 0
        for match in _SPECIAL.finditer(text):
            ids += [*self._plain(text[end : match.start()]), SPECIALS[match.group()]]
            end = match.end()
        return ids + self._plain(text[end:])

    def _plain(self, text: str) -> list[int]:
        return [self._id(piece) for piece in _PIECE.findall(text)]

    def _id(self, piece: str) -> int:
        with self._lock:
            number = self._ids.get(piece)
            if number is None:
                number = self._ids[piece] = 10 + len(self._ids)
                self._pieces[number] = piece
            return number

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return "".join(self._pieces[i] for i in ids if not (skip_special and i in (1, 2, 3)))


class SimpleTurns:
    """`<|turn|>role\\n … <|end|>\\n`; a default system turn comes first, as in real templates."""

    tool_format = DECLARED

    def begin(self, history: Sequence[tuple[str, str]], role: str) -> str:
        if role not in ("system", "user", "assistant"):
            raise InvalidRequest("the template has no such role", value=role)
        default = "<|turn|>system\nBe good.<|end|>\n" if not history and role != "system" else ""
        return f"{default}<|turn|>{role}\n"

    def end(self, history: Sequence[tuple[str, str]], role: str) -> str:
        return "<|end|>\n"

    def with_tools(self, tools: Sequence[ToolSpec]) -> SimpleTurns:
        return self


@dataclass
class Running:
    """A request that has no final output yet."""

    request: EngineRequest
    on_output: Callable[[Output], None]
    aborted: bool = False


Reply = Callable[[GenerateRequest], str | BranchlineError]
Scorer = Callable[[Sequence[int], Sequence[int]], list[float]]


def default_scorer(prompt: Sequence[int], choice: Sequence[int]) -> list[float]:
    """Any fixed function of prompt and choice."""
    return [-((token * 7 + len(prompt) * 3 + i) % 11) / 5 - 0.1 for i, token in enumerate(choice)]


class ScriptedPort:
    """See module. `sync` answers inside `submit`; else `finish` / `run` answer on demand."""

    def __init__(
        self,
        reply: Reply = lambda request: f"<{request.name}>",
        scorer: Scorer = default_scorer,
        *,
        tokenizer: ChunkTokenizer | None = None,
        max_context: int = 4096,
        sync: bool = False,
    ) -> None:
        self.tokenizer = tokenizer or ChunkTokenizer()
        self.turns = SimpleTurns()
        self.model_name = "scripted"
        self.heals = False
        self.reasoning: ReasoningFormat | None = None
        self.max_context = max_context
        self.reply = reply
        self.scorer = scorer
        self.sync = sync
        self.now = 0.0
        self.requests: list[EngineRequest] = []
        self.running: dict[str, Running] = {}
        self.leases: dict[str, list[int]] = {}
        self.lease_adapters: dict[str, str] = {}
        self.held: list[str] = []
        self.released: list[str] = []
        self._soon: deque[Callable[[], None]] = deque()

    def clock(self) -> float:
        return self.now

    # ---- EnginePort

    def call_soon(self, fn: Callable[[], None]) -> None:
        self._soon.append(fn)

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        if len(request.prompt_ids) >= self.max_context:
            raise InvalidRequest("the prompt is longer than the context")
        assert request.prompt_ids, "a prompt needs a token"
        assert request.id not in self.running, "request ids are used once"
        self.requests.append(request)
        self.running[request.id] = Running(request, on_output)
        if self.sync:
            self.finish(request.id)

    def abort(self, request_id: str) -> None:
        if request_id in self.running:
            self.running[request_id].aborted = True

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        self.leases[lane_id] = list(ids)
        self.lease_adapters[lane_id] = adapter
        self.held.append(lane_id)

    def release(self, lane_id: str) -> None:
        self.leases.pop(lane_id, None)
        self.released.append(lane_id)

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        on_done(0)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        on_done([])

    def info(self) -> dict[str, Any]:
        return {"model": self.model_name}

    # ---- driving

    def pump(self) -> None:
        """Run what was called soon, and what that calls soon."""
        while self._soon:
            self._soon.popleft()()

    def turn(self) -> None:
        """Run what was called soon until now."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def run(self) -> None:
        """Until nothing runs."""
        self.pump()
        while self.running:
            self.finish(next(iter(self.running)))
            self.pump()

    def delta(self, request_id: str, text: str) -> None:
        """Stream some text of a running request."""
        ids = self.tokenizer._plain(text)
        delta = GenerateDelta(request_id=request_id, text=text, token_ids=ids)
        self.running[request_id].on_output(delta)

    def finish(
        self,
        request_id: str,
        text: str | BranchlineError | None = None,
        reason: FinishReason = "stop",
    ) -> None:
        """Send the final outputs of a request."""
        running = self.running.pop(request_id)
        request = running.request
        deadline = request.deadline
        if running.aborted:
            reason = "abort"
        elif deadline is not None and self.now >= deadline:
            reason = "deadline"
        if isinstance(request, ScoreRequest):
            scores = [self.scorer(request.prompt_ids, choice) for choice in request.choices]
            running.on_output(
                ScoreResult(
                    request_id=request.id,
                    token_logprobs=scores,
                    meta=RequestMeta(
                        finish_reason=reason, prompt_tokens=len(request.prompt_ids), forwards=1
                    ),
                )
            )
            return
        assert isinstance(request, GenerateRequest)
        for index in range(request.sampling.n):
            answer = self.reply(request) if text is None else text
            running.on_output(self._result(request, index, answer, reason))

    def _result(
        self,
        request: GenerateRequest,
        index: int,
        answer: str | BranchlineError,
        reason: FinishReason,
    ) -> GenerateResult:
        error = answer.to_wire() if isinstance(answer, BranchlineError) else None
        text = "" if isinstance(answer, BranchlineError) else answer + "'" * index
        ids = self.tokenizer._plain(text)
        return GenerateResult(
            request_id=request.id + (f"#{index}" if index else ""),
            text=text,
            token_ids=ids,
            meta=RequestMeta(
                finish_reason="error" if error else reason,
                prompt_tokens=len(request.prompt_ids),
                cached_tokens=len(request.prompt_ids) // 2,
                output_tokens=len(ids),
                forwards=len(ids),
            ),
            error=error,
        )
