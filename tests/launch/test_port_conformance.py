"""What `EnginePort` promises, held by an engine in this process and by one in processes of its own.

Oracle: the same requests, one by one, on an engine in this process.
"""

from __future__ import annotations

import random
import re
import threading
import time
from typing import Any

import pytest

from branchline.runtime.core.messages import EmbedRequest, Pooling, ScoreRequest
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.engine import Engine
from branchline.runtime.errors import BackendError, InvalidRequest, QueueFull, from_wire
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import Close, Fork, Join, Select, ValueReady
from tests.programs.helpers import Program, gen, text
from tests.support.port_driver import Call, PortDriver
from tests.support.waiting import until

TEXT = "Once upon a time, there was a port; it had 2 ends. "


def ids_of(words: str) -> list[int]:
    return list(words.encode())


def test_outputs_are_those_of_the_engine_itself(driver: PortDriver, reference: Engine) -> None:
    prompts = [ids_of(TEXT)[: 3 + 4 * i] for i in range(12)]
    calls = driver.submit(*(driver.request(prompt, 20) for prompt in prompts))
    for call, prompt in zip(calls, prompts, strict=True):
        plain = reference.generate(prompt, temperature=0.0, max_tokens=20, ignore_eos=True)
        assert call.result.token_ids == plain.token_ids
        assert call.result.text == plain.text
        meta = call.result.meta
        assert (meta.finish_reason, meta.prompt_tokens, meta.output_tokens) == (
            "length",
            len(prompt),
            20,
        )
        assert 0 < meta.ttft_s <= meta.latency_s
        assert meta.model == driver.port.model_name


def test_deltas_join_to_the_result(driver: PortDriver) -> None:
    call = driver.generate(ids_of(TEXT), 40, stream=True, logprobs=2)
    result = call.result
    assert call.outputs[-1] is result
    assert "".join(delta.text for delta in call.deltas) == result.text
    assert [i for delta in call.deltas for i in delta.token_ids] == result.token_ids
    assert [p for delta in call.deltas for p in delta.logprobs] == result.logprobs
    assert [p.token_id for p in result.logprobs] == result.token_ids
    assert all(len(p.top) == 2 for p in result.logprobs)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["stop", "stop_regex", "stop_token_ids"])
def test_stops_end_the_text_at_the_same_place(
    driver: PortDriver, reference: Engine, kind: str, stream: bool
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 5, "ignore_eos": True}
    prompt = ids_of(TEXT)
    whole = reference.generate(prompt, max_tokens=60, **options)
    at = next(i for i in whole.token_ids[8:] if i < 128 and chr(i).isalpha())
    first = whole.token_ids.index(at)
    stop: Any = {"stop": (chr(at),), "stop_regex": chr(at), "stop_token_ids": (at,)}[kind]
    call = driver.generate(prompt, 60, stream=stream, **options, **{kind: stop})
    assert call.result.token_ids == whole.token_ids[:first]
    assert call.result.meta.finish_reason == "stop"
    assert call.result.error is None
    assert "".join(d.text for d in call.deltas) == (call.result.text if stream else "")


def test_siblings_each_end_once_and_follow_the_seed(driver: PortDriver) -> None:
    one, two = (
        driver.generate(ids_of(TEXT), 12, n=4, temperature=1.0, seed=7).wait() for _ in range(2)
    )
    outputs = [
        [final.token_ids for _, final in sorted(_plain(call).items())] for call in (one, two)
    ]
    assert outputs[0] == outputs[1]
    assert len({tuple(ids) for ids in outputs[0]}) > 1


