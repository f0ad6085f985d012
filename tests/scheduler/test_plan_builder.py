"""What a plan keeps from the step before."""

from __future__ import annotations

import numpy as np
import pytest

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.memory.slot_table import SlotTable
from branchline.runtime.scheduler.plan_builder import PlanBuilder, Segment


def request(temperature: float) -> Request:
    sampling = SamplingParams(temperature=temperature)
    return Request(
        id="r",
        ids=np.zeros(1, dtype=np.int32),
        prompt_len=1,
        length=1,
        sampled_len=1,
        max_len=9,
        sampling=sampling,
        source=GenerateRequest(id="r", prompt_ids=[0], sampling=sampling),
        row=0,
    )


def test_a_request_at_the_address_of_one_that_is_gone_is_sampled_by_its_own_choices() -> None:
    builder = PlanBuilder(SlotTable(1, 9, 1), lambda request: ())

    def temperature(one: Request) -> float:
        batch = builder.build([Segment(one, 0, 1, True)], []).batch
        assert batch.sampling is not None and batch.requests == [one]
        return 1.0 / float(batch.sampling.inv_temperature[0])

    for step in range(1, 200):  # each may take the place of the one before
        assert temperature(request(step / 100)) == pytest.approx(step / 100, rel=1e-5)


def test_steady_decoding_keeps_its_sampling_batch() -> None:
    builder = PlanBuilder(SlotTable(1, 9, 1), lambda request: ())
    one = request(0.5)
    first = builder.build([Segment(one, 0, 1, True)], []).batch.sampling
    assert builder.build([Segment(one, 0, 1, True)], []).batch.sampling is first
