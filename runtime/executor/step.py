"""The two halves of a step: forward, then sample. Both workers are made of this.

Invariant: after `finish`, the token table holds the sampled ids, so the next step's -1 inputs can
be read. Logits of sampled rows alone are kept between the halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from branchline.runtime.core.batch import ForwardOutput, Int32Array, ScheduleBatch, TopLogprobs
from branchline.runtime.executor.lora_inputs import logit_slots
from branchline.runtime.executor.model_runner import ModelRunner
from branchline.runtime.executor.scores import Head, read_scores
from branchline.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A step between its halves.

    Attributes:
        plan: the step.
        logits: float32 [s, V] of the sampled rows, valid until the next forward; None when s = 0.
        scores: what the plan's `ScoreRead` asked for.
        hidden: float32 [p, hidden], what its `hidden_rows` asked for; a copy.
    """

    plan: ScheduleBatch
    logits: torch.Tensor | None
    scores: TopLogprobs | None
    hidden: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None


class StepExecutor:
    """Runs steps on one thread.

    Args:
        runner: the model.
        sampler: chooses tokens; for `runner.vocab_size` logits.
    """

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self.runner = runner
        self.sampler = sampler
        self._table = runner.token_table.numpy()

    def forward(self, plan: ScheduleBatch) -> Forwarded:
        """Table writes, slot copies, the forward, scores, and logits of the sampled rows."""
        runner = self.runner
        every_row_sampled = len(plan.sample_idx) == len(plan.logit_idx)
        with torch.inference_mode():
            if plan.score is None and every_row_sampled and len(plan.sample_idx):
                return Forwarded(plan, runner.run_to_logits(plan), None)
            hidden = runner.run(plan)
            scores = logits = states = None
            if plan.hidden_rows is not None:
                index = torch.from_numpy(plan.hidden_rows)
                # a copy: the next step overwrites what it is taken from
                states = hidden[index].float().cpu().numpy()
            if plan.score is not None and len(plan.score.logit_rows):
                scores = read_scores(plan.score, hidden, self._head_of(plan), runner.ops)
            if len(plan.sample_idx):
                logits = runner.sampled_logits(hidden, plan)
        return Forwarded(plan, logits, scores, states)

    def _head_of(self, plan: ScheduleBatch) -> Head:
        slots = logit_slots(plan)

        def head(rows: torch.Tensor, index: Int32Array) -> torch.Tensor:
            return self.runner.logits(rows, None if slots is None else slots[index])

        return head

    def finish(self, step: Forwarded, bitmask: Bitmask | None) -> ForwardOutput:
        """Sample under the mask and write the ids to the token table.

        Args:
            step: of `forward`.
            bitmask: int32 [s, ceil(V / 32)]; None = everything is allowed.
        """
        plan = step.plan
        if step.logits is None or plan.sampling is None:
            return ForwardOutput(
                np.empty((0, 1), dtype=np.int32),
                np.empty(0, dtype=np.int32),
                scores=step.scores,
                hidden=step.hidden,
            )
        rows = plan.rows[plan.sample_rows]
        positions = plan.sample_positions
        with torch.inference_mode():
            result = self.sampler.sample(
                step.logits,
                plan.sampling,
                positions,
                rows,
                self.runner.token_table,
                bitmask,
                tails=plan.sample_tails,
            )
            ids = result.ids.numpy()
        self._table[rows, positions] = ids
        return ForwardOutput(
            token_ids=ids.reshape(-1, 1),
            num_new=np.ones(len(ids), dtype=np.int32),
            logprobs=result.logprobs,
            scores=step.scores,
            hidden=step.hidden,
            bad_rows=result.bad_rows,
        )
