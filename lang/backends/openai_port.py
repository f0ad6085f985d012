"""An OpenAI-compatible server as an engine for the executor of programs.

It keeps the rules of `EnginePort`: one final output for each sequence, deadlines, aborts. A token
here is a byte, since the server does not say which tokens it has; counts are the server's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from branchline.lang.backends.loop_thread import LoopThread
from branchline.lang.backends.openai_http import Json, OpenAIClient
from branchline.lang.backends.openai_prompt import (
    NO_LIMIT,
    Conversation,
    read_prompt,
    sampling_fields,
)
from branchline.lang.backends.scripted import PlainTurns
from branchline.lang.errors import (
    BackendError,
    BranchlineError,
    UnsupportedFeature,
    wrap,
)
from branchline.runtime.core.messages import EngineRequest, GenerateRequest, ScoreRequest
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
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from branchline.runtime.responses.reasoning import ReasoningFormat

OnOutput = Callable[[Output], None]

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
    "abort": "abort",
}


class OpenAIPort:
    """See `EnginePort`. All but `call_soon` runs on the thread's event loop.

    Attributes:
        server: what answers; see `openai.FEATURES`.
        client: sends the requests.
    """

    heals = False
    reasoning: ReasoningFormat | None = None
    max_context = 2 * NO_LIMIT

    def __init__(self, model: str, client: OpenAIClient, thread: LoopThread) -> None:
        self.tokenizer: TextTokenizer = ByteTokenizer()
        self.turns: ChatTurns = PlainTurns()
        self.model_name = model
        self.server = "plain"
        self.client = client
        self._thread = thread
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # ---- EnginePort

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `EnginePort`."""
        self._thread.call_soon(fn)

    def submit(self, request: EngineRequest, on_output: OnOutput) -> None:
        """See `EnginePort`; UnsupportedFeature before anything is sent."""
        prompt = read_prompt(request.prompt_ids)
        job: _Generation | _Scoring
        if isinstance(request, ScoreRequest):
            job = _Scoring(self, request, prompt)
        elif isinstance(request, GenerateRequest):
            job = _Generation(self, request, prompt)
        else:
            raise UnsupportedFeature(
                "this backend runs programs, which have no embeddings",
                value=request.id,
                hint="Ask the server's /v1/embeddings.",
            )
        task = asyncio.get_running_loop().create_task(self._run(job, request, on_output))
        self._tasks[request.id] = task

    def abort(self, request_id: str) -> None:
        """See `EnginePort`."""
        if (task := self._tasks.get(request_id)) is not None:
            # After the task has begun: one that never did would have no final output.
            asyncio.get_running_loop().call_soon(task.cancel)

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """What the server caches is its own affair."""

    def release(self, lane_id: str) -> None:
        """See `hold`."""

    def flush(self, on_done: Callable[[int], None]) -> None:
        """See `hold`."""
        on_done(0)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """See `hold`."""
        on_done([])

    def info(self) -> dict[str, Any]:
        """What this is."""
        return {"model": self.model_name, "server": self.server, "url": self.client.base_url}

    # ---- inside

    def model_fields(self, adapter: str) -> Json:
        """Who writes: vLLM and this project's server know an adapter as a model, SGLang has a field
        of its own for it."""
        if not adapter:
            return {"model": self.model_name}
        if self.server == "sglang":
            return {"model": self.model_name, "lora_path": adapter}
        return {"model": adapter}

    async def _run(
        self, job: _Generation | _Scoring, request: EngineRequest, on_output: OnOutput
    ) -> None:
        """One request to its final outputs, whatever happens."""
        reason: FinishReason = "stop"
        error: BranchlineError | None = None
        try:
            left = None if request.deadline is None else request.deadline - time.monotonic()
            async with asyncio.timeout(left):
                await job.run(on_output)
        except asyncio.CancelledError:
            reason = "abort"
        except TimeoutError:
            reason = "deadline"
        except Exception as failure:
            reason, error = "error", wrap(failure)
        finally:
            self._tasks.pop(request.id, None)
        for output in job.outputs(reason, error):
            on_output(output)


