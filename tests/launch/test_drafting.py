"""The shape of a draft's tree follows the number of guesses."""

from __future__ import annotations

import pytest

from branchline.runtime.launch.drafting import NODES, shape


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_trees_grow_in_width_and_depth_with_their_guesses(kind: str) -> None:
    found = [shape(kind, nodes) for nodes in range(1, 200)]
    assert found == sorted(found)
    for nodes, (width, levels) in enumerate(found, start=1):
        assert 1 <= width <= nodes and 1 <= levels <= nodes
        assert width + (levels - 1) * width**2 >= min(nodes, 100), "so many can be found"


def test_a_large_tree_on_a_cpu_is_wider_and_deeper_than_the_usual_one() -> None:
    usual, large = shape("cpu", NODES["cpu"]), shape("cpu", 60)
    assert large[0] > usual[0] and large[1] > usual[1]
