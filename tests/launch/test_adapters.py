"""Adapters of an engine in other processes are those of one in this process, restarts included."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.config.server import ServerSection
from branchline.runtime.core.adapters import AdapterFiles, AdapterInfo
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.protocols import AdapterPort
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterInUse,
    AdapterNotFound,
    BackendError,
    BranchlineError,
    InvalidRequest,
)
from branchline.runtime.ipc.messages import (
    Answer,
    KeptAdapter,
    LoadAdapter,
    RestoreAdapters,
    Submit,
    ToScheduler,
    UnloadAdapter,
)
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.launch.remote_engine import RemoteEngine
from branchline.runtime.launch.remote_port import RemotePort
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from tests.support.peft_adapters import write_adapter
from tests.support.port_driver import PortDriver
from tests.support.waiting import until

PROMPT = list(b"Once upon a time")
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}


# -- without processes -----------------------------------------------------------------------------


class Wire:
    """A port whose loop stands still, and what it has sent."""

    def __init__(self, loop: SocketLoop, at_start: list[AdapterInfo]) -> None:
        turns: Any = None
        self.port = RemotePort(ByteTokenizer(), turns, "m", loop, SchedulerSection())
        self.answers: list[Any] = []
        self.outputs: list[Output] = []
        self._flush = loop.after_turn
        self._sent: list[ToScheduler] = []
        self.connect(at_start)

    def connect(self, adapters: list[AdapterInfo]) -> None:
        self.port.connect(self, Bounds(260, 2048, 64, 64), {}, adapters)  # type: ignore[arg-type]

    def send(self, messages: list[ToScheduler]) -> None:
        self._sent += messages

    def sent(self) -> list[ToScheduler]:
        self._flush()
        sent, self._sent = self._sent, []
        return sent

    def answer(self, number: int, value: Any) -> None:
        """As it comes over a socket: plain data."""
        if isinstance(value, BranchlineError):
            self.port.answer(Answer(number, error=value.to_wire()))
        else:
            self.port.answer(Answer(number, msgspec.to_builtins(value)))

    def submit(self, adapter: str) -> None:
        request = GenerateRequest(
            id=f"r{len(self.outputs)}", prompt_ids=[1], sampling=SamplingParams(), adapter=adapter
        )
        self.port.submit(request, self.outputs.append)


@pytest.fixture
def wire() -> Iterator[Wire]:
    loop = SocketLoop("standing")
    made = Wire(loop, [AdapterInfo(name="first", version=1, path="/first")])
    made.port.resume()
    yield made
    made.port.close()
    loop.close()
    loop.run()  # closed: closes its pipe and returns


def load(wire: Wire, name: str, version: int = 1, *, pin: bool = False) -> None:
    wire.port.load_adapter(name, f"/{name}", wire.answers.append, pin=pin)
    [message] = wire.sent()
    assert isinstance(message, LoadAdapter)
    assert (message.name, message.path, message.pin) == (name, f"/{name}", pin)
    wire.answer(message.number, AdapterInfo(name=name, version=version, path=f"/{name}"))
    assert wire.answers.pop().version == version


def test_a_request_may_name_what_the_scheduler_has_answered(wire: Wire) -> None:
    assert [info.name for info in wire.port.adapters()] == ["first"]
    with pytest.raises(AdapterNotFound, match="Loaded: first"):
        wire.submit("sql")
    load(wire, "sql")
    wire.submit("sql")
    [sent] = wire.sent()
    assert isinstance(sent, Submit) and sent.request.adapter == "sql"
    wire.port.load_adapter("bad", "/bad", wire.answers.append)
    [message] = wire.sent()
    assert isinstance(message, LoadAdapter)
    wire.answer(message.number, AdapterDamaged("no"))
    assert isinstance(wire.answers.pop(), AdapterDamaged)
    wire.port.load_adapter("a b", "/bad", wire.answers.append)
    assert isinstance(wire.answers.pop(), InvalidRequest) and wire.sent() == []
    assert [info.name for info in wire.port.adapters()] == ["first", "sql"]


def test_what_is_drained_takes_no_more_and_comes_back_where_it_must_stay(wire: Wire) -> None:
    for drain, error in ((False, AdapterInUse("busy")), (True, BackendError("no"))):
        wire.port.unload_adapter("first", wire.answers.append, drain=drain)
        [message] = wire.sent()
        assert isinstance(message, UnloadAdapter) and message.drain == drain
        assert [info.name for info in wire.port.adapters()] == ([] if drain else ["first"])
        wire.answer(message.number, error)
        assert type(wire.answers.pop()) is type(error)
        assert [info.name for info in wire.port.adapters()] == ["first"]
    wire.port.unload_adapter("first", wire.answers.append, drain=True)
    [message] = wire.sent()
    assert isinstance(message, UnloadAdapter)
    wire.answer(message.number, AdapterInfo(name="first", version=1))
    assert wire.answers.pop().name == "first"
    assert wire.port.adapters() == []


def test_a_new_scheduler_gets_what_the_one_before_had_and_then_requests(wire: Wire) -> None:
    load(wire, "sql", version=3, pin=True)
    wire.submit("sql")
    wire.sent()
    wire.port.scheduler_lost(BackendError("died", retryable=True))
    # Its settings name another adapter than what there was when the other one died.
    wire.connect([AdapterInfo(name="first", version=1, path="/first")])
    wire.port.resume()
    restore, submit = wire.sent()
    assert isinstance(restore, RestoreAdapters) and isinstance(submit, Submit)
    assert restore.adapters == [
        KeptAdapter("first", "/first", 1),
        KeptAdapter("sql", "/sql", 3, pin=True),
    ]
    wire.answer(restore.number, [AdapterInfo(name="sql", version=3, path="/sql")])
    assert [info.name for info in wire.port.adapters()] == ["sql"], "the other one was lost"
    assert submit.request.adapter == "sql"


def test_nothing_is_loaded_while_no_scheduler_is_ready(wire: Wire) -> None:
    wire.port.scheduler_lost(BackendError("died", retryable=True))
    wire.port.load_adapter("sql", "/sql", wire.answers.append)
    error = wire.answers.pop()
    assert isinstance(error, BackendError) and error.retryable


# -- both kinds of ports ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    spec = open_checkpoint(Path(settings["model"]), "dummy").spec
    return {
        name: str(write_adapter(folder / name, spec, seed=seed, strength=0.5))
        for seed, name in enumerate(("a", "b"))
    }


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any], folders: dict[str, str]) -> dict[str, list[int]]:
    with Engine(**settings, adapters=folders) as engine:
        return {
            name: engine.generate(PROMPT, adapter=name, **OPTIONS).token_ids
            for name in ("", *folders)
        }


def ask(driver: PortDriver, what: Callable[[AdapterPort, Callable[[Any], None]], None]) -> Any:
    """What a question to the port is answered; raises what it says."""
    box: list[Any] = []
    port = driver.port
    assert isinstance(port, AdapterPort)
    driver.on_loop(lambda: what(port, box.append))
    until(lambda: bool(box))
    if isinstance(box[0], BranchlineError):
        raise box[0]
    return box[0]


def generate(driver: PortDriver, adapter: str, prompt: list[int] | None = None) -> Any:
    request = GenerateRequest(
        id=driver.new_id(),
        prompt_ids=PROMPT if prompt is None else prompt,
        sampling=SamplingParams(**OPTIONS),
        adapter=adapter,
    )
    (call,) = driver.submit(request)
    return call.result


def test_adapters_are_loaded_used_replaced_and_forgotten(
    driver: PortDriver, folders: dict[str, str], expected: dict[str, list[int]]
) -> None:
    port = driver.port
    assert isinstance(port, AdapterPort)
    for version, source in ((1, "a"), (2, "b")):
        info = ask(driver, lambda p, done, s=source: p.load_adapter("x", folders[s], done))
        assert (info.name, info.version, info.rank) == ("x", version, 4)
        result = generate(driver, "x")
        assert result.token_ids == expected[source]
        assert result.meta.adapter == "x"
    assert generate(driver, "").token_ids == expected[""]
    with pytest.raises(AdapterDamaged, match="no folder of an adapter"):
        ask(driver, lambda p, done: p.load_adapter("x", "/nowhere", done))
    listed = ask(driver, lambda p, done: p.list_adapters(done))
    assert [(i.name, i.version, i.state) for i in listed] == [("x", 2, "device")]
    assert [i.name for i in port.adapters()] == ["x"]
    # a lease keeps what the adapter has computed
    prompt = list(b"A prefix of its own, held by a lane.")
    generate(driver, "x", prompt)
    driver.on_loop(lambda: port.hold("lane", prompt, "", "x"))  # type: ignore[attr-defined]
    driver.flush()
    assert generate(driver, "x", prompt).meta.cached_tokens == len(prompt) - 1
    assert generate(driver, "", prompt).meta.cached_tokens == 0
    driver.on_loop(lambda: port.release("lane"))  # type: ignore[attr-defined]
    folder = Path(folders["a"])
    files = AdapterFiles(
        config=(folder / "adapter_config.json").read_bytes(),
        weights=(folder / "adapter_model.safetensors").read_bytes(),
    )
    assert ask(driver, lambda p, done: p.load_adapter("sent", files, done)).path == ""
    assert generate(driver, "sent").token_ids == expected["a"]
    for name in ("x", "sent"):
        assert ask(driver, lambda p, done, n=name: p.unload_adapter(n, done)).name == name
        with pytest.raises(AdapterNotFound):
            generate(driver, name)
    assert port.adapters() == []


def test_adapters_outlive_the_scheduler(
    settings: dict[str, Any], folders: dict[str, str], expected: dict[str, list[int]]
) -> None:
    own = {**settings, "adapters": {"a": folders["a"], "unloaded": folders["a"]}}
    folder = Path(folders["b"])
    files = AdapterFiles(
        config=(folder / "adapter_config.json").read_bytes(),
        weights=(folder / "adapter_model.safetensors").read_bytes(),
    )
    with RemoteEngine(own, ServerSection()) as engine:
        driver = PortDriver(engine.port)
        ask(driver, lambda p, done: p.load_adapter("sent", files, done))
        ask(driver, lambda p, done: p.unload_adapter("unloaded", done))
        assert generate(driver, "sent").token_ids == expected["b"]
        os.kill(engine.port.info()["processes"]["scheduler_pid"], signal.SIGKILL)
        until(lambda: engine.health() != "")
        for name, source in (("sent", "b"), ("a", "a"), ("", "")):
            assert generate(driver, name).token_ids == expected[source]
        with pytest.raises(AdapterNotFound):
            generate(driver, "unloaded")
        listed = ask(driver, lambda p, done: p.list_adapters(done))
        assert [(i.name, i.version, i.path != "") for i in listed] == [
            ("a", 1, True),
            ("sent", 1, False),
        ]