@pytest.mark.parametrize("kind", ["stop", "stop_regex"])
def test_a_stop_ends_its_own_sequence_and_no_sibling(
    driver: PortDriver, reference: Engine, kind: str
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 7, "ignore_eos": True, "n": 4}
    prompt = ids_of(TEXT)
    whole = reference.generate(prompt, max_tokens=200, **options)
    texts = [set(result.text[:40]) for result in whole]
    own = texts[0] - set[str]().union(*texts[1:])
    at = next(char for char in whole[0].text if char in own and char.isascii() and char.isalnum())
    stop: Any = {"stop": (at,), "stop_regex": at}[kind]
    call = driver.generate(prompt, 200, **options, **{kind: stop})
    plain = reference.generate(prompt, max_tokens=200, **options, **{kind: stop})
    found = [final for _, final in sorted(_plain(call.wait()).items())]
    assert [final.token_ids for final in found] == [result.token_ids for result in plain]
    assert len({len(final.token_ids) for final in found}) > 1


def _plain(call: Call) -> dict[str, GenerateResult]:
    """Results by sequence, with names that do not depend on the request's."""
    base = len(call.request.id)
    return {
        name[base:]: final
        for name, final in call.finals.items()
        if isinstance(final, GenerateResult)
    }


def test_scores_are_those_of_the_engine_itself(driver: PortDriver, reference: Engine) -> None:
    choices = [ids_of(" sea"), ids_of(" farm"), ids_of(" s")]
    call = driver.score(ids_of(TEXT), choices)
    assert call.scores.token_logprobs == reference.score(ids_of(TEXT), choices).token_logprobs


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_the_engine_itself(
    driver: PortDriver, reference: Engine, pooling: Pooling
) -> None:
    prompts = [ids_of(TEXT * count) for count in (1, 9)]
    beside = driver.generate(ids_of(TEXT), 40, stream=True)
    calls = [driver.embed(prompt, pooling=pooling) for prompt in prompts]
    expected = [result.embedding for result in reference.embed(prompts, pooling=pooling)]
    assert [call.vector for call in calls] == expected
    past = driver.embed(prompts[0], pooling=pooling, deadline=time.monotonic() - 1.0)
    assert past.vector == []
    assert past.finals[past.request.id].error is not None
    assert len(beside.result.token_ids) == 40


@pytest.mark.parametrize("scores", [True, False])
def test_a_reading_that_is_taken_back_is_an_error(driver: PortDriver, scores: bool) -> None:
    name, ids = driver.new_id(), ids_of(TEXT * 9)
    gone = Call(
        ScoreRequest(id=name, prompt_ids=ids, choices=[ids_of(" sea"), ids_of(" farm")])
        if scores
        else EmbedRequest(id=name, prompt_ids=ids)
    )

    def take_back() -> None:
        driver.port.submit(gone.request, gone.on_output)
        driver.port.abort(name)

    driver.on_loop(take_back)
    assert not any(gone.scores.token_logprobs if scores else gone.vector)
    ended = gone.finals[name]
    assert ended.meta.finish_reason == "abort" and ended.error is not None
    assert ended.error["code"] == "Cancelled"


def test_prompt_log_probabilities_come_along(driver: PortDriver) -> None:
    result = driver.generate(ids_of("hello"), 2, prompt_logprobs=1).result
    assert [entry.token_id for entry in result.prompt_logprobs] == ids_of("ello")


def test_a_constrained_output_matches(driver: PortDriver) -> None:
    pattern = r"[A-C]{3}-[0-9]{2}"
    call = driver.generate(
        ids_of(TEXT), 30, ignore_eos=False, constraint=Constraint(kind="regex", text=pattern)
    )
    assert re.fullmatch(pattern, call.result.text)
    assert call.result.meta.forced_tokens >= 1


