"""Captured states against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from branchline.runtime.training.target import Target
from tests.support.model_driver import reference_model


def test_states_are_those_of_transformers(target: Target, target_folder: Path) -> None:
    model = reference_model(target_folder)
    chooser = np.random.default_rng(0)
    sequences = [chooser.integers(0, 101, n).astype(np.int32) for n in (5, 1, 9)]
    for some in (sequences, sequences[:1]):  # a smaller batch after a larger one
        states = target.run(some, (0, 1, 2))
        start = 0
        for ids in some:
            with torch.inference_mode():
                want = model(torch.from_numpy(ids)[None].long(), output_hidden_states=True)
            part = slice(start, start + len(ids))
            layers = torch.cat([want.hidden_states[i + 1][0] for i in (0, 1, 2)], dim=-1)
            torch.testing.assert_close(states.layers[part], layers, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                states.final[part] @ target.head.T, want.logits[0], rtol=1e-4, atol=1e-4
            )
            start += len(ids)
