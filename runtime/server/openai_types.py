"""Bodies of OpenAI's completions and chat completions. The schema of each is its struct."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from branchline.runtime.server.constraints import ResponseFormat
from branchline.runtime.server.fields import GenerationFields, Json

Prompt = str | list[str | int | list[int]]
"""A text, ids, or a list of either."""


class CompletionRequest(GenerationFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = None
    response_format: ResponseFormat | None = None
    best_of: int | None = None
    suffix: None = None
    prompt_logprobs: int | None = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message's content; text is what is known here."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """A call in a message of the assistant's.

    Attributes:
        arguments: JSON text.
    """

    name: str
    arguments: str | Json = ""


class ToolCall(msgspec.Struct, kw_only=True):
    """See `FunctionCall`."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None


class FunctionSpec(msgspec.Struct, kw_only=True):
    """A tool."""

    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolDeclaration(msgspec.Struct, kw_only=True):
    """See `FunctionSpec`."""

    function: FunctionSpec
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, kw_only=True):
    """The name of a tool."""

    name: str


class NamedToolChoice(msgspec.Struct, kw_only=True):
    """A tool that must be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


# size: ChatRequest: the body of an API that is not ours to divide
class ChatRequest(GenerationFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`.

    Attributes:
        return_details: this server's own: each choice says which tokens a constraint forced, and at
            its end what was cached and how long it took.
    """

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolDeclaration] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    modalities: list[Literal["text"]] | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Json | None = None
    return_details: bool | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None
    include_reasoning: bool | None = None
    thinking: bool | Json | None = None
    enable_thinking: bool | None = None

    verbosity: str | None = None
    prediction: None = None
    audio: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None
    chat_template: None = None
    documents: None = None
    best_of: None = None
    echo: None = None
    prompt_logprobs: None = None
    input_ids: None = None
