"""`POST /v1/chat/completions`: a conversation, and the assistant's next turn.

Law: the deltas of a stream, joined for each choice, are the message without a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.core.outputs import (
    GenerateDelta,
    GenerateResult,
    RequestMeta,
    TokenLogprob,
)
from branchline.runtime.responses.events import CallBegin
from branchline.runtime.responses.specs import ToolSpec
from branchline.runtime.server.answers import (
    Answer,
    AnswerReader,
    Part,
    Question,
    Questions,
    Said,
    Thought,
    Tools,
)
from branchline.runtime.server.constraints import constraint_of
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused, openai_body
from branchline.runtime.server.fields import sampling_of
from branchline.runtime.server.generation import Counts, Job, generate, results
from branchline.runtime.server.openai_parts import FINISH, Details, Envelope, Json, chat_logprobs
from branchline.runtime.server.openai_types import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    ToolDeclaration,
)
from branchline.runtime.server.prompts import Conversation, Message, Prompts
from branchline.runtime.server.wire import EventStream, event_stream, json_response, read_body

BODIES: dict[str, type[Any]] = {"/v1/chat/completions": ChatRequest}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.post("/v1/chat/completions", ChatCompletions(context).handle)]


class ChatCompletions:
    """The handler."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._questions = Questions(context, Prompts(context))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await read_body(request, ChatRequest, self._context.limits)
        limits = self._context.limits
        served = self._context.choose(body.model, body.lora_path)
        question = await self._questions.prepare(
            conversation_of(body),
            tools_of(body),
            constraint_of(body, body.response_format, limits),
            separate_reasoning=_separates(body),
        )
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        sampling = sampling_of(
            body, limits, max_tokens=most, logprobs=_top_of(body), constraint=None
        )
        job = Job(question.prompt.ids, question.refine(sampling), served.adapter)
        run = _Run(self._context, body, question, job, served.name)
        if not body.stream:
            return json_response(await run.whole(request))
        async with event_stream(request, limits, openai_body) as events:
            await run.stream(request, events)
        return events.response


class _Run:
    """One request on its way."""

    def __init__(
        self,
        context: ServerContext,
        body: ChatRequest,
        question: Question,
        job: Job,
        model: str,
    ) -> None:
        self._context = context
        self._body = body
        self._question = question
        self._job = job
        self._envelope = Envelope(
            body, model, prefix="chatcmpl-", kind="chat.completion", piece="chat.completion.chunk"
        )

    async def whole(self, request: web.Request) -> Json:
        """The answer."""
        [group] = await results(request, self._context, [self._job], self._envelope.options)
        choices = []
        thought: list[int | None] = []
        for index, result in enumerate(group):
            reader = self._question.reader()
            answer = Answer().add(reader.feed(result.text)).add(reader.finish())
            thought.append(self.thought(reader, result))
            details = self.details()
            details.feed(result)
            choices.append(
                {
                    "index": index,
                    "message": _message(answer, self._question),
                    "logprobs": self._logprobs(result.logprobs),
                    **self._ending(result, bool(answer.calls)),
                    **details.ending(result),
                }
            )
        counts = Counts.of([[result.meta for result in group]])
        return self._envelope.whole(choices, _with(counts, thought))

    async def stream(self, request: web.Request, events: EventStream) -> None:
        """The answer in events."""
        choices = [_Choice(self, i) for i in range(self._job.sampling.n)]
        metas: list[RequestMeta] = []
        thought: list[int | None] = []
        for choice in choices:
            await events.send(self.chunk(choice.opening()))
        options = self._envelope.options
        async with generate(request, self._context, [self._job], options) as steps:
            async for step in steps:
                choice = choices[step.sequence]
                for delta in choice.read(step.output):
                    await events.send(self.chunk(delta, choice.output_tokens))
                if isinstance(step.output, GenerateResult):
                    metas.append(step.output.meta)
                    thought.append(self.thought(choice.reader, step.output))
        await self._envelope.end(events, _with(Counts.of([metas]), thought))

    def reader(self) -> AnswerReader:
        """For one of the choices."""
        return self._question.reader()

    def thought(self, reader: AnswerReader, result: GenerateResult) -> int | None:
        """Tokens of a choice that are reasoning; see `Question.reasoning_tokens`."""
        return self._question.reasoning_tokens(
            self._context.tokenizer, self._job.sampling, reader, result.token_ids
        )

    def details(self) -> Details:
        """For one of the choices."""
        wanted = bool(self._body.return_details)
        return Details(self._context.tokenizer, self._job.prompt_ids, wanted)

    def chunk(self, choice: Json, output_tokens: int = 0) -> Json:
        """A chunk with one choice."""
        return self._envelope.chunk(choice, len(self._job.prompt_ids), output_tokens)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> Json | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._context.tokenizer, entries, self._body.top_logprobs or 0)

    def delta(self, index: int, delta: Json, logprobs: Sequence[TokenLogprob] = ()) -> Json:
        """A choice of a chunk."""
        shown = self._logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": None}

    def ending(self, index: int, result: GenerateResult, called: bool, choice: Json) -> Json:
        """The last choice of a sequence."""
        return {**choice, **self._ending(result, called)}

    def _ending(self, result: GenerateResult, called: bool) -> Json:
        reason = FINISH.get(result.meta.finish_reason, "stop")
        if called and reason == "stop":
            reason = "tool_calls"
        found: Json = {"finish_reason": reason, "matched_stop": result.meta.matched}
        if self._body.return_token_ids:
            found["token_ids"] = result.token_ids
            found["prompt_token_ids"] = self._job.prompt_ids
        return found


