"""Tool calls and reasoning in chat completions; a stream says what the whole answer says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.spelled import ANSWERS, CALLS, WEATHER, Spelled, spelled_server

TOOLS = [{"type": "function", "function": WEATHER}]
ASK = [{"role": "user", "content": "How is the weather?"}]


def sdk_of(spelled: Spelled) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{spelled.server.url}/v1", api_key="none", max_retries=0)


def test_calls_are_told_from_text(spelled: Spelled) -> None:
    with sdk_of(spelled) as sdk:
        done = sdk.chat.completions.create(model="spelled", messages=ASK, tools=TOOLS)
    [choice] = done.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look.\n"
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert json.loads(calls[0].function.arguments) == {"town": "Paris {é}", "days": 2}
    assert json.loads(calls[1].function.arguments) == {"town": "Rome"}
    assert len({call.id for call in calls}) == 2
    assert spelled.last.sampling.constraint.kind == "lark"
    assert '"name": "weather"' in spelled.prompt


def test_calls_and_results_go_back_into_the_prompt(spelled: Spelled) -> None:
    call = {"id": "c1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"town": "Rome"}'}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
    ]
    with sdk_of(spelled) as sdk:
        sdk.chat.completions.create(model="spelled", messages=messages, tools=TOOLS)
    assert '{"name": "weather", "arguments": {"town": "Rome"}}' in spelled.prompt
    assert "<|turn|>tool\nSunny.<|end|>" in spelled.prompt


def test_tool_choice_decides(spelled: Spelled) -> None:
    with sdk_of(spelled) as sdk:
        none = sdk.chat.completions.create(
            model="spelled", messages=ASK, tools=TOOLS, tool_choice="none"
        )
        assert none.choices[0].message.content == CALLS
        assert spelled.last.sampling.constraint is None
        texts = set()
        for choice in ("auto", "required", {"type": "function", "function": {"name": "weather"}}):
            sdk.chat.completions.create(
                model="spelled", messages=ASK, tools=TOOLS, tool_choice=choice
            )
            texts.add(spelled.last.sampling.constraint.text)
        sdk.chat.completions.create(
            model="spelled", messages=ASK, tools=TOOLS, parallel_tool_calls=False
        )
        texts.add(spelled.last.sampling.constraint.text)
        assert len(texts) == 4
        with pytest.raises(openai.BadRequestError, match="chosen"):
            sdk.chat.completions.create(
                model="spelled",
                messages=ASK,
                tools=TOOLS,
                tool_choice={"type": "function", "function": {"name": "other"}},
            )


def joined(events: Sequence[Any]) -> dict[str, Any]:
    """A message put together from a stream's deltas, as clients do."""
    assert events[-1] == "[DONE]"
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    message["logprobs"] = []
    for event in events[:-1]:
        [choice] = event["choices"]
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({**piece["function"], "id": piece["id"]})
            else:
                call = message["tool_calls"][piece["index"]]
                call["arguments"] += piece["function"]["arguments"]
        if choice["logprobs"]:
            message["logprobs"] += choice["logprobs"]["content"]
        message["finish_reason"] = choice["finish_reason"]
    return message


def whole(answer: Any) -> dict[str, Any]:
    """The same of an answer without a stream."""
    [choice] = answer["choices"]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content") or "",
        "tool_calls": [
            {**call["function"], "id": call["id"]} for call in message.get("tool_calls", ())
        ],
        "logprobs": choice["logprobs"]["content"],
        "finish_reason": choice["finish_reason"],
    }


@settings(max_examples=60, deadline=None)
@given(text=st.sampled_from(ANSWERS), cuts=st.lists(st.integers(0, 200)), thinking=st.booleans())
def test_a_stream_joined_is_the_whole_answer(
    spelled: Spelled, text: str, cuts: list[int], thinking: bool
) -> None:
    body = {
        "messages": ASK,
        "tools": TOOLS,
        "logprobs": True,
        "chat_template_kwargs": {"thinking": thinking},
    }
    with spelled.saying(text, cuts):
        one = whole(spelled.server.post("/v1/chat/completions", body).json)
        many = joined(spelled.server.post("/v1/chat/completions", {**body, "stream": True}).events)
    for call in (*one["tool_calls"], *many["tool_calls"]):
        assert call.pop("id").startswith("call_")  # drawn for each answer
    assert many == one


