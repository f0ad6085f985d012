"""One model on a device: plans go in, hidden states and logits are queued.

Invariant: nothing waits for the device; whatever a step reads was queued before it. A row's result
does not depend on whether its step was replayed or run eagerly, beyond what its kernels promise.
Knows nothing of sampling parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from branchline.kernels.beam import Check
from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import Ops
from branchline.kernels.sampling import Draws, SamplingOps
from branchline.runtime.attention.base import AttentionBackend, AttentionPlan
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.core.drafting import MAX_GUESSES
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.executor.device_draft import DeviceDraft
from branchline.runtime.executor.device_graphs import (
    DECODE_STEP,
    TOKEN_STEP,
    VERIFY_TOKENS,
    DeviceGraphs,
    Outputs,
    eager_shape,
    idle_step,
    padded,
)
from branchline.runtime.executor.device_lookup import DeviceLookup
from branchline.runtime.executor.device_stream import DeviceStream, Mark, to_host
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.draft_step import Draft, forward_step
from branchline.runtime.executor.plan_buffers import PlanBuffers, StepShape, StepTensors
from branchline.runtime.executor.recorded_choice import RecordedChoice
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model

GRAPH_TREE_WORDS = 1 << 14
"""Words of tree masks in a recorded step at most: one tree of 1,024 tokens, or many small ones."""
MIXED_SAMPLES = 256
"""Rows of a recorded mixed step whose logits are part of it; of steps that sample more, none is."""


@dataclass(slots=True)
class _Candidates:
    """What is known of a step's candidates once they are queued; see `QueuedForward`.

    Attributes:
        again: queues the same guesses once more; see `DeviceDraft.guess`.
    """

    check: Check | None = None
    nodes: tuple[torch.Tensor, Mark] | None = None
    again: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class QueuedForward:
    """Results of a forward on the device, valid until the next one is queued behind them.

    Attributes:
        hidden: [l, hidden]; None when only logits were wanted.
        logits: [s, V] of the sampled rows; None when s = 0.
        greedy: int32 [s], the most likely ids, written to the token table already; or None.
        places: int64 [s], where sampled ids go in the flat token table.
        positions: int64 [s], position that each of them takes.
        replayed: places and positions are where recorded steps have them.
        check: of a step whose candidates were made here.
        nodes: int32 [3, most samples], see `Check`, in host memory once the mark has passed; of a
            step whose candidates must be known before it is sampled.
        step: what the step reads, where rows are looked up behind it.
    """

    hidden: torch.Tensor | None
    logits: torch.Tensor | None
    greedy: torch.Tensor | None
    places: torch.Tensor
    positions: torch.Tensor
    replayed: bool = False
    check: Check | None = None
    nodes: tuple[torch.Tensor, Mark] | None = None
    step: StepTensors | None = None


class _Repeated(NamedTuple):
    """A step that is in the buffers as it was queued.

    Attributes:
        guess, forward: queue it once more.
        outputs, queued: what it gives.
    """

    guess: Callable[[], None]
    forward: Callable[[], Outputs]
    outputs: Outputs
    queued: QueuedForward


class DeviceRunner:
    """Queues steps one after the other; not thread-safe.

    Args:
        model: with its weights on the device.
        ops: what it runs with.
        attention: backend of all layers.
        kv_pool: keys and values.
        tables: slots and ids of the rows.
        stream: where everything is queued.
        max_tokens, max_rows: of a step.
        graph_tokens: of the largest step that is recorded.
        tree_words: words of tree masks in a step at most.
        draft: a draft model that keeps something of every token, if there is one.
        adapter_slots: that the model's layers were given.
        lookup: guesses by looking up, and looks up behind every step; None = nobody does.

    Attributes:
        guesser: makes the candidates of plans that ask for some, unless they are looked up; None =
            there are none.
        choice: of tokens, recorded; None = it is not.
    """

    def __init__(
        self,
        model: Model,
        ops: Ops,
        attention: AttentionBackend,
        kv_pool: KVPool,
        tables: DeviceTables,
        stream: DeviceStream,
        *,
        max_tokens: int,
        max_rows: int,
        graph_tokens: int = 512,
        tree_words: int = 1 << 18,
        draft: Draft | None = None,
        adapter_slots: int = 0,
        lookup: DeviceLookup | None = None,
    ) -> None:
        if not isinstance(ops, SamplingOps):
            raise InvalidRequest(
                f"{type(ops).__name__} cannot choose tokens on a device.", hint="Use TritonOps."
            )
        self.model, self.ops, self.stream = model, ops, stream
        self.sampling: SamplingOps = ops
        self.kv_pool, self.tables = kv_pool, tables
        self.draft = draft
        self.guesser: DeviceDraft | None = None
        self.lookup = lookup
        self.choice: RecordedChoice | None = None
        self.attention = attention
        self._max_rows = max_rows
        self._adapter_slots = adapter_slots
        most = max_rows + DECODE_STEP
        self._eager_buffers = PlanBuffers(
            tables,
            tokens=max_tokens + TOKEN_STEP,
            rows=most,
            samples=most + MAX_GUESSES,
            tree_words=tree_words,
            stream=stream,
            adapters=adapter_slots > 0,
        )
        buffers = PlanBuffers(
            tables,
            tokens=max(graph_tokens, most),
            rows=most,
            samples=most + MAX_GUESSES,
            tree_words=GRAPH_TREE_WORDS,
            stream=stream,
            adapters=adapter_slots > 0,
        )
        self._buffers = buffers
        self._recorded_nodes = self.recorded_check().nodes.data_ptr()
        self._accepts: dict[int, Callable[[], None]] = {}
        self._last: _Repeated | None = None  # the last step, if it can be queued once more
        self.recorder = Recorder(stream)
        self.graphs = DeviceGraphs(buffers, attention, self._recorded, stream, self.recorder)
        # Made once: in a recording each of these tensors would be made anew in every step.
        self._none = torch.full((), -1, dtype=torch.int32, device=stream.device)
        self._greedy = Draws.greedy(max(most, VERIFY_TOKENS[-1]), stream.device)

    @property
    def vocab_size(self) -> int:
        """V: columns of the logits."""
        return self.model.spec.vocab_size

    def run(self, plan: ScheduleBatch) -> QueuedForward:
        """Queue slot copies, table changes, the forward, and logits of the sampled rows."""
        last, self._last = self._last, None
        if plan.repeats and last is not None:
            self._last = self._repeat(last, plan)
            return self._last.queued
        if plan.copies is not None:
            self.kv_pool.copy_slots(*plan.copies)
            if self.draft is not None:
                self.draft.pool.copy_slots(*plan.copies)
        sampled, made = len(plan.sample_rows), _Candidates()

        def guess(tensors: StepTensors) -> None:
            if plan.drafted is not None:
                self._guess(plan, tensors, made)

        graph = self.graphs.find(plan)
        if graph is None:
            tensors = self._eager_buffers.views(eager_shape(plan, self._max_rows))
            outputs = Outputs(hidden=self._eager(plan, tensors, guess))
        else:
            tensors, outputs = self.graphs.replay(graph, plan, guess)
        places, positions = tensors.sample_places[:sampled], tensors.sample_positions[:sampled]
        seen = None if self.lookup is None else tensors
        there = places, positions, graph is not None, made.check, made.nodes, seen
        hidden = None if outputs.hidden is None else outputs.hidden[: len(plan.logit_idx)]
        logits = None
        if outputs.logits is not None and sampled <= len(outputs.logits):
            logits, greedy = _choices(outputs, sampled)
            queued = QueuedForward(hidden, logits, greedy, *there)
            if graph is not None and made.again is not None:
                self._last = _Repeated(made.again, graph.replay, outputs, queued)
            return queued
        assert outputs.hidden is not None, "a graph gives logits or hidden states"
        if sampled:
            index = tensors.sample_idx[: padded(sampled)]
            rows = self.ops.gather_rows(outputs.hidden, index)
            slots = tensors.sample_lora_slots
            lora = self.lora(None if slots is None else slots[: padded(sampled)])
            logits = self.model.logits(rows, self.ops, lora)[:sampled]
        return QueuedForward(hidden, logits, None, *there)

    def _repeat(self, last: _Repeated, plan: ScheduleBatch) -> _Repeated:
        """Queue a step that is in the buffers as the last one was queued."""
        if plan.slot_writes is not None:
            self.tables.write(self.tables.upload(self.tables.changes(plan)))
        last.guess()
        assert plan.drafted is not None and last.queued.check is not None, "a check is repeated"
        nodes = self._nodes_to_host(last.queued.check) if plan.drafted.host_reads else None
        outputs, queued = last.forward(), last.queued
        if outputs is not last.outputs:  # not recorded, on a CPU
            logits, greedy = _choices(outputs, len(plan.sample_rows))
            queued = replace(queued, logits=logits, greedy=greedy)
        if nodes is not queued.nodes:
            queued = replace(queued, nodes=nodes)
        return last._replace(outputs=outputs, queued=queued)

    def accept(self, check: Check, sampled: torch.Tensor) -> None:
        """Queue: of the candidates, accept those that int32 [s] ids were sampled for.

        Their entries lie behind those of the row afterwards, and the tables tell ids and length.
        """
        if sampled.data_ptr() != check.nodes[2].data_ptr():  # recorded checks leave theirs there
            check.nodes[2, : len(sampled)].copy_(sampled)
        recorded = check.nodes.data_ptr() == self._recorded_nodes
        replay = self._accepts.get(len(check.rows)) if recorded else None
        if replay is None:
            self._accept(check)
        else:
            replay()

    def look_up(self, step: StepTensors, sampled: torch.Tensor) -> None:
        """Queue, of a step whose ids int32 [s] were not chosen with the forward: keep the
        candidates that they are, and look all rows up."""
        assert self.lookup is not None, "somebody looks up"
        step.back[2, : len(sampled)].copy_(sampled)
        self.lookup.find(step)

    def record_accept(self, rows: int) -> None:
        """Record `accept` for recorded steps of so many rows, padding included.

        Raises:
            torch.OutOfMemoryError: no memory for it; what was recorded before stays usable.
        """
        check = self.recorded_check(rows)
        with self.stream:
            self._accepts[rows] = self.recorder.record(lambda: self._accept(check))

    def recorded_choice(self) -> RecordedChoice:
        """For steps that are replayed, with buffers and without recordings yet."""
        check = 0 if self.draft is None else VERIFY_TOKENS[1]  # a row with its guesses
        return RecordedChoice(
            self.sampling,
            self.tables,
            self._buffers.views(StepShape(1, 1, 1)),
            self.stream,
            self.recorder,
            vocab_size=self.vocab_size,
            max_rows=max(self._max_rows, check),
        )

    def recorded_check(self, rows: int | None = None) -> Check:
        """What the recorded steps of so many rows read, None = of any number, whatever the number
        of their tokens."""
        tokens, rows = self._buffers.tokens, rows or self._buffers.rows
        return self._buffers.views(StepShape(tokens, rows, tokens, tree=True)).check()

    def _accept(self, check: Check) -> None:
        assert self.guesser is not None and self.draft is not None, "somebody has drafted"
        source, target = self.guesser.accept(check)
        self.kv_pool.move_slots(self.ops, source, target)
        self.draft.pool.move_slots(self.ops, source, target)

    def _guess(self, plan: ScheduleBatch, tensors: StepTensors, made: _Candidates) -> None:
        assert plan.drafted is not None, "there is something to guess"
        if self.lookup is not None:
            assert plan.drafted.accepts, "what is looked up is kept here"
            made.check, made.again = tensors.check(), lambda: None
            return  # the step itself begins with it
        assert self.guesser is not None, "there is somebody to guess"
        if plan.slot_writes is not None or plan.inits:  # else the step itself would be the first
            self.tables.write(tensors.writes)
        made.check = tensors.check()
        made.again = self.guesser.guess(plan, made.check)
        if plan.drafted.host_reads:
            made.nodes = self._nodes_to_host(made.check)

    def _nodes_to_host(self, check: Check) -> tuple[torch.Tensor, Mark]:
        """Queue the way of a step's candidates to the host, ahead of the step itself."""
        return to_host(check.nodes), self.stream.mark()

    def lora(self, slots: torch.Tensor | None) -> LoraBatch | None:
        """What the ops take of the adapters' slots of n rows: int32 [n] on the device."""
        return None if slots is None else self.ops.lora_batch(slots, self._adapter_slots)

    def idle_hidden(self, shape: StepShape) -> torch.Tensor:
        """Queue a forward of padding alone, without a recording: [l, hidden]."""
        return self._eager(idle_step(shape), self._eager_buffers.views(shape), lambda _: None)

    def _eager(
        self, plan: ScheduleBatch, tensors: StepTensors, loaded: Callable[[StepTensors], None]
    ) -> torch.Tensor:
        meta = self._eager_buffers.load(plan, tensors)
        loaded(tensors)
        return self._hidden(tensors, self.attention.plan(meta))[0]

    def _hidden(
        self, tensors: StepTensors, plan: AttentionPlan
    ) -> tuple[torch.Tensor, LoraBatch | None]:
        """Hidden states [l, hidden] of the logit rows, and these rows' adapters."""
        self.tables.write(tensors.writes)
        if self.lookup is not None and tensors.shape.tree:
            self.lookup.plant(tensors)
        self.attention.begin(plan)
        ids = self.ops.resolve_ids(
            tensors.input_ids, tensors.positions, tensors.meta, self.tables.tokens
        )
        lora = self.lora(tensors.lora_slots)
        # in decoding each token is a logit row
        own = lora if tensors.shape.decode else self.lora(tensors.logit_lora_slots)
        batch = ForwardBatch(
            input_ids=ids,
            positions=tensors.positions,
            out_slots=tensors.out_slots,
            logit_idx=tensors.logit_idx,
            backend=self.attention,
            plan=plan,
            previous=tensors.previous,
            lora=lora,
            logit_lora=own,
        )
        return forward_step(self.model, self.draft, batch, self.ops, self.kv_pool), own

    def _recorded(self, shape: StepShape, tensors: StepTensors, plan: AttentionPlan) -> Outputs:
        """What a graph holds: the choice of the likeliest ids too, but for choices to score."""
        hidden, lora = self._hidden(tensors, plan)
        every = shape.decode or shape.verify
        if shape.tree and not every:
            return Outputs(hidden=hidden)
        count, rows = shape.logits, hidden
        if not every:
            count = min(shape.rows, MIXED_SAMPLES)
            rows = self.ops.gather_rows(hidden, tensors.sample_idx[:count])
            slots = tensors.sample_lora_slots
            lora = self.lora(None if slots is None else slots[:count])
        logits = self.model.logits(rows, self.ops, lora)
        ids, bad = self.sampling.sample_rows(logits.float(), self._greedy.first(count))
        self.tables.put_tokens(tensors.sample_places[:count], ids)
        # of checks and where rows are looked up it is where what is kept is seen
        seen = shape.verify or self.lookup is not None
        greedy = tensors.back[2, :count] if seen else torch.empty_like(ids)
        torch.where(bad, self._none, ids, out=greedy)
        if self.lookup is not None:
            self.lookup.find(tensors)
        return Outputs(hidden=None if every else hidden, logits=logits, greedy=greedy)


def _choices(outputs: Outputs, sampled: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Logits and ids of the places that are sampled, of a recording that chooses."""
    assert outputs.logits is not None and outputs.greedy is not None, "what gives logits chooses"
    return outputs.logits[:sampled] if sampled else None, outputs.greedy[:sampled]
