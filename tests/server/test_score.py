"""Scores of labels, against the engine's own."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys
from tests.support.http_server import RunningServer, serve, serve_engine
from tests.support.spelled_port import SpelledPort


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_scores_are_probabilities_of_the_labels(
    server: RunningServer, engine: Engine, softmax: bool, first: bool
) -> None:
    body = {
        "query": "Is it? ",
        "items": ["yes", "perhaps"],
        "label_token_ids": [65, 66, 200],
        "apply_softmax": softmax,
        "item_first": first,
    }
    answer = server.post("/v1/score", body).json
    for item, values in zip(body["items"], answer["scores"], strict=True):
        text = f"{item}Is it? " if first else f"Is it? {item}"
        rows = engine.score(text, [[65], [66], [200]]).token_logprobs
        expected = [math.exp(row[0]) for row in rows]
        if softmax:
            expected = [value / sum(expected) for value in expected]
        assert values == pytest.approx(expected, rel=1e-3)
    ids = [list(b"Is it? "), [list(b"yes"), list(b"perhaps")]]
    again = server.post("/v1/score", {**body, "query": ids[0], "items": ids[1]}).json
    for one, other in zip(again["scores"], answer["scores"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert answer["usage"]["prompt_tokens"] == 7 + 3 + 7 + 7


def test_labels_that_are_all_unlikely_still_add_up_to_one() -> None:
    port = SpelledPort(lambda prompt, index: "")
    context = make_context(port, port.tokenizer)
    with serve(context) as server:
        port.likely = lambda label: -900.0 - label
        body = {"query": "x", "items": ["y"], "label_token_ids": [0, 1], "apply_softmax": True}
        [scores] = server.post("/v1/score", body).json["scores"]
    port.close()
    assert scores == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": []}, "items is empty"),
        ({"label_token_ids": []}, "label_token_ids is empty"),
        ({"items": [[1]]}, "both texts or both ids"),
        ({"label_token_ids": [10_000]}, "vocabulary"),
    ],
)
def test_errors_name_what_is_wrong(server: RunningServer, change: Any, words: str) -> None:
    body = {"query": "x", "items": ["y"], "label_token_ids": [1], **change}
    answer = server.post("/v1/score", body)
    assert answer.status == 400, answer.raw
    assert words in answer.json["error"]["message"]


def test_an_admin_can_end_them_with_all_else(engine: Engine) -> None:
    body = {"query": "x" * 1900, "items": [f"{n}" for n in range(60)], "label_token_ids": [1, 2]}
    headers = {"x-api-key": "root"}
    with serve_engine(engine, keys=Keys(admin=("root",))) as server:

        async def both() -> Any:
            asked = asyncio.create_task(asyncio.to_thread(server.post, "/v1/score", body))
            while not server.context.running.all():
                await asyncio.sleep(0.001)
            everything = {"abort_all": True}
            await asyncio.to_thread(server.post, "/abort_request", everything, headers=headers)
            return await asked

        answer = asyncio.run(both())
    assert answer.status == 499, answer.raw
