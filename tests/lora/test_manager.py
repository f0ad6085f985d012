"""Names, versions and users: who gets what, and what becomes of the rest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from branchline.runtime.core.adapters import AdapterFiles, AdapterInfo, AdapterVersion
from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterInUse,
    AdapterNotFound,
    AdapterTooLarge,
    BackendError,
    BranchlineError,
    InvalidRequest,
)
from branchline.runtime.lora.adapter_files import CONFIG, WEIGHTS
from branchline.runtime.lora.layout import SlotLayout
from branchline.runtime.lora.manager import AdapterManager
from branchline.runtime.lora.slots import Slots
from branchline.runtime.models.base import Model
from tests.support.peft_adapters import write_adapter

Q = "model.layers.0.self_attn.q_proj"


class Scene:
    """A manager whose loop is turned by hand."""

    def __init__(self, model: Model, folder: Path, count: int = 2, host_slots: int = 2) -> None:
        self.model, self.folder = model, folder
        self.layout = SlotLayout(model.lora_sites(), 16, torch.float32)
        self.slots = Slots(self.layout, count, torch.device("cpu"))
        self.posted: deque[Callable[[], None]] = deque()
        self.arrived = threading.Semaphore(0)
        self.answers: list[AdapterInfo | BranchlineError] = []
        self.failed: list[tuple[AdapterVersion, BranchlineError]] = []
        self.manager = AdapterManager(self.slots, host_slots * self.layout.slot_bytes, self.post)
        self.manager.connect(lambda version, error: self.failed.append((version, error)))

    def post(self, fn: Callable[[], None]) -> None:
        self.posted.append(fn)
        self.arrived.release()

    def turn(self) -> None:
        """Wait for the loader's next word."""
        assert self.arrived.acquire(timeout=30)
        self.posted.popleft()()

    def write(self, name: str, seed: int = 0) -> str:
        return str(write_adapter(self.folder / name, self.model.spec, rank=2, seed=seed))

    def load(self, name: str, path: str = "", seed: int = 0, *, pin: bool = False) -> AdapterInfo:
        """Load and wait; raises what went wrong."""
        self.manager.load(name, path or self.write(name, seed), self.answers.append, pin=pin)
        while not self.answers:
            self.turn()
        return self.answer()

    def answer(self) -> AdapterInfo:
        found = self.answers.pop()
        assert not self.answers
        if isinstance(found, BranchlineError):
            raise found
        return found

    def bring(self, version: AdapterVersion) -> None:
        while not self.manager.ready(version, urgent=False):
            self.turn()

    def use(self, name: str) -> AdapterVersion:
        """A sequence with a row."""
        version = self.manager.find(name)
        self.manager.open(version)
        self.bring(version)
        self.manager.enter(version)
        return version

    def end(self, version: AdapterVersion) -> None:
        self.manager.leave(version)
        self.manager.close(version)

    def q_of(self, slot: int) -> torch.Tensor:
        """Two rows of a slot's A of the first query projection."""
        place = self.layout.modules[Q]
        return self.slots.values[slot, place.a_at : place.a_at + 2 * place.columns]

    def drain(self) -> None:
        """Let the loader finish what it has."""
        done = threading.Event()
        self.manager._loader.put(done.set, lambda _: None)
        assert done.wait(30)


