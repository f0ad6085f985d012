"""The worker of a device: steps are queued from the caller's thread and awaited later.

Invariant: `forward` and `sample` return when their work is queued; `result` waits for that step
alone. Sampled ids are in the device's token table for the next step, whether or not anyone has
looked at them. A step that fails while it is queued fails alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from branchline.runtime.core.batch import ForwardOutput, Int32Array, ScheduleBatch, TopLogprobs
from branchline.runtime.core.protocols import Pending
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.errors import BackendError
from branchline.runtime.executor.device_runner import DeviceRunner, QueuedForward
from branchline.runtime.executor.device_scores import Head, Reading, queue_scores
from branchline.runtime.executor.device_stream import Mark, to_device, to_host
from branchline.runtime.executor.lora_inputs import logit_slots
from branchline.runtime.sampling.device_sampler import DeviceSampler
from branchline.runtime.sampling.logprobs import scatter_logprobs

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


_DRAWN = 8
"""Of so many steps whose choice is not part of them, one looks its rows up."""


@dataclass(slots=True)
class _Landing:
    """A step's results on their way to the host; valid once `mark` has passed.

    Attributes:
        ids: int32 [s] that were sampled, or lines of `StepTensors.back`: the last two, or all.
        matched: which of the two.
    """

    mark: Mark
    ids: torch.Tensor | None = None
    matched: bool = False
    nodes: torch.Tensor | None = None
    logprobs: Reading | None = None
    scores: Reading | None = None
    hidden: torch.Tensor | None = None


class DevicePending:
    """A step on its way; see `core.protocols.Pending` and `DraftingPending`."""

    def __init__(self, plan: ScheduleBatch) -> None:
        self.plan = plan
        self.forwarded: QueuedForward | None = None
        self.scores: Reading | None = None
        self.hidden: torch.Tensor | None = None
        self.landing: _Landing | None = None
        self.nodes: tuple[torch.Tensor, Mark] | None = None
        self.known_trees: list[DraftTree] | None = None
        self.error: Exception | None = None

    def done(self) -> bool:
        """True when `result` would not wait."""
        return self.error is not None or (self.landing is not None and self.landing.mark.passed())

    def trees(self) -> list[DraftTree]:
        """See `DraftingPending`."""
        if self.error is not None:
            raise self.error
        if self.nodes is None:
            return []
        if self.known_trees is None:
            nodes, mark = self.nodes
            mark.wait()
            self.known_trees = trees_of(self.plan, nodes.numpy())
        return self.known_trees

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
        ids, matched = landing.ids.numpy(), None
        if landing.matched:
            ids, matched = ids[-2, : len(plan.sample_rows)], ids[-1, : len(plan.rows)]
        bad: tuple[int, ...] = ()
        if ids.min(initial=0) < 0:
            bad = tuple(np.flatnonzero(ids < 0).tolist())
            ids = np.maximum(ids, 0)
        logprobs = None
        if landing.logprobs is not None:
            part = _to_numpy(landing.logprobs)
            logprobs = scatter_logprobs(part, plan.sampling.logprob_rows, len(ids))
        return ForwardOutput(
            token_ids=ids.reshape(-1, 1),
            num_new=np.ones(len(ids), dtype=np.int32),
            logprobs=logprobs,
            scores=scores,
            hidden=hidden,
            bad_rows=bad,
            trees=self.trees(),
            matched=matched,
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
        self._not_looked_up = 0  # steps since the last one that was
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
                step.nodes = step.forwarded.nodes
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
            simple = simple and bitmask is None
            chosen = forwarded.greedy if simple else None
            ids = self._sample(plan, forwarded, bitmask, landing) if chosen is None else chosen
            drafted, accepts = forwarded.check, plan.drafted is not None and plan.drafted.accepts
            if forwarded.step is not None and (accepts or simple or self._looks_up(bitmask)):
                if chosen is None:
                    self.runner.look_up(forwarded.step, ids)
                back = forwarded.step.back
                landing.ids, landing.matched = to_host(back if accepts else back[2:]), True
                landing.nodes = landing.ids if accepts else None
            elif drafted is not None and accepts:
                self.runner.accept(drafted, ids)
                landing.nodes = to_host(drafted.nodes)  # what was sampled among it
                landing.ids = landing.nodes[2, : len(ids)]
            else:
                landing.ids = to_host(ids)
        landing.mark = self.runner.stream.mark()
        if landing.nodes is not None:
            step.nodes = landing.nodes, landing.mark
        return landing

    def _looks_up(self, bitmask: Bitmask | None) -> bool:
        """Whether rows of a step whose choice is not part of it are looked up. What that takes is
        launched by itself, so only one in a few such steps does: guessing begins the later."""
        if bitmask is not None and not (bitmask[:, 0] == -1).any():  # nobody wants to know
            return False
        self._not_looked_up = (self._not_looked_up + 1) % _DRAWN
        return self._not_looked_up == 0

    def _sample(
        self,
        plan: ScheduleBatch,
        forwarded: QueuedForward,
        bitmask: Bitmask | None,
        landing: _Landing,
    ) -> torch.Tensor:
        """int32 [s]; -1 where nothing could be sampled."""
        assert forwarded.logits is not None and plan.sampling is not None
        choice = self.runner.choice
        if choice is not None and forwarded.replayed:
            ids = choice.choose(forwarded.logits, plan.sampling, bitmask)
            if ids is not None:
                return ids
        if choice is not None and bitmask is not None and choice.masks.owns(bitmask):
            bitmask = bitmask.copy()  # no copy from it is known that would have to be waited for
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
        if found.logprobs is not None:
            landing.logprobs = _reading_to_host(found.logprobs)
        return found.ids


def trees_of(
    plan: ScheduleBatch, nodes: np.ndarray[tuple[int, int], np.dtype[np.int32]]
) -> list[DraftTree]:
    """Of each of a plan's drafted rows, from int32 [2 or more, s] ids and parents at its places."""
    drafted, tree = plan.drafted, plan.tree
    if drafted is None or tree is None:
        return []
    found = []
    firsts = plan.sample_rows.searchsorted(drafted.rows)
    for first, n in zip(firsts.tolist(), tree.counts[drafted.rows].tolist(), strict=True):
        ids, parents = nodes[:2, first + 1 : first + 1 + n].copy()
        found.append(DraftTree(ids, parents, _depths(parents.tolist())))
    return found


def _depths(parents: Sequence[int]) -> Int32Array:
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return np.array(depths, dtype=np.int32)


def _reading_to_host(reading: Reading) -> Reading:
    chosen, ids, values = reading
    return to_host(chosen), to_host(ids), to_host(values)


def _to_numpy(reading: Reading) -> TopLogprobs:
    chosen, ids, values = reading
    return TopLogprobs(chosen.numpy(), ids.numpy(), values.numpy())
