"""What the port says to a scheduler, and what it takes from one, without processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult, Output, RequestMeta
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError, from_wire
from branchline.runtime.ipc.messages import Abort, Started, Submit, ToScheduler
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.launch.remote_port import RemotePort
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer


class Wire:
    """A port whose loop stands still, and what it has sent."""

    def __init__(self, loop: SocketLoop) -> None:
        turns: Any = None
        self.port = RemotePort(ByteTokenizer(), turns, "m", loop, SchedulerSection())
        self.seen: list[Output] = []
        self._flush = loop.after_turn
        self._sent: list[ToScheduler] = []
        self.connect()

    def connect(self) -> None:
        self.port.connect(self, Bounds(260, 2048, 64, 64), {})  # type: ignore[arg-type]
        self.port.resume()

    def send(self, messages: list[ToScheduler]) -> None:
        """One frame, or none of it."""
        msgspec.msgpack.encode(messages)
        self._sent += messages

    def submit(self, name: str, n: int = 1) -> str:
        """The id that the request got on the wire."""
        request = GenerateRequest(id=name, prompt_ids=[1], sampling=SamplingParams(n=n))
        self.port.submit(request, self.seen.append)
        return self.submitted()

    def submitted(self) -> str:
        [sent] = [one for one in self.sent() if isinstance(one, Submit)]
        return sent.request.id

    def sent(self) -> list[ToScheduler]:
        self._flush()
        sent, self._sent = self._sent, []
        return sent

    def finish(self, wire_name: str) -> None:
        meta = RequestMeta(finish_reason="length")
        self.port.output(GenerateResult(request_id=wire_name, text="", token_ids=[], meta=meta))


@pytest.fixture
def wire() -> Iterator[Wire]:
    loop = SocketLoop("standing")
    yield Wire(loop)
    loop.close()
    loop.run()  # closed: closes its pipe and returns


def test_an_id_used_again_is_another_on_the_wire(wire: Wire) -> None:
    first = wire.submit("a")
    wire.finish(first)
    second = wire.submit("a")
    assert first != second
    wire.port.output(GenerateDelta(request_id=first, text="late"))
    wire.finish(first)
    assert [output.request_id for output in wire.seen] == ["a"]
    wire.finish(second)
    assert [output.request_id for output in wire.seen] == ["a", "a"]
    assert wire.port.unfinished == 0


def test_a_request_sent_again_is_another_on_the_wire(wire: Wire) -> None:
    first = wire.submit("a")
    wire.port.scheduler_lost(BackendError("gone"))
    wire.connect()
    second = wire.submitted()
    assert first != second
    wire.port.started(Started([first]))
    wire.port.scheduler_lost(BackendError("gone"))
    wire.connect()
    third = wire.submitted()
    assert third not in (first, second), "only the first life had begun it"
    assert wire.seen == []


def test_an_abort_names_each_sequence_that_runs(wire: Wire) -> None:
    name = wire.submit("a", n=3)
    wire.finish(f"{name}#1")
    wire.port.abort("a")
    assert wire.sent() == [Abort(name), Abort(f"{name}#2")]
    wire.port.abort("a#2")
    assert wire.sent() == [Abort(f"{name}#2")]
    wire.port.detokenizer_lost(BackendError("gone"))
    assert wire.sent() == [Abort(name), Abort(f"{name}#2")]
    assert [output.request_id for output in wire.seen] == ["a#1", "a", "a#2"]
    assert wire.port.unfinished == 0


def test_a_request_that_no_message_can_hold_ends_alone(wire: Wire) -> None:
    """The others of the same turn are sent, in their order."""
    for name, namespace in (("a", ""), ("b", "\ud800"), ("c", "")):
        sampling = SamplingParams(n=1 if name == "a" else 2)
        request = GenerateRequest(id=name, prompt_ids=[1], sampling=sampling, namespace=namespace)
        wire.port.submit(request, wire.seen.append)
    wire.port.abort("c#1")
    first, second, abort = wire.sent()
    assert isinstance(first, Submit) and first.request.id.startswith("a~")
    assert isinstance(second, Submit) and second.request.id.startswith("c~")
    assert isinstance(abort, Abort) and abort.request_id == f"{second.request.id}#1"
    assert [output.request_id for output in wire.seen] == ["b", "b#1"]
    for output in wire.seen:
        assert isinstance(output, GenerateResult) and output.error is not None
        error = from_wire(dict(output.error))
        assert isinstance(error, BackendError) and not error.retryable
    assert wire.port.unfinished == 3