@pytest.fixture
def scene(model: Model, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(model, tmp_path)
    yield made
    made.manager.shut()


def q_of_file(path: str) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(Path(path) / WEIGHTS)[f"base_model.model.{Q}.lora_A.weight"].flatten()


def test_an_adapter_is_found_by_its_name_and_brought_when_wanted(scene: Scene) -> None:
    info = scene.load("sql")
    assert (info.name, info.version, info.rank, info.state, info.running) == (
        "sql",
        1,
        2,
        "host",
        0,
    )
    version = scene.use("sql")
    assert torch.equal(scene.q_of(version.slot), q_of_file(info.path))
    (listed,) = scene.manager.infos()
    assert scene.manager.named(listed.name) == listed and scene.manager.named("other") is None
    assert (listed.state, listed.running) == ("device", 1)
    with pytest.raises(AdapterNotFound, match="Loaded: sql"):
        scene.manager.find("sqI")


def test_a_sequence_keeps_its_version_when_another_is_loaded_under_the_name(scene: Scene) -> None:
    scene.load("sql", seed=1)
    old = scene.use("sql")
    waiting = scene.manager.find("sql")
    scene.manager.open(waiting)
    before = scene.q_of(old.slot).clone()
    second = str(write_adapter(scene.folder / "other", scene.model.spec, rank=2, seed=2))
    assert scene.load("sql", second).version == 2
    new = scene.use("sql")
    assert (old.number, waiting, new.number) == (1, old, 2)
    assert torch.equal(scene.q_of(old.slot), before)
    assert torch.equal(scene.q_of(new.slot), q_of_file(second))
    assert [info.version for info in scene.manager.infos()] == [2]
    scene.end(old)
    assert old.slot >= 0, "one sequence still has it"
    scene.manager.close(waiting)
    assert old.slot < 0, "forgotten with its last sequence"


def test_a_name_that_comes_back_is_another_version(scene: Scene) -> None:
    scene.load("sql")
    scene.manager.unload("sql", scene.answers.append)
    assert scene.answer().version == 1
    assert scene.manager.infos() == []
    assert scene.load("sql").version == 2


def test_unloading_what_is_used_is_refused_or_waits_as_asked(scene: Scene) -> None:
    scene.load("sql")
    version = scene.use("sql")
    scene.manager.unload("sql", scene.answers.append)
    with pytest.raises(AdapterInUse, match=r"adapter 'sql' is in use by 1 of.*drain=True"):
        scene.answer()
    assert scene.manager.find("sql") is version, "nothing has changed"
    scene.manager.unload("sql", scene.answers.append, drain=True)
    assert not scene.answers
    with pytest.raises(AdapterNotFound):
        scene.manager.find("sql")
    scene.manager.leave(version)
    assert not scene.answers
    scene.manager.close(version)
    assert scene.answer().name == "sql"
    scene.manager.unload("sql", scene.answers.append)
    with pytest.raises(AdapterNotFound):
        scene.answer()


def test_a_version_that_is_unloaded_on_its_way_to_a_slot_leaves_the_slot(scene: Scene) -> None:
    scene.load("sql")
    version = scene.manager.find("sql")
    scene.manager.open(version)
    assert not scene.manager.ready(version, urgent=False)
    scene.manager.unload("sql", scene.answers.append, drain=True)
    scene.manager.close(version)
    assert not scene.answers, "its slot is being written"
    scene.turn()
    assert scene.answer().name == "sql"
    assert scene.manager.counters()["slots_used"] == 0


def test_what_cannot_be_loaded_changes_nothing(scene: Scene) -> None:
    scene.load("sql")
    version = scene.use("sql")
    broken = Path(scene.write("broken"))
    (broken / CONFIG).write_text("{")
    for name in ("sql", "broken"):
        with pytest.raises(AdapterDamaged):
            scene.load(name, str(broken))
    with pytest.raises(AdapterDamaged, match="no folder of an adapter"):
        scene.load("sql", "/nowhere/at/all")
    with pytest.raises(InvalidRequest, match="cannot be called so"):
        scene.load("a b", str(broken))
    assert scene.manager.find("sql") is version
    assert [info.name for info in scene.manager.infos()] == ["sql"]
    assert scene.load("sql").version == 2


def test_an_adapter_that_cannot_be_read_again_fails_those_who_wait(
    model: Model, tmp_path: Path
) -> None:
    scene = Scene(model, tmp_path, count=2, host_slots=1)
    scene.load("sql")
    scene.load("other")  # puts "sql" out of host memory
    assert [info.state for info in scene.manager.infos()] == ["disk", "host"]
    (scene.folder / "sql" / WEIGHTS).write_bytes(b"garbage")
    version = scene.manager.find("sql")
    scene.manager.open(version)
    assert not scene.manager.ready(version, urgent=False)
    scene.turn()
    ((failed, error),) = scene.failed
    assert failed is version and isinstance(error, AdapterDamaged)
    scene.manager.close(version)
    assert scene.use("other").slot >= 0, "others go on"
    scene.manager.shut()


def test_a_pinned_adapter_comes_by_itself_and_stays(scene: Scene) -> None:
    info = scene.load("fixed", pin=True)
    assert info.pinned
    scene.turn()
    fixed = scene.manager.find("fixed")
    assert fixed.slot >= 0
    for name in ("a", "b", "c"):
        scene.load(name)
        scene.end(scene.use(name))
    assert fixed.slot >= 0
    with pytest.raises(AdapterTooLarge, match="one slot must stay"):
        scene.load("d", pin=True)
    assert [i.name for i in scene.manager.infos()] == ["fixed", "a", "b", "c"]
    assert scene.load("fixed", pin=True).version == 2, "a new version takes the pin over"


def test_adapters_that_are_loaded_at_once_take_turns_with_the_loader(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a scheduler is given back what one before it had: the first one is pinned and on its
    way to its slot while the next is read."""
    threads: list[int] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **options: Any) -> Any:
            threads.append(threading.get_ident())
            return call(*args, **options)

        return watching

    shelf = scene.manager._shelf
    monkeypatch.setattr(shelf, "add", watched(shelf.add))
    monkeypatch.setattr(shelf, "fetch", watched(shelf.fetch))
    scene.manager.load_now("fixed", scene.write("fixed"), pin=True)
    before = len(threads)
    scene.manager.load_now("next", scene.write("next", seed=1), number=7)
    scene.turn()
    used = set(threads[before:])
    assert len(used) == 1 and threading.get_ident() not in used
    assert [(i.name, i.version, i.state) for i in scene.manager.infos()] == [
        ("fixed", 1, "device"),
        ("next", 7, "host"),
    ]
    with pytest.raises(AdapterDamaged, match="no folder of an adapter"):
        scene.manager.load_now("lost", "/nowhere/at/all")


def test_files_that_are_sent_are_kept_until_nobody_needs_them(scene: Scene) -> None:
    path = Path(scene.write("sent"))
    files = AdapterFiles(config=(path / CONFIG).read_bytes(), weights=(path / WEIGHTS).read_bytes())
    scene.manager.load("sent", files, scene.answers.append)
    scene.turn()
    assert scene.answer().path == ""
    kept = scene.manager._names["sent"].volume.folder.path
    assert kept != path and kept.is_dir()
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    scene.manager.unload("sent", scene.answers.append)
    scene.answer()
    scene.drain()
    assert not kept.exists() and path.exists()
    bad = AdapterFiles(config=b"{", weights=b"")
    scene.manager.load("sent", bad, scene.answers.append)
    scene.turn()  # the drop above
    while not scene.answers:
        scene.turn()
    with pytest.raises(AdapterDamaged):
        scene.answer()
    assert list(kept.parent.iterdir()) == []
    scene.manager.shut()
    assert not kept.parent.exists()


def test_many_more_adapters_than_slots_take_turns(scene: Scene) -> None:
    names = [f"a{i}" for i in range(6)]
    paths = {name: scene.load(name, seed=i).path for i, name in enumerate(names)}
    for name in [*names, *reversed(names)]:
        version = scene.use(name)
        assert torch.equal(scene.q_of(version.slot), q_of_file(paths[name]))
        scene.end(version)
    counters = scene.manager.counters()
    assert counters["loaded"] == 6 and counters["slots_used"] == 2
    assert counters["evictions"] == counters["loads"] - 2 > 0
    assert counters["host_bytes"] <= 2 * scene.layout.slot_bytes


def test_names_that_share_files_share_host_memory(scene: Scene) -> None:
    path = scene.write("shared")
    for name in ("a", "b", "c"):
        scene.load(name, path)
    one = scene.layout.slot_bytes
    assert scene.manager.counters()["host_bytes"] == one
    for name, kept in (("a", one), ("b", one), ("c", 0)):
        scene.manager.unload(name, scene.answers.append)
        assert isinstance(scene.answer(), AdapterInfo)
        scene.turn()
        assert scene.manager.counters()["host_bytes"] == kept
    scene.load("d", path)
    version = scene.use("d")
    assert torch.equal(scene.q_of(version.slot), q_of_file(path))


def test_whoever_waits_when_the_engine_closes_hears_of_it(model: Model, tmp_path: Path) -> None:
    scene = Scene(model, tmp_path)
    scene.load("used")
    scene.use("used")
    scene.manager.unload("used", scene.answers.append, drain=True)
    for index in range(3):
        scene.manager.load(f"late{index}", scene.write("late"), scene.answers.append)
    scene.manager.shut()
    assert len(scene.answers) == 4
    for answer in scene.answers:
        assert isinstance(answer, BackendError) and answer.retryable
