"""The width of a draft's tree follows the number of guesses."""

from __future__ import annotations

import pytest
import torch

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.launch.drafting import DEPTH, NODES, guesses_in_chains, width


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_tree_is_wide_enough_for_its_guesses(kind: str) -> None:
    found = [width(kind, nodes) for nodes in range(1, 200)]
    assert found == sorted(found)
    for nodes, each in enumerate(found, start=1):
        assert 1 <= each <= nodes
        assert each + (min(DEPTH, nodes) - 1) * each**2 >= nodes, "so many can be found"


def test_a_large_tree_on_a_cpu_is_wider_than_the_usual_one() -> None:
    assert width("cpu", 32) > width("cpu", NODES["cpu"])


def test_guesses_are_chains_where_a_device_is_to_be_deterministic() -> None:
    found = {
        (kind, deterministic): guesses_in_chains(
            EngineConfig.from_settings({"deterministic": deterministic}), torch.device(kind)
        )
        for kind in ("cpu", "cuda")
        for deterministic in (False, True)
    }
    assert [case for case, chains in found.items() if chains] == [("cuda", True)]