class _Choice:
    """One sequence of a stream: its deltas, and the log-probabilities that wait for one."""

    def __init__(self, run: _Run, index: int) -> None:
        self._run = run
        self._index = index
        self.reader = run.reader()
        self._details = run.details()
        self._waiting: list[TokenLogprob] = []
        self._called = False
        self.output_tokens = 0

    def opening(self) -> Json:
        """The first delta."""
        return self._run.delta(self._index, {"role": "assistant", "content": ""})

    def read(self, output: GenerateDelta | GenerateResult) -> list[Json]:
        """Deltas for what is new."""
        if isinstance(output, GenerateDelta):
            self._waiting += output.logprobs
            self.output_tokens += len(output.token_ids)
            self._details.feed(output)
            return self._deltas(self.reader.feed(output.text))
        deltas = self._deltas(self.reader.finish())
        last = self._run.delta(self._index, {}, self._take())
        last |= self._details.ending(output)
        return [*deltas, self._run.ending(self._index, output, self._called, last)]

    def _deltas(self, parts: Sequence[Part]) -> list[Json]:
        return [
            self._run.delta(self._index, self._delta(part), self._take()) | self._details.take()
            for part in parts
        ]

    def _take(self) -> list[TokenLogprob]:
        taken, self._waiting = self._waiting, []
        return taken

    def _delta(self, part: Part) -> Json:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, Thought):
            return {"reasoning_content": part.text}
        self._called = True
        if isinstance(part, CallBegin):
            function = {"name": part.name, "arguments": ""}
            call = {"index": part.index, "id": part.id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


def _with(counts: Counts, thought: Sequence[int | None]) -> Counts:
    known = [count for count in thought if count is not None]
    return counts._replace(reasoning=sum(known) if len(known) == len(thought) else None)


def _message(answer: Answer, question: Question) -> Json:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.calls
    ]
    message: Json = {
        "role": "assistant",
        "content": None if calls and not answer.text else answer.text,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = calls
    if question.reasoning is not None or answer.thought:
        message["reasoning_content"] = answer.thought or None
    return message


# ---- reading the request


def conversation_of(body: ChatRequest) -> Conversation:
    """What the chat template is given."""
    variables = dict(body.chat_template_kwargs or {})
    for name in ("thinking", "enable_thinking", "reasoning_effort"):
        value = getattr(body, name)
        if value is not None:
            variables.setdefault(name, value)
    if body.reasoning_effort == "none":
        variables.setdefault("enable_thinking", False)
    final = bool(body.continue_final_message)
    if final and body.add_generation_prompt:
        raise Refused(
            400,
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    return Conversation(
        messages=[message_of(message, f"messages[{i}]") for i, message in enumerate(body.messages)],
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=final,
        variables=variables,
    )


def message_of(message: ChatMessage, place: str) -> Message:
    """A turn as chat templates read it."""
    role = "system" if message.role == "developer" else message.role
    found: Message = {"role": role, "content": text_of(message.content, place)}
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": arguments_of(call.function.arguments, place),
                },
            }
            for call in message.tool_calls
        ]
    thought = message.reasoning_content or message.reasoning
    for name, value in (
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
        ("reasoning_content", thought),
    ):
        if value is not None:
            found[name] = value
    return found


def text_of(content: str | Sequence[ContentPart] | None, place: str) -> str:
    """The text of a content; parts stand on lines of their own.

    Raises:
        Refused: a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if text is None or part.type not in ("text", "input_text", "output_text", "refusal"):
            raise Refused(
                400,
                "this model reads text only",
                value=part.type,
                param=f"{place}.content[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)


def arguments_of(arguments: str | Json, place: str) -> Json:
    """A call's arguments as an object, which is what chat templates write out."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Refused(
            400, f"arguments of a tool call are no JSON object: {error}", param=place
        ) from error


def tools_of(body: ChatRequest) -> Tools | None:
    """The tools that may be called; None = none."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise Refused(400, "tool_choice without tools", param="tool_choice")
        return None
    if body.tool_choice == "none":
        return None
    choice = body.tool_choice or "auto"
    name = choice if isinstance(choice, str) else choice.function.name
    specs = [spec_of(tool) for tool in body.tools]
    return Tools(specs, name, body.parallel_tool_calls is not False)


def spec_of(tool: ToolDeclaration) -> ToolSpec:
    """A tool as the formats know it."""
    function = tool.function
    return ToolSpec(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters or {},
    )


def _separates(body: ChatRequest) -> bool:
    return body.separate_reasoning is not False and body.include_reasoning is not False


def _top_of(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
