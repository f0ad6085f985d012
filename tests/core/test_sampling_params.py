"""What a request may ask for is checked where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import InvalidRequest


@pytest.mark.parametrize("value", [None, True, False])
def test_guessing_can_be_left_or_turned_off(value: bool | None) -> None:
    assert SamplingParams(speculative=value).validate().speculative is value


@pytest.mark.parametrize("value", ["eagle", "", 3])
def test_who_guesses_is_no_choice_of_a_request(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="setting of the engine"):
        SamplingParams(speculative=value).validate()