class _Generation:
    """One generate request."""

    def __init__(
        self, port: OpenAIPort, request: GenerateRequest, prompt: Conversation | str
    ) -> None:
        self._port = port
        self._request = request
        self._stream = request.stream
        self._texts = [""] * request.sampling.n
        self._reasons: list[FinishReason | None] = [None] * request.sampling.n
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in self._texts]
        self._usage: Json = {}
        self._began = time.monotonic()
        self._first: float | None = None
        chat = isinstance(prompt, Conversation)
        self._chat = chat
        self._path = "/chat/completions" if chat else "/completions"
        self._body: Json = {
            **port.model_fields(request.adapter),
            **_prompt_fields(prompt, port.server),
            **sampling_fields(request.sampling, chat=chat, server=port.server),
        }
        if self._stream:
            self._body |= {"stream": True, "stream_options": {"include_usage": True}}

    async def run(self, on_output: OnOutput) -> None:
        """Send, and take the answer."""
        client = self._port.client
        if not self._stream:
            self._take(await client.post(self._path, self._body), lambda text: None)
        else:
            request_id = self._request.id

            def tell(text: str) -> None:
                on_output(GenerateDelta(request_id=request_id, text=text))

            async for chunk in client.stream(self._path, self._body):
                self._take(chunk, tell)
        if None in self._reasons:
            raise BackendError(
                "the server's answer ended before the text did",
                value=f"{sum(r is None for r in self._reasons)} of {len(self._reasons)} outputs",
                hint="Try again.",
                retryable=True,
            )

    def _take(self, found: Json, tell: Callable[[str], None]) -> None:
        """One answer, or one chunk of it."""
        try:
            self._usage = found.get("usage") or self._usage
            for choice in found.get("choices") or ():
                index = choice.get("index", 0)
                part = choice.get("delta") or choice.get("message") or {}
                text = (part.get("content") if self._chat else choice.get("text")) or ""
                if text:
                    self._first = self._first or time.monotonic()
                    self._texts[index] += text
                    if index == 0:
                        tell(text)
                self._logprobs[index] += _logprobs(choice.get("logprobs"))
                if (reason := choice.get("finish_reason")) is not None:
                    self._reasons[index] = _reason(reason)
        except (AttributeError, IndexError, TypeError, ValueError, KeyError) as error:
            raise BackendError(
                f"the server's answer has not the form of the OpenAI API: {error!r}",
                value=str(found)[:200],
                hint="Is it an OpenAI-compatible server?",
            ) from error

    def outputs(self, reason: FinishReason, error: BranchlineError | None) -> list[Output]:
        """Final outputs, with what there is of each text."""
        first = self._request.id
        found: list[Output] = []
        for index, text in enumerate(self._texts):
            own = self._reasons[index] if reason == "stop" else reason
            found.append(
                GenerateResult(
                    request_id=first if not index else f"{first}#{index}",
                    text=text,
                    token_ids=self._port.tokenizer.encode(text),
                    meta=self._meta(own or reason, index),
                    logprobs=self._logprobs[index],
                    error=None if error is None else error.to_wire(),
                )
            )
        return found

    def _meta(self, reason: FinishReason, index: int) -> RequestMeta:
        """The server counts all n outputs together; they are told with the first."""
        usage, now = self._usage, time.monotonic()
        details = usage.get("prompt_tokens_details") or {}
        return RequestMeta(
            finish_reason=reason,
            prompt_tokens=usage.get("prompt_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=(usage.get("completion_tokens") or 0) if index == 0 else 0,
            ttft_s=(self._first or now) - self._began,
            latency_s=now - self._began,
            seed=self._request.sampling.seed,
            model=self._port.model_name,
            adapter=self._request.adapter,
        )


class _Scoring:
    """The choices of one select, each read back from the server with its log-probabilities."""

    def __init__(self, port: OpenAIPort, request: ScoreRequest, prompt: Conversation | str) -> None:
        if isinstance(prompt, Conversation):
            raise UnsupportedFeature(
                "an OpenAI-compatible server cannot score choices inside of chat turns",
                value=request.name,
                hint="Select without turns, use gen(choices=…) with a constraint, or an Endpoint.",
            )
        if not request.lane_id:
            raise UnsupportedFeature(
                "an OpenAI-compatible server cannot score choices without their prompt",
                value="unconditional_likelihood_normalized",
                hint="Use another select method.",
            )
        self._port = port
        self._request = request
        self._prompt = prompt
        self._rows: list[list[float]] = []
        self._began = time.monotonic()

    async def run(self, on_output: OnOutput) -> None:
        """Ask for all choices at once."""
        texts = [self._port.tokenizer.decode(choice) for choice in self._request.choices]
        self._rows = await asyncio.gather(*(self._score(text) for text in texts))

    async def _score(self, choice: str) -> list[float]:
        """Log-probabilities of the tokens of the whole text that reach into the choice."""
        body = {
            **self._port.model_fields(self._request.adapter),
            "prompt": self._prompt + choice,
            "max_tokens": 0,
            "echo": True,
            "logprobs": 0,
        }
        found = await self._port.client.post("/completions", body)
        try:
            told = found["choices"][0]["logprobs"]
            ends = [at + len(t) for at, t in zip(told["text_offset"], told["tokens"], strict=True)]
            pairs = zip(ends, told["token_logprobs"], strict=True)
            row = [float(lp) for end, lp in pairs if end > len(self._prompt) and lp is not None]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"the server gives no log-probabilities of a text it was sent: {error!r}",
                value=choice,
                hint="Use a server whose completions support echo with logprobs.",
            ) from error
        if not row:
            raise BackendError("the server gives no log-probabilities of a choice", value=choice)
        return row

    def outputs(self, reason: FinishReason, error: BranchlineError | None) -> list[Output]:
        """The one final output."""
        now = time.monotonic()
        meta = RequestMeta(
            finish_reason=reason,
            latency_s=now - self._began,
            model=self._port.model_name,
            adapter=self._request.adapter,
        )
        return [
            ScoreResult(
                request_id=self._request.id,
                token_logprobs=self._rows,
                meta=meta,
                error=None if error is None else error.to_wire(),
            )
        ]


