"""Adapters in the executor: all requests of a node are its adapter's, and so is a lane's lease."""

from __future__ import annotations

from collections.abc import Callable

from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import AdapterNotFound, from_wire
from branchline.runtime.programs.protocol import Close, Fork, ReadLane, Select
from tests.programs.helpers import Program, gen, rig, text
from tests.support.scripted_port import ScriptedPort

DIGITS = Constraint(kind="regex", text="[0-9]+")


def test_each_node_names_its_own_adapter() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", adapter="sql"), gen(2, "y"), Fork(0, 3, (1, 2)))
    program.send(gen(4, "z", lane=1, adapter="json"), gen(5, "w", lane=2, adapter="sql"), Close())
    port.run()
    assert {r.name: r.adapter for r in port.requests} == {
        "x": "sql", "y": "", "z": "json", "w": "sql",
    }  # fmt: skip


def test_all_requests_of_a_select_are_its_adapters() -> None:
    port, executor = rig(ScriptedPort(lambda request: "12"))
    program = Program(executor)
    program.send(
        text(0, "q"),
        Select(
            lane=0,
            node=1,
            name="x",
            choices=("a number", "none"),
            constraints=(DIGITS, None),
            method="unconditional_likelihood_normalized",
            adapter="sql",
        ),
        Close(),
    )
    port.run()
    assert program.values() and len(port.requests) == 3  # written, scored, scored alone
    assert {request.adapter for request in port.requests} == {"sql"}


def test_a_lane_keeps_what_its_last_adapter_has_computed() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", adapter="sql"))
    port.run()
    assert list(port.lease_adapters.values()) == ["sql"]
    program.send(gen(2, "y"))
    port.run()
    assert list(port.lease_adapters.values()) == [""]
    program.send(ReadLane(0, 3), Close())
    port.run()
    assert program.closed and not port.leases


class Knows(ScriptedPort):
    """Refuses adapters that it does not have."""

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        if request.adapter not in ("", "sql"):
            raise AdapterNotFound("no such adapter", value=request.adapter)
        super().submit(request, on_output)


def test_an_adapter_that_is_refused_fails_its_lane_and_frees_it() -> None:
    port, executor = rig(Knows())
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "x", lane=1, adapter="sequel"))
    program.send(gen(3, "y", lane=2, adapter="sql"))
    program.send(Select(lane=1, node=4, name="z", choices=("a",), adapter="sql"), Close())
    port.run()
    assert program.failures() == {2: "AdapterNotFound", 4: "AdapterNotFound"}
    assert program.values() == {"y": "<y>"} and program.closed
    assert not port.leases and not port.running


def test_the_error_crosses_a_socket_as_itself() -> None:
    error = AdapterNotFound("no such adapter", value="sequel", hint="It has sql.")
    copy = from_wire(error.to_wire())
    assert type(copy) is AdapterNotFound and str(copy) == str(error)
