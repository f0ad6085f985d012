"""What a request may ask for is checked where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import InvalidRequest


@pytest.mark.parametrize("value", [None, True, False])
def test_guessing_can_be_left_or_turned_off(value: bool | None) -> None:
    assert SamplingParams(speculative=value).validate().speculative is value


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("seed", -(2**63), 2**64 - 1),
        ("top_k", 1, 2**31 - 1),
        ("min_tokens", 0, 2**31 - 1),
        ("max_tokens", 1, 2**63 - 1),
    ],
)
def test_numbers_fit_into_messages_and_tables(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert (
            getattr(SamplingParams(**{"max_tokens": None, name: value}).validate(), name) == value
        )
    for value in (least - 1, most + 1) if name != "top_k" else (0, most + 1):
        with pytest.raises(InvalidRequest, match=name):
            SamplingParams(**{"max_tokens": None, name: value}).validate()


@pytest.mark.parametrize("value", ["eagle", "", 3])
def test_who_guesses_is_no_choice_of_a_request(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="setting of the engine"):
        SamplingParams(speculative=value).validate()
