"""Requests of many adapters: each gets its own, slots never starve anybody, and nothing mixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.adapters import AdapterVersion, adapter_not_found
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import AdapterDamaged, AdapterNotFound, BranchlineError
from branchline.runtime.lora.residency import Residency
from tests.scheduler.harness import Bench
from tests.support.hash_model import VOCAB, expected_output, expected_scores
from tests.support.oracle_drafter import OracleDrafter


class SaltedAdapters:
    """Adapters of the hash model: a version's salt is written to its slot when it arrives.

    Args:
        count: slots.
        delay: turns of the loop that loading takes.
    """

    def __init__(self, count: int, delay: int = 0) -> None:
        self.residency = Residency(count)
        self.delay = delay
        self.names: dict[str, AdapterVersion] = {}
        self.salts: dict[AdapterVersion, int] = {}
        self.loading: list[tuple[int, AdapterVersion, int]] = []
        self.broken: set[str] = set()
        self.loads = 0
        self.turn = 0
        self.bench: Bench | None = None

    def load(self, name: str) -> int:
        """A new version; its salt."""
        old = self.names.get(name)
        self.names[name] = version = AdapterVersion(name, 1 if old is None else old.number + 1)
        self.salts[version] = len(self.salts) + 1
        return self.salts[version]

    def tick(self) -> None:
        """A turn of the loop: what has been loading long enough arrives."""
        assert self.bench is not None
        self.turn += 1
        for due, version, slot in list(self.loading):
            if due > self.turn:
                continue
            self.loading.remove((due, version, slot))
            if version.name in self.broken:
                self.residency.remove(version)
                self.failed(version, AdapterDamaged("gone"))
                continue
            self.bench.worker.salts[slot] = self.salts[version]
            self.residency.arrived(version)

    # -- Adapters

    def connect(self, failed: Callable[[AdapterVersion, BranchlineError], None]) -> None:
        self.failed = failed

    def find(self, name: str) -> AdapterVersion:
        if name not in self.names:
            raise adapter_not_found(name, self.names)
        return self.names[name]

    def open(self, version: AdapterVersion) -> None:
        version.sequences += 1

    def close(self, version: AdapterVersion) -> None:
        version.sequences -= 1
        assert version.sequences >= 0

    def ready(self, version: AdapterVersion, *, urgent: bool) -> bool:
        if version.slot >= 0:
            return True
        if not self.residency.is_loading(version):
            slot = self.residency.choose(version, urgent=urgent)
            if slot is not None:
                self.loads += 1
                self.loading.append((self.turn + self.delay, version, slot))
        return False

    def enter(self, version: AdapterVersion) -> None:
        self.residency.enter(version)

    def leave(self, version: AdapterVersion) -> None:
        self.residency.leave(version)
        assert version.rows >= 0

    def counters(self) -> dict[str, Any]:
        return {}


def bench(adapters: SaltedAdapters, **settings: Any) -> Bench:
    made = Bench(adapters=adapters, **settings)
    adapters.bench = made
    return made


def run(made: Bench, adapters: SaltedAdapters, limit: int = 20_000) -> None:
    """As `Bench.run`, with adapters arriving."""
    for _ in range(limit):
        adapters.tick()
        busy = made.scheduler.step()
        if not busy and made.scheduler.num_unfinished == 0:
            break
    else:
        raise AssertionError(f"{made.scheduler.num_unfinished} requests starve")
    assert made.cache.audit() == []
    assert made.cache.running_tokens == 0
    assert all(v.idle for v in adapters.salts), "versions are closed and left as often as entered"


def test_requests_of_many_adapters_and_of_the_base_model_run_in_one_step() -> None:
    adapters = SaltedAdapters(4)
    made = bench(adapters)
    salts = {name: adapters.load(name) for name in "abc"} | {"": 0}
    prompt = list(range(1, 20))
    for name in salts:
        made.submit(f"r{name}", prompt, 12, adapter=name)
    run(made, adapters)
    for name, salt in salts.items():
        assert made.output(f"r{name}") == expected_output(prompt, 12, salt=salt)
    assert made.worker.max_rows == len(salts)


def test_what_one_version_computed_is_never_taken_for_anothers() -> None:
    adapters = SaltedAdapters(2)
    made = bench(adapters)
    prompt = list(range(1, 30))
    first = adapters.load("a")
    made.submit("old", prompt, 8, adapter="a")
    made.submit("base", prompt, 8)
    run(made, adapters)
    second = adapters.load("a")
    made.submit("new", prompt, 8, adapter="a")
    made.submit("again", prompt, 8, adapter="a", namespace="tenant")
    run(made, adapters)
    assert made.output("old") == expected_output(prompt, 8, salt=first)
    for name in ("new", "again"):
        assert made.output(name) == expected_output(prompt, 8, salt=second)
        assert made.out.done[name].progress.cached_tokens == 0
    made.submit("hit", prompt, 8, adapter="a")
    run(made, adapters)
    assert made.output("hit") == made.output("new")
    assert made.out.done["hit"].progress.cached_tokens == len(prompt) - 1


def test_an_unknown_adapter_is_refused_at_once_and_nothing_else_is_touched() -> None:
    adapters = SaltedAdapters(1)
    made = bench(adapters)
    with pytest.raises(AdapterNotFound, match="None is"):
        made.submit("x", [1, 2], adapter="nobody")
    adapters.load("a")
    with pytest.raises(AdapterNotFound, match="Loaded: a"):
        made.submit("x", [1, 2], adapter="nobody")
    with pytest.raises(BranchlineError):
        made.submit("x", [], adapter="a")
    assert made.scheduler.num_unfinished == 0
    made.submit("y", [1, 2, 3], adapter="a")
    run(made, adapters)


def test_others_go_on_while_an_adapter_loads() -> None:
    adapters = SaltedAdapters(2, delay=30)
    made = bench(adapters)
    adapters.load("slow")
    made.submit("waits", [1, 2, 3], 2, adapter="slow")
    made.submit("base", [4, 5, 6], 8)
    run(made, adapters)
    assert made.out.order == ["base", "waits"]


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])
def test_a_steady_stream_for_one_adapter_does_not_starve_another(policy: str) -> None:
    """With one slot, requests of the adapter in it would keep it for ever."""
    adapters = SaltedAdapters(1)
    made = bench(adapters, max_skips=8, policy=policy, rows=4)
    salts = {name: adapters.load(name) for name in "ab"}
    prompt = list(range(1, 10))
    made.submit("a0", prompt, 4, adapter="a")
    for _ in range(3):
        adapters.tick()
        made.scheduler.step()
    made.submit("b", prompt, 4, adapter="b")
    sent = 1
    while "b" not in made.out.done:
        assert sent < 200, "b starves"
        made.submit(f"a{sent}", prompt, 4, adapter="a")
        sent += 1
        for _ in range(2):
            adapters.tick()
            made.scheduler.step()
    run(made, adapters)
    assert made.output("b") == expected_output(prompt, 4, salt=salts["b"])
    for index in range(sent):
        assert made.output(f"a{index}") == expected_output(prompt, 4, salt=salts["a"])


def test_requests_of_one_adapter_are_grouped_while_another_waits() -> None:
    """Alternating arrivals do not make the slot change hands for every request."""
    adapters = SaltedAdapters(1)
    made = bench(adapters, max_skips=100)
    for name in "ab":
        adapters.load(name)
    for index in range(20):
        made.submit(f"r{index}", [index + 1, 2, 3], 3, adapter="ab"[index % 2])
    run(made, adapters)
    assert adapters.loads == 2


def test_an_adapter_that_cannot_be_had_ends_its_own_requests_alone() -> None:
    adapters = SaltedAdapters(2)
    made = bench(adapters)
    adapters.load("bad")
    good = adapters.load("good")
    adapters.broken.add("bad")
    for index in range(3):
        made.submit(f"bad{index}", [1, 2, 3], adapter="bad", n=2)
        made.submit(f"good{index}", [1, 2, 3], adapter="good")
    run(made, adapters)
    for index in range(3):
        for name in (f"bad{index}", f"bad{index}#1"):
            assert isinstance(made.out.done[name].progress.error, AdapterDamaged)
        assert made.output(f"good{index}") == expected_output([1, 2, 3], 8, salt=good)


def test_choices_are_scored_with_the_adapter() -> None:
    adapters = SaltedAdapters(2)
    made = bench(adapters)
    salt = adapters.load("a")
    choices = [[5, 6, 7], [5, 9]]
    made.score("a", [1, 2, 3], choices, adapter="a")
    made.score("base", [1, 2, 3], choices)
    run(made, adapters)
    for name, own in (("a", salt), ("base", 0)):
        score = made.out.done[name].score
        assert score is not None
        for choice, got in zip(choices, score.results, strict=True):
            assert got == pytest.approx(expected_scores([1, 2, 3], choice, salt=own))


_REQUEST = st.fixed_dictionaries(
    {
        "adapter": st.sampled_from(["", "a", "b", "c", "d"]),
        "prompt": st.lists(st.integers(0, 5), min_size=1, max_size=24),
        "count": st.integers(1, 12),
        "constrained": st.booleans(),
        "n": st.integers(1, 2),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(_REQUEST, min_size=1, max_size=10),
    slots=st.integers(1, 4),
    delay=st.integers(0, 3),
    tokens=st.sampled_from([96, 4096]),
    page_size=st.sampled_from([1, 4]),
    lazy=st.booleans(),
    mirror=st.booleans(),
    data=st.data(),
)
def test_whatever_the_load_every_output_is_its_own_versions(
    requests: list[dict[str, Any]],
    slots: int,
    delay: int,
    tokens: int,
    page_size: int,
    lazy: bool,
    mirror: bool,
    data: st.DataObject,
) -> None:
    """Few slots, little memory, chunks, retraction, aborts, new versions, guesses: all together."""
    adapters = SaltedAdapters(slots, delay)
    scripts: dict[str, list[int]] = {}
    drafter = OracleDrafter(scripts, VOCAB) if data.draw(st.booleans()) else None
    made = bench(
        adapters,
        tokens=tokens,
        page_size=page_size,
        context=64,
        step_tokens=8,
        rows=6,
        lazy=lazy,
        mirror=mirror,
        drafter=drafter,
        max_skips=data.draw(st.sampled_from([0, 3, 50])),
    )
    for name in "abcd":
        adapters.load(name)
    expected: dict[str, list[int]] = {}
    aborted: set[str] = set()
    for index, request in enumerate(requests):
        name, adapter = f"r{index}", request["adapter"]
        salt = adapters.salts[adapters.names[adapter]] if adapter else 0
        output = expected_output(request["prompt"], request["count"], salt=salt)
        extra: dict[str, Any] = {"n": request["n"]}
        scripts[name] = scripts[f"{name}#1"] = output
        if request["constrained"]:
            rows = [[token] if i % 2 else None for i, token in enumerate(output)]
            extra["constraint"] = Constraint(kind="regex", text=str(rows).replace("None", "null"))
        made.submit(name, request["prompt"], request["count"], adapter=adapter, **extra)
        for sibling in range(request["n"]):
            expected[name if not sibling else f"{name}#{sibling}"] = output
        for _ in range(data.draw(st.integers(0, 4))):
            adapters.tick()
            made.scheduler.step()
        if data.draw(st.integers(0, 9)) == 0:
            made.scheduler.abort(name)
            aborted.add(name)
        if data.draw(st.integers(0, 4)) == 0:
            adapters.load(data.draw(st.sampled_from("abcd")))
    run(made, adapters)
    for name, output in expected.items():
        if name.partition("#")[0] not in aborted:
            assert made.output(name) == output, name
