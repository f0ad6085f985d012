"""`POST /v1/completions`: one prompt or many, continued as text.

Law: the pieces of a stream, joined for each choice, are the answer without a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from branchline.runtime.core.outputs import GenerateDelta, GenerateResult, RequestMeta
from branchline.runtime.server.constraints import constraint_of
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused, openai_body
from branchline.runtime.server.fields import sampling_of
from branchline.runtime.server.generation import Counts, Job, generate, results
from branchline.runtime.server.openai_parts import FINISH, CompletionLogprobs, Envelope, Json
from branchline.runtime.server.openai_types import CompletionRequest
from branchline.runtime.server.prompts import Prompts, prompts_of
from branchline.runtime.server.wire import EventStream, event_stream, json_response, read_body

DEFAULT_MAX_TOKENS = 16


BODIES: dict[str, type[Any]] = {"/v1/completions": CompletionRequest}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.post("/v1/completions", Completions(context).handle)]


class Completions:
    """The handler."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._prompts = Prompts(context)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await read_body(request, CompletionRequest, self._context.limits)
        served = self._context.choose(body.model, body.lora_path)
        run = _Run(self._context, body, await self._jobs(body, served.adapter), served.name)
        if not body.stream:
            return json_response(await run.whole(request))
        async with event_stream(request, self._context.limits, openai_body) as events:
            await run.stream(request, events)
        return events.response

    async def _jobs(self, body: CompletionRequest, adapter: str) -> list[Job]:
        limits = self._context.limits
        if body.best_of not in (None, body.n or 1):
            raise Refused(400, "best_of is not supported beside n", param="best_of")
        scored = body.logprobs if body.echo else None
        if body.prompt_logprobs is not None:
            scored = body.prompt_logprobs
        max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if max_tokens == 0 and not body.echo:
            raise Refused(400, "max_tokens must be at least 1 without echo", param="max_tokens")
        sampling = sampling_of(
            body,
            limits,
            max_tokens=max(max_tokens, 1) if max_tokens == 0 else max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=scored,
            constraint=constraint_of(body, body.response_format, limits),
        )
        prompts = await self._prompts.ids(prompts_of(body.prompt))
        return [Job(ids, sampling, adapter) for ids in prompts]


class _Run:
    """One request on its way."""

    def __init__(
        self, context: ServerContext, body: CompletionRequest, jobs: list[Job], model: str
    ) -> None:
        self._context = context
        self._body = body
        self._jobs = jobs
        self._n = jobs[0].sampling.n
        kind = "text_completion"
        self._envelope = Envelope(body, model, prefix="cmpl-", kind=kind, piece=kind)
        top = body.logprobs
        count = len(jobs) * self._n
        self._logprobs = [
            None if top is None else CompletionLogprobs(context.tokenizer, top)
            for _ in range(count)
        ]
        # Asked for by max_tokens 0: the token that the engine makes all the same is not shown.
        self._silent = body.max_tokens == 0

    async def whole(self, request: web.Request) -> Json:
        """The answer."""
        groups = await results(request, self._context, self._jobs, self._envelope.options)
        choices = []
        for job, group in enumerate(groups):
            for sequence, result in enumerate(group):
                index = job * self._n + sequence
                text, logprobs = self._echo(index, result)
                if not self._silent:
                    text += result.text
                    logprobs = _joined(logprobs, self._entry(index, result))
                choices.append(self._choice(index, text, logprobs, result))
        counts = self._counts([[result.meta for result in group] for group in groups])
        return self._envelope.whole(choices, counts)

    async def stream(self, request: web.Request, events: EventStream) -> None:
        """The answer in events."""
        metas: list[list[RequestMeta]] = [[] for _ in self._jobs]
        opened: set[int] = set()
        written = [0] * len(self._logprobs)
        options = self._envelope.options

        async def send(index: int, choice: Json) -> None:
            prompt = self._jobs[index // self._n].prompt_ids
            await events.send(self._envelope.chunk(choice, len(prompt), written[index]))

        async with generate(request, self._context, self._jobs, options) as steps:
            async for step in steps:
                index = step.job * self._n + step.sequence
                output = step.output
                if self._body.echo and self._body.logprobs is None and index not in opened:
                    opened.add(index)
                    await send(index, self._choice(index, self._prompt(index), None))
                if isinstance(output, GenerateDelta):
                    if self._silent:
                        continue
                    written[index] += len(output.token_ids)
                    if not self._waits_for_prompt():
                        logprobs = self._entry(index, output)
                        await send(index, self._choice(index, output.text, logprobs))
                    continue
                metas[step.job].append(output.meta)
                await send(index, self._last(index, output))
        await self._envelope.end(events, self._counts(metas))

    def _waits_for_prompt(self) -> bool:
        """Log-probabilities of the prompt come with the result, and stand before the output's."""
        return bool(self._body.echo) and self._body.logprobs is not None

    def _last(self, index: int, result: GenerateResult) -> Json:
        text, logprobs = "", None
        if self._waits_for_prompt():
            text, logprobs = self._echo(index, result)
            if not self._silent:
                text += result.text
                logprobs = _joined(logprobs, self._entry(index, result))
        return self._choice(index, text, logprobs, result)

    def _counts(self, metas: Sequence[Sequence[RequestMeta]]) -> Counts:
        counts = Counts.of(metas)
        return counts._replace(output=0) if self._silent else counts

    def _choice(
        self, index: int, text: str, logprobs: Json | None, result: GenerateResult | None = None
    ) -> Json:
        choice: Json = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        if result is not None:
            reason = result.meta.finish_reason
            choice["finish_reason"] = "length" if self._silent else FINISH.get(reason, "stop")
            choice["matched_stop"] = result.meta.matched
            if self._body.prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._prompt_logprobs(result)
            if self._body.return_token_ids:
                choice["token_ids"] = [] if self._silent else result.token_ids
                choice["prompt_token_ids"] = self._jobs[index // self._n].prompt_ids
        return choice

    def _prompt(self, index: int) -> str:
        ids = self._jobs[index // self._n].prompt_ids
        return self._context.tokenizer.decode(ids, skip_special=False)

    def _echo(self, index: int, result: GenerateResult) -> tuple[str, Json | None]:
        """The prompt before the output, where it is wanted."""
        if not self._body.echo:
            return "", None
        writer = self._logprobs[index]
        ids = self._jobs[index // self._n].prompt_ids
        entry = None if writer is None else writer.entry(result.prompt_logprobs, ids[:1])
        return self._prompt(index), entry

    def _entry(self, index: int, output: GenerateDelta | GenerateResult) -> Json | None:
        writer = self._logprobs[index]
        return None if writer is None else writer.entry(output.logprobs)

    def _prompt_logprobs(self, result: GenerateResult) -> list[Json | None]:
        """vLLM's form: for each token of the prompt, ids with log-probability and text."""
        text = self._context.tokenizer.token_text
        found: list[Json | None] = [None]
        for entry in result.prompt_logprobs:
            pairs = {entry.token_id: entry.logprob, **dict(entry.top)}
            found.append(
                {str(i): {"logprob": v, "decoded_token": text(i)} for i, v in pairs.items()}
            )
        return found


def _joined(first: Json | None, second: Json | None) -> Json | None:
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}
