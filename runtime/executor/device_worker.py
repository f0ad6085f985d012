"""The worker of a device: steps are queued from the caller's thread and awaited later.

Invariant: `forward` and `sample` return when their work is queued; `result` waits for that step
alone. Sampled ids are in the device's token table for the next step, whether or not anyone has
looked at them. A step that fails while it is queued fails alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from branchline.runtime.core.batch import ForwardOutput, Int32Array, ScheduleBatch, TopLogprobs
from branchline.runtime.core.protocols import Pending
from branchline.runtime.errors import BackendError
from branchline.runtime.executor.device_runner import DeviceRunner, QueuedForward
from branchline.runtime.executor.device_scores import Head, Reading, queue_scores
from branchline.runtime.executor.device_stream import Mark, to_device, to_host
from branchline.runtime.executor.lora_inputs import logit_slots
from branchline.runtime.sampling.device_sampler import DeviceSampler
from branchline.runtime.sampling.logprobs import scatter_logprobs

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


@dataclass(slots=True)
class _Landing:
    """A step's results on their way to the host; valid once `mark` has passed."""

    mark: Mark
    ids: torch.Tensor | None = None
    logprobs: Reading | None = None
    scores: Reading | None = None
    hidden: torch.Tensor | None = None


class DevicePending:
    """A step on its way; see `core.protocols.Pending`."""

    def __init__(self, plan: ScheduleBatch) -> None:
        self.plan = plan
        self.forwarded: QueuedForward | None = None
        self.scores: Reading | None = None
        self.hidden: torch.Tensor | None = None
        self.landing: _Landing | None = None
        self.error: Exception | None = None

    def done(self) -> bool:
        """True when `result` would not wait."""
        return self.error is not None or (self.landing is not None and self.landing.mark.passed())

    def result(self) -> ForwardOutput:
        """Wait for the step; raise what it raised."""
        if self.error is not None:
            raise self.error
        assert self.landing is not None, "a step is sampled before its result is asked for"
        landing, plan = self.landing, self.plan
        landing.mark.wait()
        scores = None if landing.scores is None else _to_numpy(landing.scores)
        hidden = None if landing.hidden is None else landing.hidden.numpy()
        if landing.ids is None or plan.sampling is None:
            none = np.empty(0, dtype=np.int32)
            return ForwardOutput(none.reshape(0, 1), none, scores=scores, hidden=hidden)
        ids = landing.ids.numpy()
        bad = np.flatnonzero(ids < 0)
        logprobs = None
        if landing.logprobs is not None:
            part = _to_numpy(landing.logprobs)
            logprobs = scatter_logprobs(part, plan.sampling.logprob_rows, len(ids))
        return ForwardOutput(
            token_ids=ids.clip(min=0).reshape(-1, 1),
            num_new=np.ones(len(ids), dtype=np.int32),
            logprobs=logprobs,
            scores=scores,
            hidden=hidden,
            bad_rows=tuple(bad.tolist()),
        )


class DeviceWorker:
    """Runs steps on a device's queue; used by one thread at a time.

    Args:
        runner: the model.
        overlap: False waits for every step as soon as it is sampled.
    """

    def __init__(self, runner: DeviceRunner, *, overlap: bool = True) -> None:
        self.runner = runner
        self._overlap = overlap
        self._closed = False
        device = runner.stream.device
        self._sampler = DeviceSampler(runner.sampling, lambda array: to_device(array, device))

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        """Queue a step's forward. Raises `BackendError` after `close`."""
        if self._closed:
            raise BackendError("The worker is closed.", hint="Make a new engine.")
        step, stream = DevicePending(plan), self.runner.stream
        stream.adopt()
        try:
            with stream:
                step.forwarded = self.runner.run(plan)
                if plan.score is not None and len(plan.score.logit_rows):
                    assert step.forwarded.hidden is not None, "scored steps give hidden states"
                    step.scores = queue_scores(
                        plan.score, step.forwarded.hidden, self._head_of(plan), self.runner.ops
                    )
                if plan.hidden_rows is not None:
                    assert step.forwarded.hidden is not None, "these steps give hidden states"
                    wanted = to_device(plan.hidden_rows.astype(np.int64), stream.device)
                    step.hidden = to_host(step.forwarded.hidden[wanted].float())
        except Exception as error:  # delivered by the step's result()
            step.error = error
        return step

    def sample(self, pending: Pending, bitmask: Bitmask | None) -> None:
        """Queue the step's sampling and the way back of its results."""
        assert isinstance(pending, DevicePending), "a step belongs to the worker that made it"
        if pending.error is not None:
            return
        try:
            with self.runner.stream:
                pending.landing = self._finish(pending, bitmask)
        except Exception as error:  # delivered by the step's result()
            pending.error = error
        pending.forwarded = pending.scores = None
        if not self._overlap and pending.landing is not None:
            pending.landing.mark.wait()

    def close(self) -> None:
        """Wait for what is queued. Callable twice."""
        self._closed = True
        self.runner.stream.drain()

    def _head_of(self, plan: ScheduleBatch) -> Head:
        runner, slots = self.runner, logit_slots(plan)

        def head(rows: torch.Tensor, index: Int32Array) -> torch.Tensor:
            own = None if slots is None else to_device(slots[index], runner.stream.device)
            return runner.model.logits(rows, runner.ops, runner.lora(own))

        return head

    def _finish(self, step: DevicePending, bitmask: Bitmask | None) -> _Landing:
        plan, forwarded = step.plan, step.forwarded
        assert forwarded is not None, "a step is sampled once, after its forward"
        landing = _Landing(Mark(), hidden=step.hidden)
        if step.scores is not None:
            landing.scores = _reading_to_host(step.scores)
        if forwarded.logits is not None and plan.sampling is not None:
            sampling = plan.sampling
            simple = sampling.all_greedy and not sampling.edited and not len(sampling.logprob_rows)
            if bitmask is None and simple and forwarded.greedy is not None:
                landing.ids = to_host(forwarded.greedy)
            else:
                self._sample(plan, forwarded, bitmask, landing)
        landing.mark = self.runner.stream.mark()
        return landing

    def _sample(
        self,
        plan: ScheduleBatch,
        forwarded: QueuedForward,
        bitmask: Bitmask | None,
        landing: _Landing,
    ) -> None:
        assert forwarded.logits is not None and plan.sampling is not None
        rows = plan.rows[plan.sample_rows]
        positions, tails = plan.sample_positions, plan.sample_tails
        tables = self.runner.tables

        def history(index: int) -> torch.Tensor:
            row, end, tail = int(rows[index]), int(positions[index]), tails.get(index)
            if tail is None:
                return tables.tokens[row, :end]
            known = tables.tokens[row, : end - len(tail)]
            return torch.cat([known, to_device(tail, tables.tokens.device)])

        found = self._sampler.sample(
            forwarded.logits, plan.sampling, positions, history, bitmask, forwarded.positions
        )
        tables.put_tokens(forwarded.places, found.ids.clamp(min=0))
        landing.ids = to_host(found.ids)
        if found.logprobs is not None:
            landing.logprobs = _reading_to_host(found.logprobs)


def _reading_to_host(reading: Reading) -> Reading:
    chosen, ids, values = reading
    return to_host(chosen), to_host(ids), to_host(values)


def _to_numpy(reading: Reading) -> TopLogprobs:
    chosen, ids, values = reading
    return TopLogprobs(chosen.numpy(), ids.numpy(), values.numpy())
