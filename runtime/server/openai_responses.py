"""`POST /v1/responses`: OpenAI's responses, of text, reasoning and calls. Nothing is stored.

Law: an answer without a stream is the response that the last event of a stream brings.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from aiohttp import web

from branchline.runtime.core.outputs import GenerateResult, RequestMeta
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.errors import UnsupportedFeature
from branchline.runtime.responses.events import CallBegin
from branchline.runtime.responses.specs import ToolSpec
from branchline.runtime.server.answers import AnswerReader, Part, Questions, Said, Thought, Tools
from branchline.runtime.server.constraints import ANY_OBJECT, only_one
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Body, Failure, Refused, openai_body
from branchline.runtime.server.event_answers import EventWriter, answer
from branchline.runtime.server.fields import checked, top_k_of
from branchline.runtime.server.generation import Job, Options, response_id
from branchline.runtime.server.limits import Limits
from branchline.runtime.server.openai_chat import arguments_of, text_of
from branchline.runtime.server.prompts import Conversation, Message, Prompts
from branchline.runtime.server.responses_types import InputItem, ResponsesRequest
from branchline.runtime.server.wire import read_body

Json = dict[str, Any]


BODIES: dict[str, type[Any]] = {"/v1/responses": ResponsesRequest}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.post("/v1/responses", Responses(context).handle)]


class Responses:
    """The handler."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._questions = Questions(context, Prompts(context))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        context = self._context
        body = await read_body(request, ResponsesRequest, context.limits)
        for name in ("background", "top_logprobs"):
            if getattr(body, name):
                raise UnsupportedFeature(f"{name} is not supported", hint="Leave it out.")
        served = context.choose(body.model)
        question = await self._questions.prepare(
            _conversation(body), _tools(body), _constraint(body, context.limits)
        )
        sampling = question.refine(_sampling(body, context.limits))
        job = Job(question.prompt.ids, sampling, served.adapter)
        options = Options(
            response_id("resp_"),
            stream=bool(body.stream),
            salt=body.cache_salt or "",
            priority=body.priority or 0,
            deadline_s=body.deadline_s,
        )
        count = partial(question.reasoning_tokens, context.tokenizer, job.sampling)
        writer = _Writer(options.name, served.name, body, question.reader(), count)
        return await answer(request, context, job, options, writer=writer, error_body=_error_event)


