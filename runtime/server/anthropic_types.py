"""Bodies of Anthropic's messages API. The schema of each is its struct."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.server.fields import Json


class TextBlock(msgspec.Struct, kw_only=True, tag="text", tag_field="type"):
    """Text."""

    text: str
    cache_control: Any = None


class ToolUseBlock(msgspec.Struct, kw_only=True, tag="tool_use", tag_field="type"):
    """A call that the assistant made."""

    id: str
    name: str
    input: Json


class ToolResultBlock(msgspec.Struct, kw_only=True, tag="tool_result", tag_field="type"):
    """What a call gave."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, kw_only=True, tag="thinking", tag_field="type"):
    """Reasoning that the assistant showed."""

    thinking: str
    signature: str | None = None


class RedactedBlock(msgspec.Struct, kw_only=True, tag="redacted_thinking", tag_field="type"):
    """Reasoning that cannot be read; left out."""

    data: str = ""


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedBlock


class InputMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn; an assistant's at the end is continued."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct, kw_only=True):
    """A tool of the client's."""

    name: str
    description: str | None = None
    input_schema: Json = {}
    type: Literal["custom"] | None = None
    cache_control: Any = None


class AnthropicToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`auto`, `any` (at least one call), `tool` (that one) or `none`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether the model is to think; the budget has no effect."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A structured output."""

    type: Literal["json_schema"]
    schema_: Json = msgspec.field(name="schema")


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """See `OutputFormat`; the effort has no effect."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages/count_tokens`."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    whitespace: Whitespace | None = None

    cache_control: Any = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    mcp_servers: None = None
    context_management: None = None


# size: MessagesRequest: the body of an API that is not ours to divide
class MessagesRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages`."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None

    seed: int | None = None
    deadline_s: float | None = None
    priority: int | None = None
    cache_salt: str | None = None

    metadata: Any = None
    diagnostics: Any = None
    service_tier: str | None = None
    inference_geo: str | None = None
    container: None = None
