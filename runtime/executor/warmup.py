"""A first step nobody waits for: pages in the weights, starts threads, fills caches.

Invariant: nothing is left behind; tokens of the warm-up go to the padding page alone. Must run
before the first real step.
"""

from __future__ import annotations

import numpy as np
import torch

from branchline.runtime.core.batch import ForwardMode, ScheduleBatch
from branchline.runtime.executor.model_runner import ModelRunner


def idle_plan(num_tokens: int) -> ScheduleBatch:
    """A step of one row whose tokens are all id 0 in slot 0."""
    one = np.array([num_tokens], dtype=np.int32)
    return ScheduleBatch(
        mode=ForwardMode.IDLE,
        rows=np.zeros(1, dtype=np.int32),
        seq_lens=one,
        extend_lens=one,
        input_ids=np.zeros(num_tokens, dtype=np.int32),
        positions=np.arange(num_tokens, dtype=np.int64),
        out_slots=np.zeros(num_tokens, dtype=np.int32),
        logit_idx=one - np.int32(1),
        sample_idx=np.empty(0, dtype=np.int32),
        sample_rows=np.empty(0, dtype=np.int32),
        previous=np.zeros(num_tokens, dtype=np.int32),
    )


def warm_up(runner: ModelRunner, sizes: tuple[int, ...] = (1, 16)) -> None:
    """Run a step of each size (tokens), head included. The slot table's row 0 must be all zero."""
    with torch.inference_mode():
        for size in sizes:
            plan = idle_plan(min(size, runner.model.max_context))
            runner.logits(runner.run(plan))
            runner.run_to_logits(plan)