class _Writer(EventWriter):
    """One answer as events, the last of which brings all of it."""

    def __init__(
        self,
        name: str,
        model: str,
        body: ResponsesRequest,
        reader: AnswerReader,
        count: Callable[[AnswerReader, Sequence[int]], int | None],
    ) -> None:
        super().__init__(reader)
        self._count = count
        self._number = -1
        self._item: Json | None = None  # the last one of the output, while it is open
        self._response: Json = {
            "id": name,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": body.reasoning,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def begin(self) -> Iterator[Json]:
        """The response, without output."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def end(self, result: GenerateResult) -> Iterator[Json]:
        """The whole response."""
        cut = result.meta.finish_reason == "length"
        yield from self._close("incomplete" if cut else "completed")
        yield self._ending(result.meta, self._count(self.reader, result.token_ids) or 0)

    def whole(self, events: Sequence[Json]) -> Json:
        """The response that the last event brings."""
        response: Json = events[-1]["response"]
        return response

    def write(self, parts: Sequence[Part]) -> Iterator[Json]:
        """Output items."""
        for part in parts:
            if isinstance(part, CallBegin):
                yield from self._open(
                    {
                        "id": _new_id("fc_"),
                        "type": "function_call",
                        "status": "in_progress",
                        "call_id": part.id,
                        "name": part.name,
                        "arguments": "",
                    }
                )
            elif isinstance(part, Said | Thought):
                yield from self._text(part)
            else:
                assert self._item is not None
                self._item["arguments"] += part.text
                yield self._about("response.function_call_arguments.delta", delta=part.text)

    def _text(self, part: Said | Thought) -> Iterator[Json]:
        said = isinstance(part, Said)
        kind = "message" if said else "reasoning"
        if self._item is None or self._item["type"] != kind:
            item: Json = {"id": _new_id("msg_" if said else "rs_"), "type": kind}
            item["role" if said else "summary"] = "assistant" if said else []
            yield from self._open({**item, "status": "in_progress", "content": []})
            assert self._item is not None
            piece: Json = {"type": "output_text" if said else "reasoning_text", "text": ""}
            piece |= {"annotations": [], "logprobs": []} if said else {}
            self._item["content"].append(piece)
            yield self._about("response.content_part.added", content_index=0, part=piece)
        assert self._item is not None
        piece = self._item["content"][0]
        piece["text"] += part.text
        more: Json = {"logprobs": []} if said else {}
        yield self._about(
            f"response.{piece['type']}.delta", content_index=0, delta=part.text, **more
        )

    def _open(self, item: Json) -> Iterator[Json]:
        yield from self._close("completed")
        self._item = item
        self._response["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._output_index, item=item)

    def _close(self, status: str) -> Iterator[Json]:
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            yield self._about(
                "response.function_call_arguments.done",
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            [piece] = item["content"]
            more: Json = {"logprobs": []} if piece["type"] == "output_text" else {}
            done = f"response.{piece['type']}.done"
            yield self._about(done, content_index=0, text=piece["text"], **more)
            yield self._about("response.content_part.done", content_index=0, part=piece)
        yield self._event("response.output_item.done", output_index=self._output_index, item=item)
        self._item = None

    def _ending(self, meta: RequestMeta, thought: int) -> Json:
        response = self._response
        response["usage"] = {
            "input_tokens": meta.prompt_tokens,
            "input_tokens_details": {"cached_tokens": meta.cached_tokens},
            "output_tokens": meta.output_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": meta.prompt_tokens + meta.output_tokens,
        }
        status = {"length": "incomplete", "abort": "cancelled"}
        response["status"] = status.get(meta.finish_reason, "completed")
        if meta.finish_reason == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        name = "incomplete" if response["status"] == "incomplete" else "completed"
        return self._event(f"response.{name}", response=response)

    @property
    def _output_index(self) -> int:
        return len(self._response["output"]) - 1

    def _about(self, kind: str, **fields: Any) -> Json:
        """An event about the open item."""
        assert self._item is not None
        return self._event(
            kind, item_id=self._item["id"], output_index=self._output_index, **fields
        )

    def _event(self, kind: str, **fields: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def _error_event(failure: Failure, request_id: str) -> Body:
    error = openai_body(failure, request_id)["error"]
    return {
        "type": "error",
        "code": error["code"] or error["type"],
        "message": error["message"],
        "param": error["param"],
    }


def _new_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


# ---- reading the request


def _sampling(body: ResponsesRequest, limits: Limits) -> SamplingParams:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return checked(
        SamplingParams(
            max_tokens=body.max_output_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=top_k_of(body.top_k),
            stop=stop,
            seed=body.seed,
        ),
        limits,
    )


def _conversation(body: ResponsesRequest) -> Conversation:
    messages: list[Message] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        for index, item in enumerate(body.input):
            _add_item(messages, item, f"input[{index}]")
    variables = dict(body.chat_template_kwargs or {})
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
    return Conversation(messages=messages, variables=variables)


def _add_item(messages: list[Message], item: InputItem, place: str) -> None:
    """One item, as a turn of its own or as part of the assistant's turn before it."""
    match item.type:
        case "message":
            if item.role is None:
                raise Refused(400, "a message needs a role", param=f"{place}.role")
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": text_of(item.content, place)})
        case "function_call":
            if item.name is None or item.call_id is None:
                raise Refused(400, "a call needs name and call_id", param=place)
            arguments = arguments_of(item.arguments or "", place)
            function = {"name": item.name, "arguments": arguments}
            last = messages[-1] if messages else {}
            if last.get("role") != "assistant":
                last = {"role": "assistant", "content": ""}
                messages.append(last)
            calls = last.setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case "function_call_output":
            content = text_of(item.output, place)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        case "reasoning":
            pass  # of an earlier turn: templates leave it out


def _tools(body: ResponsesRequest) -> Tools | None:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise Refused(400, "tool_choice without tools", param="tool_choice")
        return None
    choice = body.tool_choice or "auto"
    if choice == "none":
        return None
    specs = [
        ToolSpec(
            name=tool.name,
            description=tool.description or "",
            parameters=tool.parameters or {},
        )
        for tool in body.tools
    ]
    name = choice if isinstance(choice, str) else choice.name
    return Tools(specs, name, body.parallel_tool_calls is not False)


def _constraint(body: ResponsesRequest, limits: Limits) -> Constraint | None:
    given: dict[str, Any] = {}
    form = None if body.text is None else body.text.format
    if form is not None and form.type == "json_object":
        given["text.format"] = ("json_schema", ANY_OBJECT)
    if form is not None and form.type == "json_schema":
        if form.schema_ is None:
            raise Refused(400, "text.format has no schema", param="text.format.schema")
        given["text.format"] = ("json_schema", form.schema_)
    if body.regex is not None:
        given["regex"] = ("regex", body.regex)
    return only_one(given, limits, body.whitespace)
