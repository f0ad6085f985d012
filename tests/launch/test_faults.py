"""Law: whatever dies, hangs or lies, every request ends once, and nobody else's output changes.

What a dead scheduler was running ends with a retryable error, as does what a dead detokenizer had
shown parts of; everything else runs as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from branchline.runtime.config.server import ServerSection
from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.outputs import EmbedResult, GenerateResult
from branchline.runtime.engine import Engine
from branchline.runtime.errors import BackendError, ModelLoadError, from_wire
from branchline.runtime.launch.remote_engine import RemoteEngine
from tests.support.port_driver import Call, PortDriver
from tests.support.waiting import until

PROMPT = list(b"Once upon a time")
pytestmark = pytest.mark.timeout(240)


@contextmanager
def running(settings: dict[str, Any], **server: Any) -> Iterator[tuple[RemoteEngine, PortDriver]]:
    """An engine of two rows at once, so that a third request waits."""
    with RemoteEngine({**settings, "max_running_requests": 2}, ServerSection(**server)) as engine:
        yield engine, PortDriver(engine.port)


def processes(engine: RemoteEngine) -> dict[str, Any]:
    found: dict[str, Any] = engine.port.info()["processes"]
    return found


def two_running_and_others_waiting(
    driver: PortDriver, at_first: Callable[[], None] = lambda: None
) -> tuple[list[Call], list[Call]]:
    """The same step takes the first two, which share no prefix that one would wait for: when
    something of the first is seen, and `at_first` is called, the second has started."""
    requests: list[EngineRequest] = [
        *(driver.request([i, *PROMPT], 1900, stream=i == 0) for i in (0, 1)),
        *(driver.request([*PROMPT, 10 + i], 12, n=1 + i % 2) for i in range(6)),
        ScoreRequest(id=driver.new_id(), prompt_ids=PROMPT, choices=[[1, 2], [3]]),
        EmbedRequest(id=driver.new_id(), prompt_ids=PROMPT, pooling="mean"),
    ]
    calls = driver.submit(*requests, at_first=at_first)
    assert calls[0].seen.wait(60)
    return calls[:2], calls[2:]


def assert_lost(calls: list[Call]) -> None:
    """Each ended with an error that says to try again."""
    for call in calls:
        final = call.result
        assert final.meta.finish_reason == "error"
        assert final.error is not None
        error = from_wire(dict(final.error))
        assert isinstance(error, BackendError) and error.retryable


def assert_as_if_nothing_had_happened(calls: list[Call], reference: Engine) -> None:
    for call in calls:
        for final in call.wait().finals.values():
            assert final.error is None
            if isinstance(final, GenerateResult):
                assert isinstance(call.request, GenerateRequest)
                wanted = call.request.sampling.max_tokens
                options = {"temperature": 0.0, "max_tokens": wanted, "ignore_eos": True}
                plain = reference.generate(call.request.prompt_ids, **options)
                assert final.token_ids == plain.token_ids
                assert final.text == plain.text
            elif isinstance(final, EmbedResult):
                assert final.embedding == reference.embed(PROMPT, pooling="mean").embedding
            else:
                scores = reference.score(PROMPT, [[1, 2], [3]])
                assert final.token_logprobs == scores.token_logprobs


def assert_all_memory_is_back(engine: RemoteEngine) -> None:
    engine.ask("flush")
    assert engine.ask("audit") == 0
    info = engine.ask("info")
    assert info["cache"]["free_tokens"] == info["cache"]["capacity_tokens"]
    assert info["cache"]["leases"] == info["scheduler"]["unfinished"] == 0


@pytest.mark.parametrize("role", ["scheduler", "detokenizer"])
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_process_that_dies_or_hangs_is_replaced(
    settings: dict[str, Any], reference: Engine, role: str, number: signal.Signals
) -> None:
    with running(settings, hang_timeout_s=4.0) as (engine, driver):
        before = processes(engine)
        begun, waiting = two_running_and_others_waiting(
            driver, lambda: os.kill(before[f"{role}_pid"], number)
        )
        assert_lost(begun if role == "scheduler" else begun[:1])
        assert engine.health() != ""
        late = driver.generate([*PROMPT, 99], 12)
        if role == "detokenizer":  # nothing of it had been delivered: it runs again
            waiting.append(begun[1])
        assert_as_if_nothing_had_happened([*waiting, late], reference)
        assert engine.health() == ""
        after = processes(engine)
        assert after["restarts"] == 1
        assert after["state"] == "ready"
        assert after["detokenizer_pid"] != before["detokenizer_pid"]
        kept = after["scheduler_pid"] == before["scheduler_pid"]
        assert kept == (role == "detokenizer"), "a detokenizer's death costs no cache"
        assert not psutil.pid_exists(before[f"{role}_pid"])
        assert_all_memory_is_back(engine)


def test_those_that_wait_for_a_scheduler_can_be_ended(settings: dict[str, Any]) -> None:
    with running(settings) as (engine, driver):
        os.kill(processes(engine)["scheduler_pid"], signal.SIGKILL)
        until(engine.health)
        ended = driver.generate(PROMPT, 12, n=2)
        late = driver.generate(PROMPT, 12, deadline=time.monotonic() + 0.2)
        partly = driver.generate(PROMPT, 12, n=2)
        driver.abort(ended.request.id)
        driver.abort(f"{partly.request.id}#1")
        assert [f.meta.finish_reason for f in ended.wait().finals.values()] == ["abort", "abort"]
        assert late.result.meta.finish_reason == "deadline"
        assert late.result.error is not None
        assert processes(engine)["state"] == "restarting", "nobody waits for the next scheduler"
        with pytest.raises(BackendError, match="no scheduler is ready"):
            engine.ask("info")
        assert partly.result.meta.finish_reason == "length"
        assert partly.finals[f"{partly.request.id}#1"].meta.finish_reason == "abort"
        assert_all_memory_is_back(engine)


@pytest.mark.slow
def test_an_engine_that_dies_too_often_is_given_up(settings: dict[str, Any]) -> None:
    failures: list[Exception] = []
    server = ServerSection(max_restarts=1)
    with RemoteEngine(settings, server, failures.append) as engine:
        driver = PortDriver(engine.port)
        for _ in range(2):
            until(lambda: engine.health() == "")
            pid = processes(engine)["scheduler_pid"]
            request = driver.request(PROMPT, 1900, stream=True)
            assert_lost(driver.submit(request, at_first=partial(os.kill, pid, signal.SIGKILL)))
        until(lambda: failures)
        assert "SIGKILL" in str(failures[0])
        assert "SIGKILL" in engine.health()
        with pytest.raises(BackendError, match="SIGKILL"):
            driver.generate(PROMPT, 2)
        assert len(failures) == 1


def test_corrupt_messages_on_every_socket_end_nothing(
    settings: dict[str, Any], reference: Engine
) -> None:
    with running(settings) as (engine, driver):
        folder = Path(engine._supervisor._births._folder)
        names = sorted(path.name for path in folder.iterdir())
        assert len(names) == 4, "each process listens once, and is listened to once"
        calls = [driver.generate([*PROMPT, i], 12, stream=True) for i in range(4)]
        with zmq.Context() as context:
            sockets = [context.socket(zmq.PUSH) for _ in names]
            for push, name in zip(sockets, names, strict=True):
                push.connect(f"ipc://{folder / name}")
                for junk in (b"", b"\xc1", b"\x91\x81\xa4type\xa6Submit", os.urandom(5000)):
                    push.send(junk)
                push.send_multipart([b"a", b"b"])
            for push in sockets:
                push.close(linger=2000)
        for name in names:  # and what does not even speak the sockets' own protocol
            _write_raw(folder / name, os.urandom(3000))
        calls += [driver.generate([*PROMPT, 10 + i], 12) for i in range(4)]
        assert_as_if_nothing_had_happened(calls, reference)
        until(lambda: processes(engine)["corrupt_messages"] >= 4 * 6)
        assert processes(engine)["restarts"] == 0
        assert_all_memory_is_back(engine)


def _write_raw(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))
        raw.sendall(data)


def test_a_reader_that_is_slow_or_breaks_holds_up_nobody(
    settings: dict[str, Any], reference: Engine
) -> None:
    with running(settings) as (engine, driver):

        class Breaking(Call):
            def on_output(self, output: Any) -> None:
                super().on_output(output)
                raise RuntimeError("this reader breaks")

        broken = Breaking(driver.request(PROMPT, 50, stream=True))
        driver.on_loop(lambda: engine.port.submit(broken.request, broken.on_output))
        driver.on_loop(lambda: time.sleep(0.5))  # the whole loop stands still for a while
        other = driver.generate([*PROMPT, 5], 12, stream=True)
        assert len(broken.result.token_ids) == 50
        assert_as_if_nothing_had_happened([other], reference)


def test_a_model_that_cannot_be_loaded_is_the_error_of_the_start(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(settings["model"], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "rope_scaling": {"type": "odd"}}))
    with pytest.raises(ModelLoadError, match="odd"):
        RemoteEngine({**settings, "model": str(broken)}).start()
    # Nothing but weights is missing, so that only the scheduler's process can notice.
    shutil.copytree(settings["model"], tmp_path / "empty")
    engine = RemoteEngine({**settings, "model": str(tmp_path / "empty"), "load_format": "auto"})
    with pytest.raises(ModelLoadError):
        engine.start()
    assert not _children()
    assert not engine._supervisor._births._folder.exists()


def _children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "branchline.runtime.launch" in " ".join(_words(one))]


def _words(process: psutil.Process) -> list[str]:
    """Of its command line; none where it has just ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_closing_ends_requests_processes_and_sockets(settings: dict[str, Any]) -> None:
    with running(settings) as (engine, driver):
        begun, waiting = two_running_and_others_waiting(driver)
        folder = engine._supervisor._births._folder
        pids = [processes(engine)[f"{role}_pid"] for role in ("scheduler", "detokenizer")]
        assert folder.stat().st_mode & 0o077 == 0
    for call in (*begun, *waiting):
        for final in call.wait().finals.values():
            assert final.error is not None and "closed" in final.error["message"]  # type: ignore[operator]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not folder.exists()
    with pytest.raises(BackendError):
        engine.port.call_soon(lambda: None)
    engine.close()


PARENT = """
    import os, sys, json, time
    from branchline.runtime.launch.remote_engine import RemoteEngine
    engine = RemoteEngine(json.loads(sys.argv[1]))
    engine.start()
    print(json.dumps(engine.port.info()["processes"]), "torch" in sys.modules, flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_its_parent_and_the_parent_loads_no_torch(
    settings: dict[str, Any],
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), json.dumps(settings)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    line = parent.stdout.readline()
    found = json.loads(line[: line.index("}") + 1])
    assert line.split()[-1] == "False"
    pids = [found["scheduler_pid"], found["detokenizer_pid"]]
    assert all(psutil.pid_exists(pid) for pid in pids)
    # The detokenizer may not run at that moment: the kernel ends it, not its own watching.
    os.kill(found["detokenizer_pid"], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone(pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    until(lambda: all(gone(pid) for pid in pids), 20)
