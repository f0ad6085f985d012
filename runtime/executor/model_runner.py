"""One model, its pool and its tables: a plan goes in, hidden states and logits come out.

Invariant: the result of a row does not depend on how its tokens were split into steps, on the rows
beside it, or on whether the step was replayed or run eagerly. Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionBackend
from branchline.runtime.core.batch import Int32Array, ScheduleBatch
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.batch_inputs import attention_meta, token_tensors
from branchline.runtime.executor.cpu_graph import ModelGraph
from branchline.runtime.executor.draft_step import Draft, forward_step
from branchline.runtime.executor.lora_inputs import logit_slots, sample_slots, token_slots
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model

Graphs = tuple[ModelGraph, ModelGraph]
"""(forward alone, forward and head)."""


class ModelRunner:
    """Runs steps one after the other; not thread-safe.

    Args:
        model: with its weights.
        ops: what it runs with.
        attention: backend of all layers.
        kv_pool: keys and values.
        slot_table: int32 [max_rows, >= max_context], written by the cache manager; never copied.
        token_table: int32 [max_rows, max_context], ids of each row; rows are filled by
            `RowInit`s and by sampling. Owned by the runner's caller, written here.
        draft: a draft model that keeps something of every token, if there is one.
        graphs: they replay steps that fit. Others, or all if it is None, run eagerly.
        adapter_slots: that there are.
        record: makes such graphs for steps with adapters, when the first one comes; None = those
            run eagerly.
    """

    def __init__(
        self,
        model: Model,
        ops: Ops,
        attention: AttentionBackend,
        kv_pool: KVPool,
        slot_table: torch.Tensor,
        token_table: torch.Tensor,
        *,
        draft: Draft | None = None,
        graphs: Graphs | None = None,
        adapter_slots: int = 0,
        record: Callable[[], Graphs] | None = None,
    ) -> None:
        self.model = model
        self.ops = ops
        self.kv_pool = kv_pool
        self.token_table = token_table
        self._table = token_table.numpy()
        self._attention = attention
        self._slot_table = slot_table
        self.draft = draft
        self.graphs = graphs
        self._adapter_slots = adapter_slots
        self._record = record
        self._adapted: Graphs | None = None

    @property
    def vocab_size(self) -> int:
        """V: columns of the logits."""
        return self.model.spec.vocab_size

    def run(self, plan: ScheduleBatch) -> torch.Tensor:
        """Fill rows, copy slots, run the forward.

        Returns:
            float32 [l, hidden]: what `logits` takes; valid until the next step.
        """
        self._prepare(plan)
        if plan.num_tokens == 0:
            return torch.empty(0, self.model.spec.hidden)
        graphs = self._graphs_for(plan)
        if graphs is not None and graphs[0].fits(plan):
            return graphs[0].replay(plan)
        return self._eager(plan)

    def run_to_logits(self, plan: ScheduleBatch) -> torch.Tensor:
        """The same, output head included: float32 [l, V], valid until the next step."""
        graphs = self._graphs_for(plan)
        if graphs is None or not plan.num_tokens or not graphs[1].fits(plan):
            return self.logits(self.run(plan), logit_slots(plan))
        self._prepare(plan)
        return graphs[1].replay(plan)

    def logits(self, hidden: torch.Tensor, slots: Int32Array | None = None) -> torch.Tensor:
        """Output head. [n, hidden] -> float32 [n, V]; slots: of the rows' adapters."""
        return self.model.logits(hidden, self.ops, self._lora(slots)).float()

    def sampled_logits(self, hidden: torch.Tensor, plan: ScheduleBatch) -> torch.Tensor:
        """Of the sampled ones among a step's logit rows: float32 [s, V]."""
        index = torch.from_numpy(plan.sample_idx)
        return self.logits(self.ops.gather_rows(hidden, index), sample_slots(plan))

    def _lora(self, slots: Int32Array | None) -> LoraBatch | None:
        if slots is None:
            return None
        return self.ops.lora_batch(torch.from_numpy(slots), self._adapter_slots)

    def _graphs_for(self, plan: ScheduleBatch) -> Graphs | None:
        if plan.adapter_slots is None:
            return self.graphs
        if self._adapted is None and self._record is not None:
            self._adapted = self._record()
        return self._adapted

    def _prepare(self, plan: ScheduleBatch) -> None:
        for init in plan.inits:
            end = init.start + len(init.ids)
            self._table[init.row, init.start : end] = init.ids
        if plan.copies is not None:
            self.kv_pool.copy_slots(*plan.copies)
            if self.draft is not None:
                self.draft.pool.copy_slots(*plan.copies)

    def _eager(self, plan: ScheduleBatch) -> torch.Tensor:
        meta = attention_meta(plan, self._slot_table)
        ids, positions, out_slots = token_tensors(plan)
        if (plan.input_ids < 0).any():
            ids = self.ops.resolve_ids(ids, positions, meta, self.token_table)
        batch = ForwardBatch(
            input_ids=ids,
            positions=positions,
            out_slots=out_slots,
            logit_idx=torch.from_numpy(plan.logit_idx),
            backend=self._attention,
            plan=self._attention.plan(meta),
            previous=None if plan.previous is None else torch.from_numpy(plan.previous),
            lora=self._lora(token_slots(plan)),
            logit_lora=self._lora(logit_slots(plan)),
        )
        return forward_step(self.model, self.draft, batch, self.ops, self.kv_pool)
