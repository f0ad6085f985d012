"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's SDK knows them.

Law: an answer without a stream is put together from the very events that a stream would send.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.core.outputs import GenerateResult, RequestMeta
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind, SamplingParams
from branchline.runtime.responses.events import CallBegin
from branchline.runtime.responses.specs import ToolSpec
from branchline.runtime.server.answers import Part, Question, Questions, Said, Thought, Tools
from branchline.runtime.server.anthropic_types import (
    AnthropicTool,
    CountRequest,
    InputMessage,
    MessagesRequest,
    RedactedBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from branchline.runtime.server.constraints import only_one
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused, anthropic_body
from branchline.runtime.server.event_answers import EventWriter, answer
from branchline.runtime.server.fields import checked, top_k_of
from branchline.runtime.server.generation import Job, Options, response_id
from branchline.runtime.server.limits import Limits
from branchline.runtime.server.prompts import Conversation, Message, Prompts
from branchline.runtime.server.wire import json_response, read_body

Json = dict[str, Any]


BODIES: dict[str, type[Any]] = {
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    family = Messages(context)
    return [
        web.post("/v1/messages", family.handle),
        web.post("/v1/messages/count_tokens", family.count),
    ]


class Messages:
    """The handlers."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._questions = Questions(context, Prompts(context))

    async def count(self, request: web.Request) -> web.Response:
        """Tokens of a conversation, as the model would read it, if it could."""
        body = await read_body(request, CountRequest, self._context.limits)
        self._context.choose(body.model)
        question = await self._ask(body, bounded=False)
        return json_response({"input_tokens": len(question.prompt.ids)})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one conversation."""
        context = self._context
        body = await read_body(request, MessagesRequest, context.limits)
        served = context.choose(body.model)
        question = await self._ask(body)
        sampling = question.refine(_sampling(body, context.limits))
        job = Job(question.prompt.ids, sampling, served.adapter)
        options = Options(
            response_id("msg_"),
            stream=bool(body.stream),
            salt=body.cache_salt or "",
            priority=body.priority or 0,
            deadline_s=body.deadline_s,
        )
        writer = _Writer(options.name, served.name, question)
        return await answer(
            request, context, job, options, writer=writer, error_body=anthropic_body
        )

    async def _ask(self, body: CountRequest, *, bounded: bool = True) -> Question:
        constraint = _constraint(body, self._context.limits)
        return await self._questions.prepare(
            _conversation(body), _tools(body), constraint, bounded=bounded
        )


class _Writer(EventWriter):
    """One answer as events."""

    def __init__(self, name: str, model: str, question: Question) -> None:
        super().__init__(question.reader())
        self._name = name
        self._model = model
        self._prompt_tokens = len(question.prompt.ids)
        self._index = -1
        self._open = ""  # type of the block that is open
        self._called = False

    def begin(self) -> Iterator[Json]:
        """The message, without content."""
        message: Json = {
            "id": self._name,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._prompt_tokens, "output_tokens": 0},
        }
        yield {"type": "message_start", "message": message}

    def end(self, result: GenerateResult) -> Iterator[Json]:
        """Why it ended, and what it cost."""
        yield from self._close()
        yield self._ending(result.meta)
        yield {"type": "message_stop"}

    def whole(self, events: Sequence[Json]) -> Json:
        """The message, put together as the SDK does."""
        message = _Message()
        for event in events:
            message.take(event)
        return message.finish()

    def write(self, parts: Sequence[Part]) -> Iterator[Json]:
        """Content blocks."""
        for part in parts:
            if isinstance(part, CallBegin):
                self._called = True
                block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
                yield from self._begin_block(block)
            elif isinstance(part, Said):
                if self._open != "text":
                    yield from self._begin_block({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": part.text})
            elif isinstance(part, Thought):
                if self._open != "thinking":
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                    yield from self._begin_block(block)
                yield self._delta({"type": "thinking_delta", "thinking": part.text})
            else:
                yield self._delta({"type": "input_json_delta", "partial_json": part.text})

    def _begin_block(self, block: Json) -> Iterator[Json]:
        yield from self._close()
        self._index += 1
        self._open = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _ending(self, meta: RequestMeta) -> Json:
        reason, sequence = "end_turn", None
        if meta.finish_reason == "length":
            reason = "max_tokens"
        elif self._called:
            reason = "tool_use"
        elif isinstance(meta.matched, str):
            reason, sequence = "stop_sequence", meta.matched
        usage = {
            "input_tokens": meta.prompt_tokens - meta.cached_tokens,
            "cache_read_input_tokens": meta.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": meta.output_tokens,
        }
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return {"type": "message_delta", "delta": delta, "usage": usage}


class _Message:
    """Events, put together as the SDK does."""

    def __init__(self) -> None:
        self._message: Json = {}
        self._inputs: dict[int, str] = {}

    def take(self, event: Json) -> None:
        """The next event."""
        match event["type"]:
            case "message_start":
                self._message = event["message"]
            case "content_block_start":
                self._message["content"].append(event["content_block"])
            case "content_block_delta":
                self._extend(event["index"], event["delta"])
            case "message_delta":
                self._message.update(event["delta"], usage=event["usage"])

    def finish(self) -> Json:
        """The whole message. The input of a call that was cut off is empty."""
        for index, text in self._inputs.items():
            try:
                found = msgspec.json.decode(text)
            except msgspec.DecodeError:
                continue
            self._message["content"][index]["input"] = found
        return self._message

    def _extend(self, index: int, delta: Json) -> None:
        block = self._message["content"][index]
        if delta["type"] == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
            return
        name = delta["type"].removesuffix("_delta")
        block[name] += delta[name]


# ---- reading the request


def _sampling(body: MessagesRequest, limits: Limits) -> SamplingParams:
    return checked(
        SamplingParams(
            max_tokens=body.max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=top_k_of(body.top_k),
            stop=tuple(body.stop_sequences or ()),
            seed=body.seed,
        ),
        limits,
    )


def _conversation(body: CountRequest) -> Conversation:
    messages: list[Message] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        messages += _turns(message)
    variables: Json = {}
    if body.thinking is not None and body.thinking.type != "adaptive":
        wanted = body.thinking.type == "enabled"
        variables = {"enable_thinking": wanted, "thinking": wanted}
    return Conversation(
        messages=messages,
        continue_final=bool(body.messages) and body.messages[-1].role == "assistant",
        variables=variables,
    )


def _turns(message: InputMessage) -> Iterator[Message]:
    """A message as chat templates read it: results of tools are turns of their own."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    results: list[Message] = []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResultBlock():
                results.append(_result(block))
            case RedactedBlock():
                pass
    yield from results
    turn: Message = {"role": message.role, "content": "\n".join(texts)}
    if calls:
        turn["tool_calls"] = calls
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    if texts or calls or not results:
        yield turn


def _result(block: ToolResultBlock) -> Message:
    text = _text(block.content or "")
    content = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tools(body: CountRequest) -> Tools | None:
    choice = body.tool_choice
    if not body.tools:
        if choice is not None and choice.type in ("any", "tool"):
            raise Refused(400, "tool_choice without tools", param="tool_choice")
        return None
    kind = "auto" if choice is None else choice.type
    if kind == "none":
        return None
    name = {"any": "required", "auto": "auto"}.get(kind) or (choice and choice.name)
    if not name:
        raise Refused(400, "tool_choice of type tool needs a name", param="tool_choice.name")
    parallel = choice is None or not choice.disable_parallel_tool_use
    return Tools([_spec(tool) for tool in body.tools], name, parallel)


def _spec(tool: AnthropicTool) -> ToolSpec:
    return ToolSpec(
        name=tool.name, description=tool.description or "", parameters=tool.input_schema
    )


def _constraint(body: CountRequest, limits: Limits) -> Constraint | None:
    config = body.output_config
    form = body.output_format or (None if config is None else config.format)
    given: dict[str, tuple[ConstraintKind, Any]] = {}
    if form is not None:
        given["output_config.format.schema"] = ("json_schema", form.schema_)
    return only_one(given, limits, body.whitespace)
