"""Quotas of adapters: who waits, in what order, and what ends those that wait."""

from __future__ import annotations

import queue
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from branchline.lang.backends.scripted import EventLoop, ScriptedEngine
from branchline.runtime.core.messages import EngineRequest, GenerateRequest
from branchline.runtime.core.outputs import GenerateResult, Output, RequestMeta
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.sequence import names_of
from branchline.runtime.errors import InvalidRequest, QueueFull
from branchline.runtime.server.quota_port import QuotaPort


class HeldEngine(ScriptedEngine):
    """Answers when it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(lambda name, text: "a", EventLoop(), 0.0)
        self.running: dict[str, Callable[[Output], None]] = {}
        self.requests: dict[str, EngineRequest] = {}
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.posted: queue.Queue[Callable[[], None]] = queue.Queue()

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        if request.id.startswith("bad"):
            raise InvalidRequest("it cannot be run")
        self.started.append(request.id)
        self.running[request.id] = on_output
        self.requests[request.id] = request

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.posted.put(fn)

    def finish(self, request_id: str) -> None:
        on_output = self.running.pop(request_id)
        for name in names_of(self.requests[request_id]):
            on_output(GenerateResult(request_id=name, text="a", token_ids=[], meta=RequestMeta()))


class Scene:
    """A port with a quota, and the final outputs that came of it: (sequence, how it ended)."""

    def __init__(self, most: int | None = 1, most_waiting: int = 9) -> None:
        self.engine = HeldEngine()
        self.port = QuotaPort(self.engine, most, most_waiting)
        self.ended: list[tuple[str, str]] = []

    def ask(
        self, name: str, adapter: str = "sql", *, n: int = 1, deadline: float | None = None
    ) -> None:
        request = GenerateRequest(
            id=name,
            prompt_ids=[1],
            sampling=SamplingParams(n=n),
            adapter=adapter,
            deadline=deadline,
        )
        self.port.submit(request, self._take)

    def _take(self, output: Output) -> None:
        assert isinstance(output, GenerateResult)
        self.ended.append((output.request_id, output.meta.finish_reason))


def test_those_beyond_the_quota_start_in_the_order_they_came() -> None:
    scene = Scene(most=2)
    for name in "abcd":
        scene.ask(name)
    scene.ask("e", "json")
    scene.ask("f", "")
    assert scene.engine.started == ["a", "b", "e", "f"]
    scene.engine.finish("b")
    assert scene.engine.started[4:] == ["c"]
    scene.engine.finish("c")
    scene.engine.finish("a")
    scene.engine.finish("d")
    assert scene.ended == [(name, "stop") for name in "bcad"]


def test_a_request_counts_until_its_last_sequence_has_ended() -> None:
    scene = Scene()
    scene.ask("a", n=2)
    scene.ask("b")
    take = scene.engine.running["a"]
    take(GenerateResult(request_id="a", text="", token_ids=[], meta=RequestMeta()))
    assert scene.engine.started == ["a"]
    take(GenerateResult(request_id="a#1", text="", token_ids=[], meta=RequestMeta()))
    assert scene.engine.started == ["a", "b"]


def test_more_than_may_wait_are_refused_and_leave_nothing_behind() -> None:
    scene = Scene(most_waiting=1)
    scene.ask("a")
    scene.ask("b")
    with pytest.raises(QueueFull, match="sql") as refused:
        scene.ask("c")
    assert refused.value.retryable and "max_adapter_waiting" in str(refused.value)
    scene.engine.finish("a")
    scene.ask("d")
    scene.engine.finish("b")
    scene.engine.finish("d")
    assert [name for name, _ in scene.ended] == ["a", "b", "d"]


def test_one_that_waits_is_aborted_without_the_engine() -> None:
    scene = Scene()
    for name in "abc":
        scene.ask(name, n=2)
    scene.port.abort("b")
    assert scene.ended == [("b", "abort"), ("b#1", "abort")] and not scene.engine.aborted
    scene.port.abort("a")
    assert scene.engine.aborted == ["a"]
    scene.port.abort("c#1")  # one sequence of it: the engine ends it once it has it
    scene.engine.finish("a")
    assert scene.engine.started == ["a", "c"] and scene.engine.aborted == ["a", "c#1"]


def test_what_the_engine_refuses_later_ends_with_the_error_and_others_go_on() -> None:
    scene = Scene()
    scene.ask("a")
    scene.ask("bad")
    scene.ask("b")
    scene.engine.finish("a")
    assert scene.engine.started == ["a", "b"] and ("bad", "error") in scene.ended
    with pytest.raises(InvalidRequest):
        scene.ask("bad2", "json")
    scene.ask("c", "json")
    assert scene.engine.started[-1] == "c"


def test_a_deadline_ends_one_that_waits() -> None:
    scene = Scene()
    scene.ask("a")
    scene.ask("b", deadline=time.monotonic() + 60.0)
    scene.ask("c", deadline=time.monotonic() + 0.05)
    scene.engine.posted.get(timeout=30.0)()
    assert scene.ended == [("c", "deadline")]
    scene.engine.finish("a")
    assert scene.engine.started == ["a", "b"]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_everyone_is_answered_once_and_no_quota_is_passed(seed: int) -> None:
    rng = random.Random(seed)
    scene, asked = Scene(most=2, most_waiting=3), Counter[str]()
    for step in range(400):
        what = rng.random()
        if what < 0.5:
            name = f"{rng.choice(['bad', 'r'])}{step}"
            try:
                scene.ask(name, rng.choice(["", "sql", "json"]), n=rng.choice([1, 2]))
            except (QueueFull, InvalidRequest):
                continue
            asked[name] += 1
        elif what < 0.6 and asked:
            waiting = [name for name in asked if name not in scene.engine.started]
            if waiting:
                scene.port.abort(rng.choice(waiting))
        elif scene.engine.running:
            scene.engine.finish(rng.choice(list(scene.engine.running)))
        used = Counter(scene.engine.requests[name].adapter for name in scene.engine.running)
        assert max(used["sql"], used["json"]) <= 2
    while scene.engine.running:
        scene.engine.finish(next(iter(scene.engine.running)))
    ended = Counter(name for name, _ in scene.ended)
    assert set(ended.values()) == {1} and {name for name in ended if "#" not in name} == set(asked)
