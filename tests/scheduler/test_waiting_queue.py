"""Order of admission against a brute-force sort, and its cost at length."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.scheduler.waiting_queue import WaitingQueue


def make(name: str, ids: list[int], priority: int = 0) -> Request:
    source = GenerateRequest(id=name, prompt_ids=ids, sampling=SamplingParams(), priority=priority)
    return Request(
        id=name,
        ids=np.array(ids, dtype=np.int32),
        prompt_len=len(ids),
        length=len(ids),
        max_len=len(ids) + 1,
        sampling=source.sampling,
        source=source,
    )


class PrefixSet:
    """Cached prefixes as a plain set of tuples."""

    def __init__(self) -> None:
        self.known: set[tuple[int, ...]] = {()}
        self.losses = 0
        self.looked_up = 0

    def match_len(self, ids: np.ndarray, namespace: str) -> int:
        n = 0
        self.looked_up += 1
        key = tuple(ids.tolist())
        while n < len(key) and key[: n + 1] in self.known:
            n += 1
        return n

    def insert(self, queue: WaitingQueue, ids: list[int]) -> None:
        array = np.array(ids, dtype=np.int32)
        old = self.match_len(array, "")
        for n in range(len(ids) + 1):
            self.known.add(tuple(ids[:n]))
        queue.inserted(array, "", old, len(ids))

    def evict(self, ids: list[int], keep: int) -> None:
        self.losses += 1
        head = tuple(ids[: keep + 1])
        self.known = {key for key in self.known if key[: keep + 1] != head or len(key) <= keep}


@settings(deadline=None, max_examples=150, derandomize=True)
@given(seed=st.integers(0, 1 << 20), evict=st.booleans(), told=st.booleans())
def test_longest_prefix_first_equals_a_full_sort(seed: int, evict: bool, told: bool) -> None:
    r = random.Random(seed)
    cache = PrefixSet()
    losses = (lambda: cache.losses) if told else None
    queue = WaitingQueue("lpm", cache.match_len, 10**9, losses)
    waiting: list[Request] = []

    def ids() -> list[int]:
        return [r.randrange(2) for _ in range(r.randint(1, 8))]

    for step in range(60):
        action = r.random()
        if action < 0.5:
            request = make(str(step), ids(), priority=r.choice([0, 0, 1]))
            queue.add(request)
            waiting.append(request)
        elif action < 0.8:
            cache.insert(queue, ids())
        elif action < 0.9 and evict:
            cache.evict(ids(), r.randint(0, 3))
        elif waiting:
            expected = min(
                waiting,
                key=lambda q: (
                    -q.source.priority,
                    -cache.match_len(q.ids, ""),
                    q.progress.arrival,
                ),
            )
            taken = next(queue.candidates())
            if not evict:
                assert taken is expected
            queue.admitted(taken)
            waiting.remove(taken)
        assert len(queue) == len(waiting)
    order = []
    for request in queue.candidates():
        order.append(request)
    assert sorted(q.id for q in order) == sorted(q.id for q in waiting), "lost or doubled"


def test_a_match_is_looked_up_again_only_after_a_loss_or_an_insertion_behind_it() -> None:
    cache = PrefixSet()
    queue = WaitingQueue("lpm", cache.match_len, 100, lambda: cache.losses)
    cache.insert(queue, [1, 2])
    for number in range(5):
        queue.add(make(str(number), [1, 2, 3, number]))

    def looks() -> int:
        before = cache.looked_up
        assert len(list(queue.candidates())) == 5
        return cache.looked_up - before

    assert [looks(), looks()] == [0, 0]
    cache.insert(queue, [1, 2, 3])
    assert [looks(), looks()] == [5, 0]
    cache.insert(queue, [7, 7])
    assert looks() == 0
    cache.evict([1, 2, 3], 1)
    assert looks() >= 5 and looks() == 0
    assert [request.id for request in queue.candidates()] == list("01234")


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_simple_policies_order_by_their_key(policy: str) -> None:
    queue = WaitingQueue(policy, lambda ids, namespace: 0, 100)
    for i, priority in enumerate([0, 2, 1, 2]):
        queue.add(make(str(i), [i], priority))
    expected = "0123" if policy == "fcfs" else "1320"
    assert "".join(q.id for q in queue.candidates()) == expected
    assert len(queue) == 4


def test_a_request_passed_over_too_often_goes_next() -> None:
    cache = PrefixSet()
    queue = WaitingQueue("lpm", cache.match_len, max_skips=5)
    cache.insert(queue, [1, 1, 1])
    queue.add(make("cold", [9, 9]))
    for i in range(20):
        queue.add(make(f"hot{i}", [1, 1, 1, i]))
    order = []
    while len(queue):
        request = next(queue.candidates())
        order.append(request.id)
        queue.admitted(request)
    assert order.index("cold") == 5


def test_retracted_requests_go_first() -> None:
    queue = WaitingQueue("lpm", lambda ids, namespace: 0, 100)
    queue.add(make("a", [1]))
    back = make("b", [2])
    queue.add_first(back)
    assert next(queue.candidates()) is back
    assert queue.remove(back) and not queue.remove(back)
    assert [q.id for q in queue.candidates()] == ["a"]


def test_cost_per_request_does_not_grow_with_the_queue() -> None:
    def cost(count: int) -> float:
        trunk = list(range(200))
        key = np.array(trunk, dtype=np.int32)
        cached = {"n": 0}

        def match_len(ids: np.ndarray, namespace: str) -> int:
            n = min(cached["n"], len(ids))
            return n if np.array_equal(ids[:n], key[:n]) else 0

        queue = WaitingQueue("lpm", match_len, 256)
        start = time.process_time()
        for i in range(count):
            queue.add(make(str(i), [*trunk, i]))
        cached["n"] = 200
        queue.inserted(key, "", 0, 200)
        while len(queue):
            queue.admitted(next(queue.candidates()))
        return (time.process_time() - start) / count

    cost(500)
    small, large = (min(cost(count) for _ in range(3)) for count in (500, 5_000))
    assert large < 4 * small  # ten times where each request looked at all others
