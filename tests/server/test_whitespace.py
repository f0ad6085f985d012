"""The policy for white space in JSON, on every route that constrains an output to JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http_server import RunningServer

SCHEMA = {
    "type": "object",
    "properties": {"a": {"const": [True, None]}},
    "required": ["a"],
    "additionalProperties": False,
}
SPACED = {"compact": '{"a":[true,null]}', "fixed": '{"a": [true, null]}'}
ASK = [{"role": "user", "content": "Numbers."}]


def native(**asked: Any) -> tuple[str, Any]:
    return "/generate", {
        "text": "x",
        "sampling_params": {"json_schema": SCHEMA, "max_new_tokens": 300, **asked},
    }


def completion(**asked: Any) -> tuple[str, Any]:
    return "/v1/completions", {"prompt": "x", "max_tokens": 300, "guided_json": SCHEMA, **asked}


def chat(**asked: Any) -> tuple[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return "/v1/chat/completions", {"messages": ASK, "response_format": form, **asked}


def responses(**asked: Any) -> tuple[str, Any]:
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    return "/v1/responses", {"input": "x", "text": {"format": form}, **asked}


def anthropic(**asked: Any) -> tuple[str, Any]:
    form = {"type": "json_schema", "schema": SCHEMA}
    return "/v1/messages", {"messages": ASK, "max_tokens": 300, "output_format": form, **asked}


def text_of(answer: Any) -> str:
    """The text, wherever an API puts it."""
    if "output" in answer:
        return str(answer["output"][-1]["content"][0]["text"])
    if "choices" in answer:
        [choice] = answer["choices"]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    return str(answer["text"] if "text" in answer else answer["content"][0]["text"])


@pytest.mark.parametrize("route", [native, completion, chat, responses, anthropic])
def test_each_route_takes_a_policy(model_server: RunningServer, route: Any) -> None:
    for policy, text in SPACED.items():
        answer = model_server.post(*route(whitespace=policy))
        assert answer.status == 200, answer.raw
        assert text_of(answer.json) == text
    assert text_of(model_server.post(*route()).json) == SPACED["fixed"]
    loose = text_of(model_server.post(*route(whitespace="flexible")).json)
    assert json.loads(loose) == json.loads(SPACED["fixed"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "whitespace": "compact"}),
        ("/v1/completions", {"prompt": "x", "whitespace": "compact", "regex": "a"}),
        ("/v1/responses", {"input": "x", "whitespace": "compact"}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 9, "whitespace": "compact"}),
        ("/generate", {"text": "x", "sampling_params": {"whitespace": "compact"}}),
        ("/v1/completions", {"prompt": "x", "whitespace": "none", "guided_json": SCHEMA}),
    ],
)
def test_a_policy_without_json_or_a_name_is_refused(
    model_server: RunningServer, path: str, body: Any
) -> None:
    answer = model_server.post(path, body)
    assert answer.status == 400
    assert "whitespace" in answer.json["error"]["message"]
