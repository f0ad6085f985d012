"""One model, its pool and its tables: a plan goes in, hidden states and logits come out.

Invariant: the result of a row does not depend on how its tokens were split into steps, on the rows
beside it, or on whether the step was replayed or run eagerly. Knows nothing of sampling.
"""

from __future__ import annotations

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionBackend
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.batch_inputs import attention_meta, token_tensors
from branchline.runtime.executor.cpu_graph import ModelGraph
from branchline.runtime.executor.draft_step import Draft, forward_step
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model


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
        graphs: (forward alone, forward and head); they replay steps that fit. Others, or all if
            it is None, run eagerly.
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
        graphs: tuple[ModelGraph, ModelGraph] | None = None,
    ) -> None:
        self.model = model
        self.ops = ops
        self.kv_pool = kv_pool
        self.token_table = token_table
        self._attention = attention
        self._slot_table = slot_table
        self.draft = draft
        self.graphs = graphs

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
        if self.graphs is not None and self.graphs[0].fits(plan):
            return self.graphs[0].replay(plan)
        return self._eager(plan)

    def run_to_logits(self, plan: ScheduleBatch) -> torch.Tensor:
        """The same, output head included: float32 [l, V], valid until the next step."""
        if self.graphs is None or not plan.num_tokens or not self.graphs[1].fits(plan):
            return self.logits(self.run(plan))
        self._prepare(plan)
        return self.graphs[1].replay(plan)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output head. [n, hidden] -> float32 [n, V]."""
        return self.model.logits(hidden, self.ops).float()

    def _prepare(self, plan: ScheduleBatch) -> None:
        for init in plan.inits:
            end = init.start + len(init.ids)
            self.token_table[init.row, init.start : end] = torch.from_numpy(init.ids)
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
        )
        return forward_step(self.model, self.draft, batch, self.ops, self.kv_pool)
