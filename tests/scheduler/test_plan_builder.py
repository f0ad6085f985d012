"""What a plan keeps from the step before, and what it says of its rows' slots."""

from __future__ import annotations

import numpy as np
import pytest

from branchline.kernels.triton.attention import SHORTEST_TRUNK as SHORTEST_FOUND
from branchline.runtime.core.batch import SHORTEST_TRUNK
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.memory.slot_table import SlotTable
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
