"""OpenAI's responses, as its own SDK reads them; tokenizing."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.engine import Engine
from tests.server.spelled import ANSWERS, WEATHER, Spelled
from tests.support.http_server import RunningServer

TOOLS: Any = [{"type": "function", "strict": True, **WEATHER}]
MODEL = "smollm2-135m"


def sdk_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


class City(pydantic.BaseModel):
    """What has to be filled in."""

    city: Literal["Paris", "Rome"]


def test_text_and_its_stream_agree(model_server: RunningServer) -> None:
    options: Any = {
        "model": MODEL,
        "input": "Name the capital of France.",
        "instructions": "Answer briefly.",
        "temperature": 0.0,
        "max_output_tokens": 12,
    }
    with sdk_of(model_server) as sdk:
        whole = sdk.responses.create(**options)
        with sdk.responses.stream(**options) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            final = stream.get_final_response()
    assert "Paris" in whole.output_text
    assert text == whole.output_text == final.output_text
    assert whole.status == final.status
    assert whole.usage.input_tokens_details.cached_tokens < whole.usage.input_tokens


def test_structured_text_is_parsed(model_server: RunningServer) -> None:
    with sdk_of(model_server) as sdk:
        done = sdk.responses.parse(
            model=MODEL, input="The capital of France?", text_format=City, temperature=0.0
        )
    assert isinstance(done.output_parsed, City)


def test_calls_and_their_results(spelled: Spelled) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"town": "x"}'},
        {"type": "function_call_output", "call_id": "c", "output": "Rain."},
    ]
    with sdk_of(spelled.server) as sdk:
        done = sdk.responses.create(model="spelled", input=items, tools=TOOLS)
    assert [item.type for item in done.output] == ["message", "function_call", "function_call"]
    assert json.loads(done.output[1].arguments) == {"town": "Paris {é}", "days": 2}
    assert '{"name": "weather", "arguments": {"town": "x"}}' in spelled.prompt
    assert "<|turn|>tool\nRain.<|end|>" in spelled.prompt


def without_ids(response: Any) -> Any:
    """What two answers to one question share."""
    kept = {key: value for key, value in response.items() if key not in ("id", "created_at")}
    for item in kept["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return kept


@settings(max_examples=40, deadline=None)
@given(text=st.sampled_from(ANSWERS), cuts=st.lists(st.integers(0, 200)), thinks=st.booleans())
def test_a_stream_adds_up_to_the_whole_response(
    spelled: Spelled, text: str, cuts: list[int], thinks: bool
) -> None:
    body = {"input": "Hi", "tools": TOOLS, "chat_template_kwargs": {"thinking": thinks}}
    with spelled.saying(text, cuts):
        whole = spelled.server.post("/v1/responses", body).json
        events = spelled.server.post("/v1/responses", {**body, "stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            added[event["item_id"]] = added.get(event["item_id"], "") + event["delta"]
    final = events[-1]["response"]
    for item in final["output"]:
        told = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert added.get(item["id"], "") == told
    assert without_ids(final) == without_ids(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": []}, "messages is empty"),
        ({"input": [{"content": "x"}]}, "role"),
        ({"input": [{"type": "function_call"}]}, "call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"background": True}, "background is not supported"),
        ({"tool_choice": "required"}, "tool_choice without tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"text": {"format": {"type": "json_schema"}}}, "no schema"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "text only"),
    ],
)
def test_errors_name_what_is_wrong(spelled: Spelled, change: Any, words: str) -> None:
    answer = spelled.server.post("/v1/responses", {"input": "x", **change})
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


def test_tokens_of_texts_and_back(server: RunningServer, engine: Engine) -> None:
    one = server.post("/v1/tokenize", {"prompt": "é!", "return_token_strs": True}).json
    assert one["tokens"] == engine.tokenizer.encode("é!")
    assert (one["count"], one["max_model_len"], len(one["token_strs"])) == (3, 2048, 3)
    many = server.post("/tokenize", {"prompt": ["a", "bc"]}).json
    assert (many["tokens"], many["count"]) == ([[97], [98, 99]], [1, 2])
    assert server.post("/v1/detokenize", {"tokens": one["tokens"]}).json == {"text": "é!"}
    back = server.post("/detokenize", {"tokens": [[97], [258]], "skip_special_tokens": False}).json
    assert back == {"text": ["a", "<|turn|>"]}
    chat = {"messages": [{"role": "user", "content": "x"}]}
    told = server.post("/v1/tokenize", chat).json["count"]
    asked = server.post("/v1/chat/completions", {**chat, "max_tokens": 1}).json
    assert told == asked["usage"]["prompt_tokens"]
    for path, body in (
        ("/v1/tokenize", {}),
        ("/v1/tokenize", {"prompt": "x", "messages": []}),
        ("/v1/detokenize", {"tokens": [1, [2]]}),
    ):
        assert server.post(path, body).status == 400
