"""Short ways to open programs on a scripted port and to look at their events."""

from __future__ import annotations

from typing import TypeVar

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import (
    AppendText,
    Closed,
    Event,
    Generate,
    LaneContent,
    NodeFailed,
    Op,
    OpenProgram,
    ValueReady,
)
from branchline.runtime.programs.session import ProgramSession
from tests.support.scripted_port import ScriptedPort

SAMPLING = SamplingParams(temperature=0.0, max_tokens=8)
E = TypeVar("E")


class Program:
    """An open program and all it was told."""

    def __init__(
        self, executor: Executor, program_id: str = "p", *, deadline_s: float | None = None
    ) -> None:
        self.events: list[Event] = []
        self.batches: list[list[Event]] = []
        opened = OpenProgram(
            program_id=program_id, name=f"name-{program_id}", deadline_s=deadline_s
        )
        self.session: ProgramSession = executor.open(opened, self.sink)

    def sink(self, events: list[Event]) -> None:
        self.batches.append(events)
        self.events += events

    def send(self, *ops: Op) -> None:
        self.session.send(list(ops))

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def values(self) -> dict[str, str]:
        return {event.name: event.texts[0] for event in self.all(ValueReady)}

    def failures(self) -> dict[int, str]:
        return {event.node: event.error["code"] for event in self.all(NodeFailed)}

    def lane(self, lane: int) -> LaneContent:
        return [event for event in self.all(LaneContent) if event.lane == lane][-1]

    @property
    def closed(self) -> bool:
        count = len(self.all(Closed))
        assert count <= 1, "a program is closed once"
        return count == 1


def rig(port: ScriptedPort | None = None, slice_s: float = 10.0) -> tuple[ScriptedPort, Executor]:
    port = port or ScriptedPort()
    return port, Executor(port, clock=port.clock, slice_s=slice_s)


def text(node: int, content: str, lane: int = 0) -> AppendText:
    return AppendText(lane, node, (content,))


def gen(node: int, name: str, lane: int = 0, **more: object) -> Generate:
    fields: dict[str, object] = {"sampling": SAMPLING, **more}
    return Generate(lane=lane, node=node, name=name, **fields)  # type: ignore[arg-type]


def plain(port: ScriptedPort, *pieces: str) -> list[int]:
    """Ids of pieces tokenized one by one."""
    return [token for piece in pieces for token in port.tokenizer._plain(piece)]
