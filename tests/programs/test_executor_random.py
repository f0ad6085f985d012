"""Random programs, random order of answers, random failures and cancels: what always holds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.programs.protocol import (
    AppendText,
    Cancel,
    Close,
    Drop,
    Fork,
    Generate,
    Join,
    JoinReady,
    NodeFailed,
    Op,
    ReadLane,
    ValueReady,
    VarRef,
)
from tests.programs.helpers import Program, gen, rig
from tests.support.scripted_port import ScriptedPort


@dataclass
class Model:
    """What a lane must hold, worked out op by op with no executor."""

    pieces: list[str] = field(default_factory=list)
    open: str = ""
    own: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    failed: bool = False
    dead: bool = False

    def settle(self) -> None:
        if self.open:
            self.pieces.append(self.open)
        self.open = ""


class Writer:
    """Writes a random program together with the model of each of its lanes."""

    def __init__(self, rng: random.Random, failing: bool) -> None:
        self.rng = rng
        self.failing = failing
        self.ops: list[Op] = []
        self.lanes: dict[int, Model] = {0: Model()}
        self.waited: set[int] = set()
        self.node = 0

    def write(self, length: int) -> None:
        kinds = ["text", "text", "gen", "fork", "join", "ref"]
        for _ in range(length):
            lane = self.rng.choice([k for k, m in self.lanes.items() if not m.dead])
            getattr(self, f"_{self.rng.choice(kinds)}")(lane, self.lanes[lane])
            self.node += 1

    def _text(self, lane: int, model: Model) -> None:
        content = self.rng.choice(["a", "bc", "def", " ", "gh1", ""])
        self.ops.append(AppendText(lane, self.node, (content,)))
        model.open += content

    def _gen(self, lane: int, model: Model) -> None:
        name = self.rng.choice(["x", "y", "bad"] if self.failing else ["x", "y"])
        self.ops.append(gen(self.node, name, lane))
        self.waited.add(self.node)
        model.settle()
        model.failed = model.failed or name == "bad"
        if not model.failed:
            if not model.pieces:
                model.pieces.append("")
                model.own += 1
            answer = f"{name}{self.node}"
            model.pieces.append(answer)
            model.variables[name] = answer

    def _ref(self, lane: int, model: Model) -> None:
        other = self.rng.choice([k for k, m in self.lanes.items() if not m.dead])
        known = self.lanes[other].variables
        if not known or self.lanes[other].failed:
            return
        name = self.rng.choice(sorted(known))
        self.ops.append(AppendText(lane, self.node, ("[", VarRef(name, other), "]")))
        model.open += f"[{known[name]}]"

    def _fork(self, lane: int, model: Model) -> None:
        if len(self.lanes) > 12:
            return
        model.settle()
        children = tuple(len(self.lanes) + i for i in range(self.rng.choice([1, 2])))
        self.ops.append(Fork(lane, self.node, children))
        for child in children:
            self.lanes[child] = Model(
                list(model.pieces), "", len(model.pieces), dict(model.variables), model.failed
            )

    def _join(self, lane: int, model: Model) -> None:
        others = [k for k, m in self.lanes.items() if k != lane and not m.dead]
        if not others:
            return
        children = tuple(self.rng.sample(others, min(2, len(others))))
        mode = self.rng.choice(["gather", "append"])
        self.ops.append(Join(lane, self.node, children, mode))  # type: ignore[arg-type]
        self.waited.add(self.node)
        model.settle()
        for child in children:
            branch = self.lanes[child]
            branch.settle()
            if mode == "append":
                model.failed = model.failed or branch.failed
                model.pieces += branch.pieces[branch.own :]


def reply(request: GenerateRequest) -> str | BranchlineError:
    if request.name == "bad":
        return BackendError("bad")
    return request.name + request.id.rpartition("/")[2]


def drive(port: ScriptedPort, program: Program, ops: list[Op], rng: random.Random) -> None:
    """Send ops in random bursts while requests finish in random order."""
    rest = list(ops)
    while rest or port.running:
        if rest and (not port.running or rng.random() < 0.5):
            size = rng.randint(1, 5)
            program.send(*rest[:size])
            del rest[:size]
        elif port.running:
            port.finish(rng.choice(sorted(port.running)))
        if rng.random() < 0.7:
            port.pump()
        if not rest:
            port.pump()


def answered(program: Program) -> list[int]:
    return [e.node for e in program.events if isinstance(e, (ValueReady, NodeFailed, JoinReady))]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(1, 40), st.booleans())
def test_lanes_hold_what_a_simple_model_says(seed: int, length: int, failing: bool) -> None:
    rng = random.Random(seed)
    writer = Writer(rng, failing)
    writer.write(length)
    reads: list[Op] = [ReadLane(lane, 1000 + lane) for lane in writer.lanes]
    port, executor = rig(ScriptedPort(reply))
    program = Program(executor)
    drive(port, program, [*writer.ops, *reads, Close()], rng)
    assert program.closed and port.running == {} and port.leases == {}
    assert executor.stats().programs_open == 0
    assert sorted(answered(program)) == sorted(writer.waited)
    for lane, model in writer.lanes.items():
        model.settle()
        assert (lane in {e.lane for e in program.all(NodeFailed)}) <= model.failed
        if not model.failed:
            expected: list[int] = []
            for piece in model.pieces:
                expected += port.tokenizer._plain(piece) if piece or expected else [2]
            held = list(program.lane(lane).token_ids)
            assert program.lane(lane).text == "".join(model.pieces)
            assert _without_start(held) == _without_start(expected)


def _without_start(ids: list[int]) -> list[int]:
    return [token for token in ids if token != 2]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(1, 40))
def test_whatever_is_cancelled_or_dropped_everything_ends(seed: int, length: int) -> None:
    rng = random.Random(seed)
    writer = Writer(rng, True)
    for _ in range(length):
        writer.write(1)
        if rng.random() < 0.2:
            lane = rng.choice(sorted(writer.lanes))
            writer.ops.append(Cancel((lane,)) if rng.random() < 0.5 else Drop((lane,)))
    port, executor = rig(ScriptedPort(reply, sync=rng.random() < 0.2))
    program = Program(executor)
    drive(port, program, [*writer.ops, Close()], rng)
    assert program.closed and port.running == {} and port.leases == {}
    waited = {op.node for op in writer.ops if isinstance(op, (Generate, Join))}
    nodes = answered(program)
    assert set(nodes) >= waited
    assert len([node for node in nodes if node in waited]) == len(waited)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(1, 30))
def test_abandoned_at_any_moment_nothing_is_left(seed: int, length: int) -> None:
    rng = random.Random(seed)
    writer = Writer(rng, True)
    writer.write(length)
    port, executor = rig(ScriptedPort(reply))
    program = Program(executor)
    cut = rng.randint(0, len(writer.ops))
    drive_some = writer.ops[:cut]
    while drive_some:
        program.send(*drive_some[:3])
        del drive_some[:3]
        if port.running and rng.random() < 0.5:
            port.finish(rng.choice(sorted(port.running)))
        port.pump()
    program.session.abandon()
    seen = len(program.events)
    program.send(*writer.ops[cut:], Close())
    port.pump()
    assert all(running.aborted for running in port.running.values())
    assert port.leases == {} and executor.stats().programs_open == 0
    port.run()
    assert len(program.events) == seen and port.leases == {}