def _prompt_fields(prompt: Conversation | str, server: str) -> Json:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not prompt.begun:
        return {"messages": prompt.messages}
    if server in ("openai", "plain"):
        raise UnsupportedFeature(
            "this server cannot go on with text that the assistant's turn begins with",
            value=prompt.begun,
            hint="Generate at the beginning of the turn, or run on an Engine or Endpoint.",
        )
    begun = {"role": "assistant", "content": prompt.begun}
    return {
        "messages": [*prompt.messages, begun],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def _reason(told: str) -> FinishReason:
    if told == "content_filter":
        raise ValueError("the server's content filter has cut the text")
    return _REASONS.get(told, "stop")


def _logprobs(told: Json | None) -> list[TokenLogprob]:
    """Log-probabilities as the API tells them; it tells no token ids, so they are -1."""
    if not told:
        return []
    if (content := told.get("content")) is not None:
        return [
            TokenLogprob(
                -1,
                float(item["logprob"]),
                tuple((-1, float(top["logprob"])) for top in item.get("top_logprobs") or ()),
            )
            for item in content
        ]
    tops = told.get("top_logprobs") or [None] * len(told["token_logprobs"])
    return [
        TokenLogprob(-1, float(value), tuple((-1, float(lp)) for lp in (top or {}).values()))
        for value, top in zip(told["token_logprobs"], tops, strict=True)
    ]