def test_what_cannot_run_is_refused_at_once(driver: PortDriver) -> None:
    running = driver.generate(ids_of(TEXT), 200, stream=True)
    bad: list[Any] = [
        driver.request([]),
        driver.request([99_999]),
        driver.request([-1]),
        driver.request([1] * 5000),
        driver.request(temperature=-1.0),
        driver.request(seed=2**64),
        driver.request(top_k=2**31),
        driver.request(min_tokens=2**31, max_tokens=None),
        driver.request(max_tokens=2**63),
        driver.request(stop_token_ids=(99_999,)),
        driver.request(stop_regex="(a"),
        ScoreRequest(id=driver.new_id(), prompt_ids=[1], choices=[]),
        ScoreRequest(id=driver.new_id(), prompt_ids=[1], choices=[[]]),
        EmbedRequest(id=driver.new_id(), prompt_ids=[]),
        EmbedRequest(id=driver.new_id(), prompt_ids=[1], dimensions=65),
    ]
    for request in bad:
        with pytest.raises(InvalidRequest):
            driver.submit(request)
    with pytest.raises(BackendError, match="is running"):
        driver.generate(id=running.request.id)
    assert len(running.result.token_ids) == 200
    assert driver.generate(id=running.request.id).result.meta.finish_reason == "length"


def test_more_than_may_wait_is_refused_and_the_rest_runs(driver: PortDriver) -> None:
    taken: list[Call] = []

    def fill() -> None:
        while True:
            call = Call(driver.request([1, len(taken) % 200], 4))
            driver.port.submit(call.request, call.on_output)
            taken.append(call)

    with pytest.raises(QueueFull):
        driver.on_loop(fill)
    assert len(taken) == 200
    assert all(call.result.meta.finish_reason == "length" for call in taken)


def test_an_abort_ends_one_request_or_one_sequence(driver: PortDriver) -> None:
    running = driver.generate(ids_of(TEXT), 1500, stream=True)
    other = driver.generate(ids_of(TEXT), 100)
    assert running.seen.wait(20)
    driver.abort(running.request.id)
    driver.abort("nobody")
    assert running.result.meta.finish_reason == "abort"
    assert 0 < len(running.result.token_ids) < 1500
    assert "".join(d.text for d in running.deltas) == running.result.text
    assert len(other.result.token_ids) == 100
    several = driver.generate(ids_of(TEXT), 600, n=2, stream=True)
    driver.abort(f"{several.request.id}#1")
    reasons = [final.meta.finish_reason for _, final in sorted(several.wait().finals.items())]
    assert reasons == ["length", "abort"]


def test_a_deadline_ends_a_request_with_its_error(driver: PortDriver) -> None:
    late = driver.generate(ids_of(TEXT), 1900, deadline=time.monotonic() + 0.15)
    gone = driver.generate(ids_of(TEXT), 1900, deadline=time.monotonic() - 1.0)
    for call in (late, gone):
        assert call.result.meta.finish_reason == "deadline"
        assert call.result.error is not None
        assert call.result.error["code"] == "DeadlineExceeded"
    assert gone.result.token_ids == []


def test_a_lease_keeps_a_prefix_through_a_flush(driver: PortDriver) -> None:
    port = driver.port
    prompt = ids_of("A prefix of its own, held by a lane.")
    driver.generate(prompt, 1).wait()
    driver.on_loop(lambda: port.hold("lane", prompt, ""))
    driver.flush()
    until(lambda: port.info()["cache"]["leases"] == 1)
    assert driver.generate(prompt, 1).result.meta.cached_tokens == len(prompt) - 1
    driver.on_loop(lambda: port.release("lane"))
    driver.on_loop(lambda: port.release("lane"))
    assert driver.flush() >= len(prompt)
    until(lambda: port.info()["cache"]["leases"] == 0)
    assert driver.generate(prompt, 1).result.meta.cached_tokens == 0


def test_cached_prefixes_are_told_with_those_above_them(driver: PortDriver) -> None:
    driver.flush()
    trunk, ends = ids_of("A trunk that two prompts share, "), (ids_of("one end"), ids_of("two"))
    for end in ends:
        driver.generate(trunk + end, 1).wait()
    found = driver.prefixes()
    [top] = [place for place, node in enumerate(found) if node.token_ids[:3] == trunk[:3]]
    assert (found[top].parent, found[top].end, found[top].hits) == (-1, len(trunk), 1)
    below = [node for node in found if node.parent == top]
    assert {bytes(node.token_ids)[:3] for node in below} == {b"one", b"two"}
    assert found[top].children == len(below) == 2
    driver.flush()
    assert not [node for node in driver.prefixes() if node.token_ids[:3] == trunk[:3]]


