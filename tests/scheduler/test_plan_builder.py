"""What a plan keeps from the step before, and what it says of its rows' slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.kernels.triton.attention import SHORTEST_TRUNK as SHORTEST_FOUND
from branchline.runtime.core.batch import SHORTEST_TRUNK
from branchline.runtime.core.drafting import StepDrafter
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.memory.slot_table import SlotTable
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.plan_builder import PlanBuilder, Segment


def request(temperature: float, row: int = 0, length: int = 1) -> Request:
    sampling = SamplingParams(temperature=temperature)
    return Request(
        id="r",
        ids=np.zeros(length, dtype=np.int32),
        prompt_len=length,
        length=length,
        sampled_len=length,
        max_len=length + 8,
        sampling=sampling,
        source=GenerateRequest(id="r", prompt_ids=[0], sampling=sampling),
        row=row,
    )


def test_a_request_at_the_address_of_one_that_is_gone_is_sampled_by_its_own_choices() -> None:
    builder = PlanBuilder(SlotTable(1, 9, 1), lambda request: ())

    def temperature(one: Request) -> float:
        batch = builder.build([Segment(one, 0, 1, True)], []).batch
        assert batch.sampling is not None
        return 1.0 / float(batch.sampling.inv_temperature[0])

    for step in range(1, 200):  # each may take the place of the one before
        assert temperature(request(step / 100)) == pytest.approx(step / 100, rel=1e-5)


def test_steady_decoding_keeps_its_sampling_batch() -> None:
    builder = PlanBuilder(SlotTable(1, 9, 1), lambda request: ())
    one = request(0.5)
    first = builder.build([Segment(one, 0, 1, True)], []).batch.sampling
    assert builder.build([Segment(one, 0, 1, True)], []).batch.sampling is first


@pytest.mark.parametrize("starts", [(0, 5), (7, 1), (3, 8, 0)])
@pytest.mark.parametrize("prompt", [0, 4])
def test_linked_plans_name_the_slot_before_each_token(starts: tuple[int, ...], prompt: int) -> None:
    """Of decoding rows and of prompts beside them; a row's first token has none before it."""
    table = SlotTable(4, 12, 1)
    table.array[:] = np.arange(48, dtype=np.int32).reshape(table.array.shape) + 1
    rows = [request(0.0, row, start + 1) for row, start in enumerate(starts)]
    segments = [Segment(one, start, 1, True) for one, start in zip(rows, starts, strict=True)]
    if prompt:
        segments.append(Segment(request(0.0, 3, prompt), 0, prompt, True))
    plan = PlanBuilder(table, lambda request: (), linked=True).build(segments, [])
    expected = [
        0 if position == 0 else int(table.array[one.request.row, position - 1])
        for one in segments
        for position in range(one.start, one.start + one.count)
    ]
    assert plan.batch.previous is not None
    assert plan.batch.previous.tolist() == expected
    assert plan.batch.out_slots.tolist() == [
        int(table.array[one.request.row, position])
        for one in segments
        for position in range(one.start, one.start + one.count)
    ]


@pytest.mark.parametrize(
    ("shared", "lengths", "told"),
    [
        (SHORTEST_TRUNK, (400, 400, 400), True),
        (SHORTEST_TRUNK, (SHORTEST_TRUNK + 1,) * 3, True),
        # a short row between two that share hides nothing
        (SHORTEST_TRUNK, (400, 9, 400), True),
        (SHORTEST_TRUNK, (400, 9, 9), False),
        (SHORTEST_TRUNK - 1, (400, 400, 400), False),
        (0, (400, 400, 400), False),
        (9, (9, 9, 9), False),
    ],
)
def test_a_decoding_step_says_whether_neighbours_share_a_trunk(
    shared: int, lengths: tuple[int, ...], told: bool
) -> None:
    """Whatever the device's search finds must have been told of."""
    assert SHORTEST_TRUNK <= SHORTEST_FOUND
    table = SlotTable(4, 500, 1)
    for row, length in enumerate(lengths):
        own = np.arange(length, dtype=np.int32) + np.int32(1000 * (row + 1))
        own[:shared] = np.arange(min(shared, length))
        table.write(row, 0, own)
    builder = PlanBuilder(table, lambda request: ())
    segments = [
        Segment(request(0.5, row, length), length - 1, 1, True)
        for row, length in enumerate(lengths)
    ]
    assert builder.build(segments, []).batch.trunks is told
    assert builder.build(segments[:1], []).batch.trunks is False


KINDS = ("decoding", "decoding ahead", "chunk", "last chunk", "scored prompt", "read states")


def segment_of(kind: str, row: int, start: int, count: int) -> Segment:
    """Over a row of 9 tokens; `ahead` is behind what is known."""
    one = request(0.5, row, 9)
    if kind == "decoding":
        return Segment(one, start, 1, True)
    if kind == "decoding ahead":
        return Segment(one, 9, 1, True)
    if kind == "scored prompt":
        ends = start % 2 == 0  # only a prompt's end is sampled
        return Segment(one, 9 - count if ends else start, count, ends, score_prompt=True)
    hidden = count if kind == "read states" else 0
    return Segment(one, start, count, kind == "last chunk", hidden=hidden)


