"""Anthropic's messages, as its own SDK reads them."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.spelled import ANSWERS, WEATHER, Spelled
from tests.support.http_server import RunningServer

TOOL = {
    "name": WEATHER["name"],
    "description": WEATHER["description"],
    "input_schema": WEATHER["parameters"],
}
ASK: Any = [{"role": "user", "content": "Name the capital of France."}]


def sdk_of(server: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_messages_and_their_stream_agree(model_server: RunningServer) -> None:
    options: Any = {
        "model": "smollm2-135m",
        "max_tokens": 16,
        "extra_body": {"temperature": 0.0},
        "messages": ASK,
        "system": [{"type": "text", "text": "Answer briefly."}],
    }
    with sdk_of(model_server) as sdk:
        whole = sdk.messages.create(**options)
        with sdk.messages.stream(**options) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        counted = sdk.messages.count_tokens(
            model="smollm2-135m", messages=ASK, system="Answer briefly."
        )
    [block] = whole.content
    assert "Paris" in block.text
    assert text == block.text == final.content[0].text
    assert whole.stop_reason == final.stop_reason
    usage = whole.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert usage.output_tokens == final.usage.output_tokens <= 16
    assert final.usage.cache_read_input_tokens == counted.input_tokens - 1


def test_what_does_not_fit_is_counted_all_the_same(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": 1}
    refused = server.post("/v1/messages", body)
    assert refused.status == 400 and "context holds 2048" in refused.json["error"]["message"]
    del body["max_tokens"]
    counted = server.post("/v1/messages/count_tokens", body)
    assert counted.status == 200 and counted.json["input_tokens"] > 3000


def test_a_stop_sequence_is_named(model_server: RunningServer) -> None:
    with sdk_of(model_server) as sdk:
        done = sdk.messages.create(
            model="smollm2-135m",
            max_tokens=30,
            extra_body={"temperature": 0.0},
            messages=[*ASK, {"role": "assistant", "content": "The capital of France is"}],
            stop_sequences=["ari"],
        )
        assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "ari")
        assert done.content[0].text == " P"
        cut = sdk.messages.create(model="smollm2-135m", max_tokens=1, messages=ASK)
        assert cut.stop_reason == "max_tokens"


def test_tools_are_called_and_their_results_read(spelled: Spelled) -> None:
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": "x"}}
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Rain.", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    with sdk_of(spelled.server) as sdk:
        done = sdk.messages.create(model="spelled", max_tokens=500, messages=messages, tools=[TOOL])
        assert [block.type for block in done.content] == ["text", "tool_use", "tool_use"]
        assert done.content[1].input == {"town": "Paris {é}", "days": 2}
        assert done.stop_reason == "tool_use"
        prompt = spelled.prompt
        assert '{"name": "weather", "arguments": {"town": "x"}}' in prompt
        assert "<|turn|>tool\nError: Rain.<|end|>\n<|turn|>user\nAnd now?<|end|>" in prompt
        constraints = set()
        for choice in (
            {"type": "auto"},
            {"type": "any"},
            {"type": "tool", "name": "weather"},
            {"type": "auto", "disable_parallel_tool_use": True},
        ):
            sdk.messages.create(
                model="spelled", max_tokens=500, messages=ASK, tools=[TOOL], tool_choice=choice
            )
            constraints.add(spelled.last.sampling.constraint.text)
        assert len(constraints) == 4


def test_a_schema_constrains(model_server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    body = {
        "max_tokens": 40,
        "messages": ASK,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }
    [block] = model_server.post("/v1/messages", body).json["content"]
    assert block["text"] in ('{"city": "Paris"}', '{"city": "Rome"}')


@settings(max_examples=40, deadline=None)
@given(text=st.sampled_from(ANSWERS), cuts=st.lists(st.integers(0, 200)), thinks=st.booleans())
def test_a_stream_joined_is_the_whole_message(
    spelled: Spelled, text: str, cuts: list[int], thinks: bool
) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024} if thinks else {"type": "disabled"}
    options: Any = {"model": "spelled", "max_tokens": 2000, "messages": ASK, "tools": [TOOL]}
    with sdk_of(spelled.server) as sdk, spelled.saying(text, cuts):
        whole = sdk.messages.create(thinking=thinking, **options).model_dump()
        with sdk.messages.stream(thinking=thinking, **options) as stream:
            final = stream.get_final_message().model_dump()
    for message in (whole, final):
        assert message.pop("id").startswith("msg_")
        message.pop("parsed_output", None)
        for block in message["content"]:
            block.pop("parsed_output", None)
            if block["type"] == "tool_use":
                assert block.pop("id").startswith("call_")
    assert final["content"] == whole["content"]
    assert final["stop_reason"] == whole["stop_reason"]
    assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages is empty"),
        ({"tool_choice": {"type": "any"}}, "tool_choice without tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "needs a name"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"extra_body": {"mcp_servers": [{"url": "x"}]}}, "mcp_servers is not supported"),
        ({"extra_body": {"colour": 1}}, "colour"),
    ],
)
def test_errors_have_anthropics_form(spelled: Spelled, change: Any, words: str) -> None:
    options = {"model": "spelled", "max_tokens": 5, "messages": ASK, **change}
    with sdk_of(spelled.server) as sdk, pytest.raises(anthropic.BadRequestError) as caught:
        sdk.messages.create(**options)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert words in body["error"]["message"]
    assert caught.value.request_id == body["request_id"]


def test_unknown_models_and_failing_streams_raise(
    spelled: Spelled, model_server: RunningServer
) -> None:
    with sdk_of(spelled.server) as sdk, pytest.raises(anthropic.NotFoundError, match="spelled"):
        sdk.messages.create(model="other", max_tokens=5, messages=ASK)
    with (
        sdk_of(model_server) as sdk,
        pytest.raises(anthropic.APIStatusError, match="deadline"),
        sdk.messages.stream(
            model="smollm2-135m",
            max_tokens=2000,
            messages=[*ASK, {"role": "assistant", "content": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10,"}],
            extra_body={"deadline_s": 0.1, "temperature": 0.0},  # it counts on and on
        ) as stream,
    ):
        stream.get_final_message()
