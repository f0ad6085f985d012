"""`bl.Endpoint` sends adapters to its server, and meets the errors of the engine there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchline as bl
from branchline.lang.errors import (
    AdapterDamaged,
    AdapterInUse,
    AdapterNotFound,
    AdapterTooLarge,
    BackendError,
)
from branchline.runtime.core.adapters import AdapterFiles
from branchline.runtime.loading.adapters import adapter_folder
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys
from tests.support.adapter_port import AdaptedEngine
from tests.support.http_server import RunningServer, serve


@bl.function(adapter="sql")
def ask(s: bl.State) -> None:
    s += "q" + bl.gen("x")


@pytest.fixture
def engine() -> AdaptedEngine:
    return AdaptedEngine(latency_s=0.2)


@pytest.fixture
def server(engine: AdaptedEngine) -> Iterator[RunningServer]:
    keys = Keys((), ("key",))
    context = make_context(engine, engine.tokenizer, model_names=("m",), keys=keys)  # type: ignore[arg-type]
    with serve(context) as running:
        yield running


@pytest.fixture
def endpoint(server: RunningServer) -> Iterator[bl.Endpoint]:
    made = bl.Endpoint(server.url, "key")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_bytes(b'{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w" * (3 << 20))
    return str(tmp_path)


def test_a_folder_of_this_machine_is_sent_named_replaced_and_forgotten(
    endpoint: bl.Endpoint, engine: AdaptedEngine, folder: str
) -> None:
    with pytest.raises(AdapterNotFound):
        ask.run(backend=endpoint)
    info = endpoint.load_adapter("sql", folder, pin=True)
    assert (info.name, info.version, info.pinned) == ("sql", 1, True)
    assert engine.sources == [AdapterFiles(config=b'{"r": 8}', weights=b"w" * (3 << 20))]
    assert ask.run(backend=endpoint).meta("x").adapter == "sql"
    assert endpoint.load_adapter("sql", folder).version == 2
    assert [(one.name, one.version) for one in endpoint.adapters()] == [("sql", 2)]
    assert endpoint.unload_adapter("sql").version == 2
    assert endpoint.adapters() == []
    with pytest.raises(AdapterNotFound, match="sql"):
        endpoint.unload_adapter("sql")


def test_what_is_wrong_with_it_is_the_engines_own_error(
    endpoint: bl.Endpoint, engine: AdaptedEngine, folder: str
) -> None:
    engine.failures = {"sql": AdapterTooLarge("rank 512 is too much", hint="Raise it.")}
    with pytest.raises(AdapterTooLarge, match=r"rank 512 is too much\. Raise it\.") as caught:
        endpoint.load_adapter("sql", folder)
    assert str(caught.value).count("Raise it.") == 1
    with pytest.raises(AdapterDamaged, match=r"/none' is no folder.*smollm2-135m-sql"):
        endpoint.load_adapter("sql", folder + "/none")
    (Path(folder) / "adapter_config.json").unlink()
    with pytest.raises(AdapterDamaged, match=r"adapter_config\.json"):
        endpoint.load_adapter("sql", folder)
    assert len(engine.sources) == 1


def test_one_of_the_package_is_sent_by_its_name_and_a_path_may_be_a_path(
    endpoint: bl.Endpoint, engine: AdaptedEngine, folder: str
) -> None:
    endpoint.load_adapter("sql", "smollm2-135m-sql")
    endpoint.load_adapter("sql", adapter_folder("smollm2-135m-sql"))
    first, second = engine.sources
    assert isinstance(first, AdapterFiles) and first == second and len(first.weights) > 1 << 20


def test_one_that_is_used_stays_unless_it_is_drained(
    endpoint: bl.Endpoint, engine: AdaptedEngine, folder: str
) -> None:
    endpoint.load_adapter("sql", folder)

    @bl.function(adapter="sql")
    def program(s: bl.State) -> tuple[bool, int]:
        s += "q" + bl.gen("x")
        refused = False
        while not engine.requests:
            pass
        try:
            endpoint.unload_adapter("sql")
        except AdapterInUse:
            refused = True
        return refused, endpoint.unload_adapter("sql", drain=True).version

    state = program.run(backend=endpoint)
    assert state.result == (True, 1) and state["x"] == "a"
    assert engine.adapters() == []


def test_without_the_admins_key_nothing_changes(
    server: RunningServer, engine: AdaptedEngine, folder: str
) -> None:
    stranger = bl.Endpoint(server.url)
    with pytest.raises(BackendError, match="for admins"):
        stranger.load_adapter("sql", folder)
    assert stranger.adapters() == [] and not engine.sources
    stranger.close()