@settings(deadline=None, max_examples=80)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_a_mixed_step_is_its_segments_one_after_the_other(
    parts: list[tuple[str, int, int]],
) -> None:
    """Whatever stands beside a segment, its tokens, reads and samples are those it has alone;
    rows that only decode come first."""
    table = SlotTable(8, 16, 1)
    for row in range(8):
        table.write(row, 0, np.arange(16, dtype=np.int32) + np.int32(100 * row))
    builder = PlanBuilder(table, lambda request: ())
    segments = [segment_of(kind, row, *at) for row, (kind, *at) in enumerate(parts)]
    plan = builder.build(segments, [])
    whole, given = plan.batch, segments
    segments = plan.segments
    assert segments == sorted(given, key=lambda s: not s.plain)
    alone = [builder.build([segment], []).batch for segment in segments]
    tokens = np.cumsum([0] + [one.num_tokens for one in alone])
    logits = np.cumsum([0] + [len(one.logit_idx) for one in alone])

    def joined(name: str, offsets: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
        pieces = [getattr(one, name) + offsets[i] for i, one in enumerate(alone)]
        return [int(x) for piece in pieces for x in piece]

    nothing = np.zeros(len(alone), dtype=np.int64)
    for name in ("rows", "seq_lens", "extend_lens", "input_ids", "positions", "out_slots"):
        assert getattr(whole, name).tolist() == joined(name, nothing)
    assert whole.extend_start.tolist() == tokens.tolist()
    assert whole.logit_idx.tolist() == joined("logit_idx", tokens)
    assert whole.sample_idx.tolist() == joined("sample_idx", logits)
    assert whole.sample_rows.tolist() == [i for i, s in enumerate(segments) if s.sample]
    reads = [(one.score, i) for i, one in enumerate(alone) if one.score is not None]
    found = [] if whole.score is None else whole.score.logit_rows.tolist()
    assert found == [int(x + logits[i]) for score, i in reads for x in score.logit_rows]
    states = [(one.hidden_rows, i) for i, one in enumerate(alone) if one.hidden_rows is not None]
    found = [] if whole.hidden_rows is None else whole.hidden_rows.tolist()
    assert found == [int(x + logits[i]) for rows, i in states for x in rows]


class Going:
    """Rows that guess and go on where the step before ends, planned step by step."""

    def __init__(self, rows: int) -> None:
        self.table = SlotTable(rows, 64, 1)
        self.table.record_changes()
        self.requests = [request(0.0, row, 9) for row in range(rows)]
        for one in self.requests:
            one.row = self.table.allocate() or 0
            one.max_len, one.planned_len, one.sampled_len = 60, 9, 10  # the last id is on its way
            self.table.append_pages(one.row, np.arange(40, dtype=np.int32) + 100 * one.row)
        limits = {"eos_ids": frozenset[int](), "max_nodes": 7, "max_depth": 4}
        self._drafts = Drafts(StepDrafter(4), vocab_size=50, **limits)  # type: ignore[arg-type]

    def segments(self, nodes: int, *, follows: bool = True) -> list[Segment]:
        """Of the next step, with so many guesses for each row."""
        growth = dict.fromkeys(self.requests, 5 if follows else 0)
        rows = [(one, nodes) for one in self.requests]
        made = self._drafts.reserve(rows, growth)
        found = [Segment(one, one.planned_len, 1, True, draft=made[one]) for one in self.requests]
        for one in self.requests:
            one.planned_len, one.sampled_len = one.planned_len + 1, one.sampled_len + 1
        return found


def test_rows_that_merely_go_on_are_told_of_once() -> None:
    """And of new slots; of everything again when anything else has been between."""
    going = Going(2)
    builder = PlanBuilder(going.table, lambda request: (), linked=True)
    begin = builder.build(going.segments(7, follows=False), []).batch
    first = builder.build(going.segments(7), []).batch
    assert not begin.repeats and not first.repeats
    plan = builder.build(segments := going.segments(7), [])
    again = plan.batch
    assert again.repeats and again.slot_writes is None
    assert plan.segments == segments and plan.guesses == 14 and plan.steady
    assert builder.build(going.segments(7), []).batch is again
    going.table.append_pages(1, np.arange(3, dtype=np.int32) + 7)
    grown = builder.build(going.segments(7), []).batch
    assert grown.repeats and grown.slot_writes is not None
    assert grown.slot_writes.slots.tolist() == [7, 8, 9]
    assert builder.build(going.segments(7), []).batch.slot_writes is None, "told once"
    for other in (going.segments(6), going.segments(7)[:1], going.segments(7)[::-1]):
        assert not builder.build(other, []).batch.repeats
    decoding = [Segment(going.requests[0], 9, 1, True)]
    builder.build(going.segments(7), [])
    builder.build(decoding, [])
    assert not builder.build(going.segments(7), []).batch.repeats
    assert builder.build(going.segments(7), []).batch.repeats


def test_what_a_repeated_plan_says_is_what_would_be_said_of_it_anew() -> None:
    """But for where its rows are, which nobody asks it."""
    going = Going(3)
    builder = PlanBuilder(going.table, lambda request: (), linked=True)
    builder.build(going.segments(5), [])
    segments = going.segments(5)
    again = builder.build(segments, []).batch
    anew = PlanBuilder(going.table, lambda request: (), linked=True).build(segments, []).batch
    assert again.repeats and not anew.repeats
    names = ("rows", "extend_lens", "input_ids", "logit_idx", "sample_idx", "sample_rows")
    for name in names:
        assert getattr(again, name).tolist() == getattr(anew, name).tolist(), name
    assert again.drafted is not None and anew.drafted is not None
    for name in ("rows", "levels", "follows"):
        assert getattr(again.drafted, name).tolist() == getattr(anew.drafted, name).tolist()
    assert again.drafted.accepts and again.tree is not None and anew.tree is not None
    assert again.tree.counts.tolist() == anew.tree.counts.tolist()
    assert again.tree.offsets.tolist() == anew.tree.offsets.tolist()
    assert again.mode is anew.mode and again.num_tokens == anew.num_tokens
