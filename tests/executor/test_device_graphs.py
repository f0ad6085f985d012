"""Which recording a step replays; when recording fails the reason is told and the others stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from branchline.kernels.ops import AttentionMeta
from branchline.runtime.attention.base import OpsPlan
from branchline.runtime.attention.cpu import CpuAttention
from branchline.runtime.core.batch import ForwardMode, ScheduleBatch, TreeMask
from branchline.runtime.executor.device_graphs import (
    FEWEST_TRUNK_ROWS,
    DeviceGraphs,
    Outputs,
    decode_sizes,
    idle_step,
    planned_shapes,
    trunk_sizes,
    verify_shapes,
)
from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.plan_buffers import PlanBuffers, StepShape
from branchline.runtime.executor.recorder import Recorder

SHAPE = StepShape(2, 2, 2, decode=True)


class Recording:
    """As a CUDA graph: one that was broken off cannot be ended."""

    broken = False
    end_error: Exception | None = None

    def capture_begin(self, **options: object) -> None:
        Recording.broken = False

    def capture_end(self) -> None:
        if Recording.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        if Recording.end_error is not None:
            raise Recording.end_error

    def replay(self) -> None:
        pass


class Forward:
    """Fails from the call on that `fails` says, `times` times."""

    def __init__(self, fails: int, error: Exception | None = None, times: int = 9) -> None:
        self.calls, self._error = 0, error
        self._failing = range(fails, fails + times)

    def __call__(self, *operands: object) -> Outputs:
        self.calls += 1
        if self.calls in self._failing and self._error is not None:
            Recording.broken = True
            raise self._error
        return Outputs(logits=torch.full((2, 3), float(self.calls)))


def graphs(forward: Callable[..., Outputs], device: torch.device) -> DeviceGraphs:
    tables = DeviceTables(2, 8, 8, device)
    stream = DeviceStream(device)
    buffers = PlanBuffers(tables, tokens=8, rows=4, samples=4, tree_words=0, stream=stream)
    return DeviceGraphs(buffers, CpuAttention(), forward, stream, Recorder(stream))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.CUDAGraph", Recording)
    monkeypatch.setattr(Recording, "end_error", None)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ValueError])
def test_a_forward_that_fails_while_it_is_recorded_says_why(kind: type[Exception]) -> None:
    made = graphs(Forward(4, kind("no more")), torch.device("cpu"))
    made._recorder._pool = (0, 0)
    made.record(SHAPE)
    with pytest.raises(kind, match="no more") as raised:
        made.record(StepShape(1, 1, 1, decode=True))
    assert "previous error" in raised.value.__notes__[0]
    assert made.count == 1
    graph = made.find(idle_step(SHAPE))
    assert graph is None or graph.tensors.shape == SHAPE


@pytest.mark.usefixtures("recorded")
def test_a_recording_that_cannot_be_made_ready_for_want_of_memory_is_told_as_such() -> None:
    made = graphs(Forward(0), torch.device("cpu"))
    made._recorder._pool = (0, 0)
    Recording.end_error = RuntimeError("CUDA error: out of memory")
    with pytest.raises(torch.OutOfMemoryError, match="recording: CUDA error"):
        made.record(SHAPE)
    Recording.end_error = RuntimeError("CUDA error: something else")
    with pytest.raises(RuntimeError, match="something else"):
        made.record(SHAPE)
    assert made.count == 0


@pytest.mark.usefixtures("recorded")
def test_memory_that_torch_has_in_store_is_given_to_the_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freed = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(True))
    made = graphs(Forward(2, torch.OutOfMemoryError("no more"), times=1), torch.device("cpu"))
    made._recorder._pool = (0, 0)
    made.record(SHAPE)
    assert made.count == len(freed) == 1


@pytest.mark.gpu
def test_on_a_device_a_failed_recording_leaves_the_others_usable() -> None:
    device = torch.device("cuda")
    source = torch.ones(4, device=device)

    class Queued(Forward):
        def __call__(self, *operands: object) -> Outputs:
            source.add_(1.0)
            return super().__call__()

    made = graphs(Queued(4, torch.OutOfMemoryError("no more")), device)
    made.record(SHAPE)
    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        made.record(StepShape(1, 1, 1, decode=True))
    before = source[0].item()
    graph = made.find(decoding(2, trunks=False))
    assert graph is not None
    graph.replay()
    torch.cuda.synchronize()
    assert source[0].item() == before + 1.0


def decoding(rows: int, *, trunks: bool) -> ScheduleBatch:
    plan = idle_step(SHAPE)
    plan.mode, plan.trunks = ForwardMode.DECODE, trunks
    plan.rows = np.arange(rows, dtype=np.int32)
    return plan


def test_rows_that_may_share_trunks_are_replayed_where_trunks_are_looked_for() -> None:
    forward = Forward(0)
    tables = DeviceTables(40, 8, 8, torch.device("cpu"))
    stream = DeviceStream(torch.device("cpu"))
    buffers = PlanBuffers(tables, tokens=48, rows=48, samples=48, tree_words=0, stream=stream)
    asked: list[bool] = []

    class Asked(CpuAttention):
        def init_graph(
            self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
        ) -> OpsPlan:
            asked.append(trunks)
            return super().init_graph(meta, trunks=trunks, planned=planned)

    made = DeviceGraphs(buffers, Asked(), forward, stream, Recorder(stream))
    for rows, trunks in ((40, False), (24, True), (16, False), (8, True), (4, False)):
        made.record(StepShape(rows, rows, rows, decode=True, trunks=trunks))
    assert asked == [False, True, False, True, False] and made.count == 5

    def found(rows: int, *, trunks: bool) -> tuple[int, bool]:
        graph = made.find(decoding(rows, trunks=trunks))
        assert graph is not None
        return graph.tensors.shape.rows, graph.tensors.shape.trunks

    assert found(9, trunks=True) == (24, True)
    assert found(9, trunks=False) == (16, False)
    assert found(5, trunks=True) == (8, True)
    # too few to gain by it, or more than were recorded before memory ended
    assert found(4, trunks=True) == (4, False)
    assert found(30, trunks=True) == (40, False)
    assert made.find(decoding(41, trunks=True)) is None


def extending(lens: list[tuple[int, int]]) -> ScheduleBatch:
    """A step of rows of (seq_len, extend_len)."""
    plan = idle_step(SHAPE)
    plan.mode = ForwardMode.EXTEND
    plan.rows = np.arange(len(lens), dtype=np.int32)
    plan.seq_lens, plan.extend_lens = np.array(lens, dtype=np.int32).T
    plan.input_ids = np.zeros(int(plan.extend_lens.sum()), dtype=np.int32)
    return plan


def test_long_steps_over_long_contexts_replay_attention_that_is_planned() -> None:
    tables = DeviceTables(20, 4096, 4096, torch.device("cpu"))
    stream = DeviceStream(torch.device("cpu"))
    sizes = {"tokens": 8192, "rows": 16, "samples": 64, "tree_words": 64}
    buffers = PlanBuffers(tables, **sizes, stream=stream)

    class Planning(CpuAttention):
        most_planned_keys = 20_000

    def recorded(attention: CpuAttention) -> Callable[..., tuple[int, int, bool] | None]:
        made = DeviceGraphs(buffers, attention, Forward(0), stream, Recorder(stream))
        for tokens in (1024, 2048, 4096):
            made.record(StepShape(tokens, 9, tokens))
        for shape in planned_shapes(4096, 8192, 11):
            made.record(shape)

        def found(*lens: tuple[int, int]) -> tuple[int, int, bool] | None:
            graph = made.find(extending(list(lens)))
            shape = None if graph is None else graph.tensors.shape
            return None if shape is None else (shape.tokens, shape.rows, shape.planned)

        return found

    found = recorded(Planning())
    assert found((1000, 1000)) == (1024, 9, False), "short: planning takes longer than it gains"
    assert found(*[(400, 400)] * 4) == (2048, 9, False), "short contexts"
    assert found((1600, 1600)) == (2048, 8, True)
    assert found(*[(900, 200)] * 8) == (2048, 12, True)
    assert found((3100, 3100)) == (4096, 8, True), "whatever the padding, as the host is spared"
    assert found(*[(500, 500)] * 10) is None, "too much padding for its size, however short"
    assert found((5300, 5300)) is None and found((5400, 5400)) == (6144, 8, True)
    assert found((7100, 7100)) is None and found((7200, 7200)) == (8192, 8, True)
    assert found(*[(820, 820)] * 10) is None, "more than a full step"
    assert found((9000, 1500), (11_000, 500)) is None, "more keys than there is room for"

    alike = recorded(CpuAttention())
    assert alike((3100, 3100)) == (4096, 9, False), "nothing is gained by planning"
    assert alike((7200, 7200)) is None


@pytest.mark.parametrize("most", [1, 4, 5, 8, 9, 31, 100, 256, 300])
def test_sizes_of_shared_trunks_hold_every_step_that_gains(most: int) -> None:
    sizes = trunk_sizes(most)
    assert sizes == sorted(set(sizes))
    assert bool(sizes) == (most > FEWEST_TRUNK_ROWS)
    assert not sizes or sizes[-1] == decode_sizes(most)[-1]


def checking(lens: list[int], logits: int) -> ScheduleBatch:
    """A step of rows with candidates, of whose tokens the last ones are sampled."""
    plan = idle_step(SHAPE)
    plan.mode = ForwardMode.VERIFY
    plan.rows = np.arange(len(lens), dtype=np.int32)
    plan.extend_lens = plan.seq_lens = np.array(lens, dtype=np.int32)
    plan.input_ids = np.zeros(sum(lens), dtype=np.int32)
    plan.logit_idx = np.arange(sum(lens) - logits, sum(lens), dtype=np.int32)
    plan.sample_idx = np.arange(logits, dtype=np.int32)
    none = np.zeros(len(lens), dtype=np.int32)
    plan.tree = TreeMask(none, none, np.zeros(0, dtype=np.uint64))
    return plan


def test_steps_that_check_guesses_are_replayed_with_the_choice() -> None:
    tables = DeviceTables(20, 64, 64, torch.device("cpu"))
    stream = DeviceStream(torch.device("cpu"))
    sizes = {"tokens": 64, "rows": 24, "samples": 64, "tree_words": 64}
    buffers = PlanBuffers(tables, **sizes, stream=stream)
    made = DeviceGraphs(buffers, CpuAttention(), Forward(0), stream, Recorder(stream))
    for shape in (*verify_shapes(32, 16), StepShape(64, 17, 64, tree=True)):
        made.record(shape)

    def found(plan: ScheduleBatch) -> tuple[int, int, bool] | None:
        graph = made.find(plan)
        if graph is None:
            return None
        shape = graph.tensors.shape
        return shape.tokens, shape.rows, shape.verify

    assert found(checking([5], 5)) == (8, 2, True)
    assert found(checking([9], 9)) == (16, 2, True)
    assert found(checking([8, 8], 16)) == (16, 5, True)
    assert found(checking([2] * 16, 32)) == (32, 17, True)
    assert found(checking([33], 33)) == (64, 17, False), "larger than what is recorded with it"
    assert found(checking([30], 3)) == (64, 17, False), "most tokens need no logits"
    scored = checking([5], 5)
    scored.sample_idx = scored.sample_idx[:1]
    assert found(scored) == (64, 17, False), "not every logit row is sampled"
