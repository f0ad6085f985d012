"""Shapes of draft trees."""

from __future__ import annotations

import random

import numpy as np

from branchline.runtime.core.tree import DraftTree, GrowingTree


def test_first_path_is_the_first_child_of_each() -> None:
    for seed in range(50):
        r = random.Random(seed)
        growing = GrowingTree()
        for token in range(r.randint(0, 12)):
            growing.add(token, r.randrange(-1, len(growing)))
        tree = growing.build()
        wanted: list[int] = []
        last = -1
        while (tree.parents == last).any():
            last = int(np.flatnonzero(tree.parents == last)[0])
            wanted.append(int(tree.token_ids[last]))
        path = tree.first_path()
        assert path.token_ids.tolist() == wanted
        assert path.parents.tolist() == list(range(-1, len(wanted) - 1))
        assert path.depths.tolist() == list(range(len(wanted)))
        assert isinstance(path, DraftTree) and path.token_ids.dtype == np.int32