def test_reasoning_is_separate_and_the_constraint_waits_for_it() -> None:
    with spelled_server(lambda prompt, index: 'Hm.\n</think>\n\n{"a": 1}') as spelled:
        body: dict[str, Any] = {
            "messages": ASK,
            "thinking": True,
            "response_format": {"type": "json_object"},
        }
        [choice] = spelled.server.post("/v1/chat/completions", body).json["choices"]
        assert choice["message"]["reasoning_content"] == "Hm."
        assert choice["message"]["content"] == '{"a": 1}'
        assert spelled.last.sampling.section.end == "</think>"
        answer = spelled.server.post("/v1/chat/completions", {**body, "n": 2}).json
        details = answer["usage"]["completion_tokens_details"]
        assert details == {"reasoning_tokens": 2 * len("Hm.\n")}
        body["separate_reasoning"] = False
        [choice] = spelled.server.post("/v1/chat/completions", body).json["choices"]
        assert choice["message"]["content"] == 'Hm.\n</think>\n\n{"a": 1}'
        body["thinking"] = False
        spelled.server.post("/v1/chat/completions", body)
        assert spelled.last.sampling.section is None


def test_models_without_tools_in_their_template_are_told_of_them() -> None:
    with spelled_server(lambda prompt, index: "no", template="") as spelled:
        call = {"id": "c1", "type": "function"}
        call["function"] = {"name": "weather", "arguments": '{"town": "Rome"}'}
        messages = [
            {"role": "system", "content": "Be kind."},
            *ASK,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
        ]
        spelled.server.post("/v1/chat/completions", {"messages": messages, "tools": TOOLS})
        assert "Be kind.\n\n" in spelled.prompt
        assert "The weather of a town." in spelled.prompt
        assert '{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>' in spelled.prompt
        assert "<tool_response>\nSunny.\n</tool_response>" in spelled.prompt


def test_tools_and_a_format_give_calls_or_an_answer() -> None:
    form = {"type": "json_object"}
    texts = ['{"a": "<tool_call>"}', CALLS.partition("\n")[2]]
    with spelled_server(lambda prompt, index: texts[index]) as spelled:
        body: dict[str, Any] = {"messages": ASK, "tools": TOOLS, "response_format": form, "n": 2}
        said, called = spelled.server.post("/v1/chat/completions", body).json["choices"]
        assert said["message"]["content"] == texts[0]
        assert "tool_calls" not in said["message"]
        names = [call["function"]["name"] for call in called["message"]["tool_calls"]]
        assert names == ["weather", "weather"]
        assert spelled.last.sampling.constraint.kind == "lark"
        assert "| j" in spelled.last.sampling.constraint.text.splitlines()[0]


def test_tools_beside_a_constraint_are_refused(spelled: Spelled) -> None:
    body = {"messages": ASK, "tools": TOOLS, "regex": "a+"}
    answer = spelled.server.post("/v1/chat/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<think>\nHmé.\n</think>\n\nYes.", 7),
        ("Yes.", 0),
        ("<think>never mi", 8),
        ("<think></think>Y", 0),
    ],
)  # fmt: skip
def test_ids_of_the_reasoning_are_counted_on_both_apis(text: str, count: int) -> None:
    with spelled_server(lambda prompt, index: text) as spelled:
        answer = spelled.server.post("/v1/chat/completions", {"messages": ASK}).json
        details = answer["usage"]["completion_tokens_details"]
        assert details == {"reasoning_tokens": count}
        answer = spelled.server.post("/v1/responses", {"input": "Hi"}).json
        assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": count}


HARMONY = (
    "{% if tools %}functions.{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for message in messages %}<|start|>{{ message['role'] }}<|message|>{{ message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    "{# <|channel|>analysis #}"
)


def test_a_format_with_voices_tells_reasoning_itself() -> None:
    answer = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
        '{"town": "Rome"}'
    )
    with spelled_server(lambda prompt, index: answer, template=HARMONY) as spelled:
        assert spelled.port.reasoning is not None
        body = {"messages": ASK, "tools": TOOLS, "logprobs": True}
        one = whole(spelled.server.post("/v1/chat/completions", body).json)
        many = joined(spelled.server.post("/v1/chat/completions", {**body, "stream": True}).events)
        for found in (one, many):
            [call] = found["tool_calls"]
            assert json.loads(call["arguments"]) == {"town": "Rome"}
            assert (found["reasoning_content"], found["content"]) == ("Hm.", "")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        events = spelled.server.post("/v1/chat/completions", {**body, **options}).events
        answer = spelled.server.post("/v1/chat/completions", body).json
        for usage in (events[-2]["usage"], answer["usage"]):
            assert usage["completion_tokens_details"] == {"reasoning_tokens": len("Hm.")}
        assert spelled.last.sampling.section is None
        plain = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        plain += "<|channel|>final<|message|>Yes."
        spelled.port.reply = lambda prompt, index: plain
        [choice] = spelled.server.post("/v1/chat/completions", {"messages": ASK}).json["choices"]
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
