"""`return_details`: which tokens a constraint forced, and what the answer cost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.http_server import RunningServer

SHAPE = {"regex": "(yes|no): certainly(!|\\?)"}
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Is it?"}],
    "temperature": 0,
    "return_details": True,
    "structured_outputs": SHAPE,
}


def text_of(tokens: list[Any]) -> str:
    return b"".join(bytes(token["bytes"]) for token in tokens).decode()


@pytest.mark.parametrize("logprobs", [False, True])
def test_details_of_a_stream_are_those_of_the_whole(server: RunningServer, logprobs: bool) -> None:
    body = BODY | {"logprobs": logprobs}
    [whole] = server.post("/v1/chat/completions", body).json["choices"]
    events = server.post("/v1/chat/completions", body | {"stream": True}).events[:-1]
    choices = [choice for event in events for choice in event["choices"]]
    parts = [choice.get("details", {"tokens": []}) for choice in choices]
    tokens = [token for part in parts for token in part["tokens"]]
    assert tokens == whole["details"]["tokens"]
    assert text_of(tokens) == whole["message"]["content"]
    if logprobs:
        scores = [
            entry
            for choice in choices
            if choice["logprobs"]
            for entry in choice["logprobs"]["content"]
        ]
        assert [entry["bytes"] for entry in scores] == [token["bytes"] for token in tokens]
    forced = text_of([token for token in tokens if token["forced"]])
    assert ": certainly" in forced and len(forced) < len(text_of(tokens))
    meta = parts[-1]["meta"]
    assert meta.get("forced_tokens", 0) == (0 if logprobs else len(forced))
    assert parts[-1]["prompt"].keys() == {"cached", "computed"}


def test_the_prompt_is_divided_where_the_cache_ended(server: RunningServer) -> None:
    body = BODY | {"messages": [{"role": "user", "content": "Divide this prompt."}]}
    prompts = []
    for _ in range(2):
        [choice] = server.post("/v1/chat/completions", body).json["choices"]
        found = choice["details"]
        prompts.append(found["prompt"])
    first, second = prompts
    assert first["cached"] + first["computed"] == second["cached"] + second["computed"]
    assert "Divide this prompt." in second["cached"] and second["computed"]


def test_nothing_is_added_where_nobody_asks(server: RunningServer) -> None:
    body = {**BODY, "return_details": None}
    [choice] = server.post("/v1/chat/completions", body).json["choices"]
    assert "details" not in choice
