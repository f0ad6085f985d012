"""Body of OpenAI's responses API. The schema is its struct."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.server.fields import Json
from branchline.runtime.server.openai_types import ContentPart


class InputItem(msgspec.Struct, kw_only=True):
    """A message, a call, what a call gave, or reasoning; which of them `type` says."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class FunctionTool(msgspec.Struct, kw_only=True):
    """A tool of the client's."""

    name: str
    type: Literal["function"]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolName(msgspec.Struct, kw_only=True):
    """A tool that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the text must match."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Json | None = msgspec.field(default=None, name="schema")
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """See `TextFormat`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Given to the chat template as `reasoning_effort`."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


# size: ResponsesRequest: the body of an API that is not ours to divide
class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/responses`."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolName | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    metadata: Json | None = None

    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    regex: str | None = None
    whitespace: Whitespace | None = None
    deadline_s: float | None = None
    priority: int | None = None
    cache_salt: str | None = None
    chat_template_kwargs: Json | None = None

    store: bool | None = None
    include: list[str] | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    stream_options: Any = None
    moderation: Any = None
    background: bool | None = None

    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None
    top_logprobs: int | None = None
    context_management: None = None
