"""Settings of speculation that contradict each other are refused before a model is touched."""

from __future__ import annotations

import pytest

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.errors import InvalidRequest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speculative": "draft"}, "needs a draft model"),
        ({"speculative_draft": "x"}, "none is used"),
        ({"speculative": "ngram", "speculative_draft": "x"}, "none is used"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        EngineConfig.from_settings(settings)


def test_a_head_may_be_the_one_of_the_catalog() -> None:
    assert (
        EngineConfig.from_settings({"speculative": "eagle"}).speculative.speculative_draft is None
    )
