"""The native routes, as SGLang's clients use them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.server.keys import Keys
from tests.server.spelled import spelled_server
from tests.server.waiting import wait_for
from tests.support.http_server import RunningServer, serve_engine

GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def generate(server: RunningServer, **body: Any) -> Any:
    answer = server.post("/generate", body)
    assert answer.status == 200, answer.raw
    return answer.json


def test_a_text_and_its_ids_are_continued_alike(server: RunningServer, engine: Engine) -> None:
    by_text = generate(server, text="The sea", sampling_params=GREEDY)
    ids = engine.tokenizer.encode("The sea")
    by_ids = generate(server, input_ids=ids, sampling_params=GREEDY)
    expected = engine.generate(ids, temperature=0.0, max_tokens=12, ignore_eos=True)
    for found in (by_text, by_ids):
        assert (found["text"], found["output_ids"]) == (expected.text, expected.token_ids)
        info = found["meta_info"]
        assert info["finish_reason"] == {"type": "length", "length": 12}
        assert (info["prompt_tokens"], info["completion_tokens"]) == (7, 12)
    assert by_ids["meta_info"]["cached_tokens"] == 6
    shown = generate(server, text="The sea", sampling_params=GREEDY, return_prompt_token_ids=True)
    assert shown["prompt_token_ids"] == ids and "prompt_token_ids" not in by_text


def test_lists_and_n_give_lists(server: RunningServer) -> None:
    two = generate(server, text=["a", "b"], sampling_params=GREEDY)
    assert [item["meta_info"]["prompt_tokens"] for item in two] == [1, 1]
    four = generate(
        server,
        input_ids=[[1, 2], [3]],
        sampling_params=[{**GREEDY, "n": 2}, {**GREEDY, "n": 2, "max_new_tokens": 3}],
        rid=["x", "y"],
    )
    assert [item["meta_info"]["id"] for item in four] == ["x", "x", "y", "y"]
    assert [item["meta_info"]["completion_tokens"] for item in four] == [12, 12, 3, 3]
    assert isinstance(generate(server, text=["a"], sampling_params=GREEDY), list)


@pytest.mark.parametrize("start", [-1, 0, 3])
def test_logprobs_of_prompt_and_output(server: RunningServer, engine: Engine, start: int) -> None:
    ids = engine.tokenizer.encode("The sea")
    found = generate(
        server,
        input_ids=ids,
        sampling_params=GREEDY,
        return_logprob=True,
        logprob_start_len=start,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
    )["meta_info"]
    expected = engine.generate(
        ids, temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=2, prompt_logprobs=2
    )
    first = start if start >= 0 else len(ids) - 1
    given = found["input_token_logprobs"]
    assert [token for _, token, _ in given] == ids[first:]
    assert [value for value, _, _ in given] == [
        None,
        *(pytest.approx(entry.logprob, abs=1e-4) for entry in expected.prompt_logprobs[first:]),
    ]
    assert "".join(text for _, _, text in given) == "The sea"[first:]
    output = found["output_token_logprobs"]
    assert [token for _, token, _ in output] == expected.token_ids
    assert all(len(top) == 2 for top in found["output_top_logprobs"])
    assert len(found["input_top_logprobs"]) == len(given)


@pytest.mark.parametrize("seed", range(4))
def test_streams_are_cumulative_and_end_in_the_whole_answer(
    server: RunningServer, seed: int
) -> None:
    body = {
        "text": ["The sea", "A ship"],
        "sampling_params": {
            "max_new_tokens": 20,
            "sampling_seed": seed,
            "n": 2,
            "stop": ["q", "z"],
        },
        "return_logprob": True,
        "rid": ["a", "b"],
    }
    whole = generate(server, **body)
    events = server.post("/generate", {**body, "stream": True}).events
    assert events.pop() == "[DONE]"
    last: dict[int, Any] = {}
    for event in events:
        index = event.pop("index")
        assert event["text"].startswith(last.get(index, event)["text"])
        last[index] = event
    for answers in (whole, last.values()):
        for answer in answers:
            del answer["meta_info"]["e2e_latency"], answer["meta_info"]["cached_tokens"]
            answer["meta_info"]["input_token_logprobs"].clear()
    assert [last[i] for i in range(4)] == whole


def test_constraints_by_their_sglang_names(model_server: RunningServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    tag = {
        "type": "structural_tag",
        "format": {"type": "sequence", "elements": [
            {"type": "const_string", "value": "<a>"}, {"type": "regex", "pattern": "[0-9]{2}"},
        ]},
    }  # fmt: skip
    for name, value, check in (
        ("regex", "[0-9]{3}", str.isdigit),
        ("ebnf", 'root ::= "yes" | "no"', {"yes", "no"}.__contains__),
        ("json_schema", json.dumps(schema), lambda text: set(json.loads(text)) == {"a"}),
        ("structural_tag", json.dumps(tag), lambda text: text[3:].isdigit() and len(text) == 5),
    ):
        params = {"max_new_tokens": 40, "temperature": 0, name: value}
        found = generate(model_server, text="Answer: ", sampling_params=params)
        assert check(found["text"]), (name, found["text"])


def test_nothing_new_scores_the_prompt(server: RunningServer) -> None:
    found = generate(
        server,
        text="abc",
        sampling_params={"max_new_tokens": 0, "temperature": 0},
        return_logprob=True,
        logprob_start_len=0,
    )
    assert (found["text"], found["output_ids"]) == ("", [])
    assert len(found["meta_info"]["input_token_logprobs"]) == 3
    assert found["meta_info"]["completion_tokens"] == 0


def test_the_stop_is_named(server: RunningServer) -> None:
    params = {**GREEDY, "max_new_tokens": 5, "logit_bias": {"65": 100.0}}
    found = generate(server, text="x", sampling_params={**params, "stop": ["AA"]})
    assert (found["text"], found["meta_info"]["finish_reason"]["matched"]) == ("", "AA")
    found = generate(server, text="x", sampling_params={**params, "stop_token_ids": [65]})
    assert found["meta_info"]["finish_reason"] == {"type": "stop", "matched": 65}
    found = generate(server, text="x", sampling_params={**params, "stop_regex": ["b", "A{3}"]})
    assert (found["text"], found["meta_info"]["finish_reason"]["matched"]) == ("", "AAA")


def test_the_stop_is_kept_by_the_names_of_each_server(server: RunningServer) -> None:
    params = {**GREEDY, "max_new_tokens": 5, "logit_bias": {"65": 100.0}, "no_stop_trim": True}
    for stop, kept in (({"stop": "AA"}, "AA"), ({"stop_regex": "A{3}"}, "AAA")):
        found = generate(server, text="x", sampling_params={**params, **stop})
        assert (found["text"], found["meta_info"]["finish_reason"]["matched"]) == (kept, kept)
        assert found["output_ids"] == [65] * len(kept)
    body = {"max_tokens": 5, "temperature": 0, "logit_bias": {"65": 100.0}, "stop": "AA"}
    texts = []
    for name in ("no_stop_trim", "include_stop_str_in_output"):
        found = server.post("/v1/completions", {"prompt": "x", **body, name: True}).json
        texts.append(found["choices"][0]["text"])
        turn = [{"role": "user", "content": "x"}]
        found = server.post("/v1/chat/completions", {"messages": turn, **body, name: True}).json
        texts.append(found["choices"][0]["message"]["content"])
    assert texts == ["AA"] * 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either text or input_ids"),
        ({"text": "a", "input_ids": [1]}, "either text or input_ids"),
        ({"text": []}, "empty"),
        ({"input_ids": []}, "empty"),
        ({"text": ""}, "empty"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid has 1 entries for 2 prompts"),
        ({"text": "a", "image_data": ["x"]}, "image_data is not supported"),
        ({"text": "a", "lora_path": ["x", "y"]}, "lora_path has 2 entries"),
        ({"text": "a", "sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens"),
        ({"text": "a", "sampling_params": {"temperature": "x"}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "both constrain"),
        ({"text": "a", "sampling_params": {"json_schema": "{"}}, "not valid JSON"),
        ({"text": "a", "sampling_params": {"repetition_penalty": 1e-109}}, "repetition_penalty"),
        ({"input_ids": [1, 99999]}, "vocabulary"),
        ({"text": "a" * 3000}, "context"),
    ],
)
def test_errors_name_what_is_wrong(server: RunningServer, body: Any, words: str) -> None:
    answer = server.post("/generate", body)
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


def test_bodies_that_are_no_json_are_refused(server: RunningServer) -> None:
    for raw in (b"", b"{", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"text": "\\ud800"}'):
        answer = server.request("POST", "/generate", data=raw)
        assert answer.status == 400, raw[:20]
        assert answer.json["error"]["message"]


def test_a_failure_inside_a_stream_is_an_event(server: RunningServer) -> None:
    params = {"max_new_tokens": 1900, "ignore_eos": True}
    body = {"text": "x", "stream": True, "deadline_s": 0.05, "sampling_params": params}
    events = server.post("/generate", body).events
    assert events[-1]["error"]["code"] == "DeadlineExceeded"


def test_facts(server: RunningServer) -> None:
    for path in ("/get_model_info", "/model_info"):
        facts = server.get(path).json
        assert facts["is_generation"] is True
        assert facts["max_context"] == 2048
    for path in ("/get_server_info", "/server_info"):
        facts = server.get(path).json
        assert facts["status"] == "ready"
        assert facts["settings"]["kv_tokens"] == 8192
    assert server.get("/health_generate").status == 200


def test_health_is_generated_once_for_all_who_ask() -> None:
    with spelled_server(lambda prompt, index: "text") as it:
        it.port.endless = True
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(it.server.get, "/health_generate") for _ in range(8)]
            wait_for(lambda: it.port.requests)
            time.sleep(0.3)
            assert len(it.port.requests) == 1 and not any(one.done() for one in asked)
            it.port.call_soon(lambda: it.port.abort(it.port.requests[0].id))
            assert {one.result(10).status for one in asked} == {200}
        it.port.endless = False
        assert it.server.get("/health_generate").status == 200
        assert len(it.port.requests) == 2


def test_flushing_is_for_admins(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(("user",), ("root",))) as server:
        for headers, status in (
            ({}, 401),
            ({"x-api-key": "user"}, 403),
            ({"x-api-key": "root"}, 200),
        ):
            assert server.post("/flush_cache", None, headers=headers).status == status
        generate_ids = {"input_ids": [7] * 50, "sampling_params": {"max_new_tokens": 2}}
        server.post("/generate", generate_ids, headers={"x-api-key": "user"})
        freed = server.get("/flush_cache", headers={"x-api-key": "root"}).json["tokens"]
        assert freed >= 50


def test_flushing_is_for_everybody_where_there_are_no_keys(engine: Engine) -> None:
    with serve_engine(engine) as server:
        server.post("/generate", {"input_ids": [8] * 50, "sampling_params": {"max_new_tokens": 2}})
        assert server.post("/flush_cache", {"empty_cache": True}).json["tokens"] >= 50
    with serve_engine(engine, keys=Keys((), ("root",))) as server:
        assert server.post("/flush_cache", None).status == 403


def test_keys_do_not_share_cached_prefixes(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(("one", "two"))) as server:
        prompt = {"input_ids": [9] * 60, "sampling_params": {"max_new_tokens": 1}}

        def cached(key: str, **more: Any) -> int:
            answer = server.post("/generate", {**prompt, **more}, headers={"x-api-key": key})
            found: int = answer.json["meta_info"]["cached_tokens"]
            return found

        assert [cached("one"), cached("one"), cached("two"), cached("two")] == [0, 59, 0, 59]
        assert [cached("one", extra_key="s"), cached("one", cache_salt="s")] == [0, 59]


def test_aborting_is_by_name_and_for_the_owner() -> None:
    with spelled_server(lambda prompt, index: "text", keys=Keys(("one", "two"), ("root",))) as it:
        it.port.endless = True
        body = {"text": "x", "rid": "mine", "stream": False}

        async def started() -> int:
            return len(it.server.context.running)

        found: list[Any] = []

        def ask() -> None:
            found.append(it.server.post("/generate", body, headers={"x-api-key": "one"}).json)

        thread = threading.Thread(target=ask)
        thread.start()
        while not it.server.run(started()):
            time.sleep(0.01)

        def abort(key: str, **what: Any) -> Any:
            return it.server.post("/abort_request", what, headers={"x-api-key": key})

        twice = it.server.post("/generate", body, headers={"x-api-key": "one"})
        assert twice.status == 400 and "id is running" in twice.json["error"]["message"]
        assert abort("two", rid="mine").json == {"aborted": 0}
        assert abort("two", abort_all=True).status == 403
        assert abort("two").status == 400
        assert abort("one", rid="mine").json == {"aborted": 1}
        thread.join(10)
        assert found[0]["meta_info"]["finish_reason"]["type"] == "abort"
        assert abort("root", abort_all=True).json == {"aborted": 0}