def test_what_a_constraint_forces_is_marked(driver: PortDriver, reference: Engine) -> None:
    constraint = Constraint(kind="regex", text="(yes|no): certainly(!|\\?)")
    prompt = ids_of("Is it?")
    call = driver.generate(prompt, 30, stream=True, constraint=constraint)
    plain = reference.generate(prompt, temperature=0.0, max_tokens=30, constraint=constraint)
    assert call.result.forced == plain.forced
    assert len(plain.forced) == call.result.meta.forced_tokens > 10
    assert [mark for delta in call.deltas for mark in delta.forced] == plain.forced


def test_info_tells_model_settings_and_counts(driver: PortDriver) -> None:
    driver.generate().wait()
    until(lambda: driver.port.info()["scheduler"]["finished"] > 0)
    info = driver.port.info()
    assert info["model"] == driver.port.model_name
    assert info["settings"]["kv_tokens"] == 8192
    assert {d["setting"] for d in info["decisions"]} >= {"device", "dtype", "kv_tokens"}
    assert driver.port.max_context == 2048


def test_programs_give_the_same_values(driver: PortDriver, reference: Engine) -> None:
    def run(executor: Executor) -> list[tuple[str, tuple[str, ...]]]:
        done = threading.Event()

        class Live(Program):
            def sink(self, events: list[Any]) -> None:
                super().sink(events)
                if self.closed:
                    done.set()

        program = Live(executor)
        program.send(text(0, "The dolphin lives"))
        program.send(Select(lane=0, node=1, name="place", choices=(" in the sea", " on a farm")))
        program.send(Fork(0, 2, (1, 2)))
        for lane in (1, 2):
            program.send(
                text(10 * lane, f" Branch {lane}:", lane), gen(10 * lane + 1, "fact", lane)
            )
        program.send(Join(0, 60, (1, 2)), gen(61, "end"), Close())
        assert done.wait(60)
        assert program.failures() == {}
        return sorted((value.name, tuple(value.texts)) for value in program.all(ValueReady))

    executors = Executor(driver.port), Executor(reference.core)
    found, expected = (run(executor) for executor in executors)
    assert found == expected
    assert [name for name, _ in found] == ["end", "fact", "fact", "place"]
    for executor in executors:
        executor.close()


def test_a_storm_of_requests_ends_each_once_and_frees_all_memory(driver: PortDriver) -> None:
    r = random.Random(11)
    calls: list[Call] = []
    for _ in range(100):
        prompt = [r.randrange(250) for _ in range(r.randint(1, 40))]
        options: dict[str, Any] = {
            "n": r.choice([1, 1, 3]),
            "stream": r.random() < 0.5,
            "stop": r.choice([(), ("e",), ("\x04",)]),
            "temperature": r.choice([0.0, 1.0]),
            "stop_regex": r.choice([None, None, "[a-f]{2}"]),
        }
        calls.append(driver.generate(prompt, r.randint(1, 60), **options))
        if r.random() < 0.3:
            driver.abort(r.choice(calls).request.id)
    for call in calls:
        for final in call.wait().finals.values():
            assert isinstance(final, GenerateResult)
            if final.error is not None:
                raise from_wire(dict(final.error))
    driver.flush()
    cache: dict[str, Any] = {}

    def empty() -> bool:
        cache.update(driver.port.info()["cache"])
        return bool(cache["free_tokens"] == cache["capacity_tokens"])

    until(empty)
    assert driver.port.info()["scheduler"]["unfinished"] == 0
