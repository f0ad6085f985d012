"""A model's forward recorded once and replayed natively for every step that fits.

Invariant: a replay gives bit for bit what the same ops give eagerly. Knows nothing of requests.
"""

from __future__ import annotations

import torch

from branchline.kernels.cpu.binding import Runner
from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionBackend
from branchline.runtime.core.batch import ScheduleBatch
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.draft_step import Draft, forward_step
from branchline.runtime.executor.lora_inputs import token_slots
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model


class ModelGraph:
    """Replays `model.forward`.

    Args:
        model: with its weights.
        attention: must support `AttentionNeeds.graph`.
        kv_pool: read and written where it lies.
        slot_table: int32 [max_rows, width], read where it lies.
        token_table: int32 [max_rows, width], likewise.
        runner: native threads.
        max_tokens, max_rows: of a step.
        draft: a draft model that keeps something of every token, if there is one.
        head: record the output head too, for steps with at most `max_rows` logit rows.
        adapted: for steps with adapters, and for those alone.
    """

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        kv_pool: KVPool,
        slot_table: torch.Tensor,
        token_table: torch.Tensor,
        *,
        draft: Draft | None = None,
        runner: Runner,
        max_tokens: int,
        max_rows: int,
        head: bool,
        adapted: bool = False,
    ) -> None:
        rows = min(max_rows, max_tokens)
        limits = GraphLimits(
            tokens=max_tokens,
            rows=rows,
            logit_rows=rows if head else max_tokens,
            tree_words=max_tokens * -(-max_tokens // 64),
        )
        self._graph = CpuGraph(runner, limits, slot_table, token_table)
        self._attention = attention
        inputs = self._graph.inputs
        self._plan = attention.init_graph(inputs.meta)
        self._ids = inputs.input_ids.numpy()
        self._positions = inputs.positions.numpy()
        self._slots = inputs.out_slots.numpy()
        self._previous = inputs.previous.numpy()
        self._logit_index = inputs.logit_index.numpy()
        meta = inputs.meta
        self._rows = meta.rows.numpy()
        self._seq_lens = meta.seq_lens.numpy()
        self._extend_lens = meta.extend_lens.numpy()
        self._extend_start = meta.extend_start.numpy()
        assert meta.tree_lens is not None, "the graph was made for trees"
        assert meta.tree_offsets is not None and meta.tree_words is not None
        self._tree_lens = meta.tree_lens.numpy()
        self._tree_offsets = meta.tree_offsets.numpy()
        self._tree_words = meta.tree_words.numpy()
        self._lora_slots = inputs.lora.slots.numpy()
        self._logit_slots = inputs.logit_lora.slots.numpy()

        def forward(ops: Ops, traced: GraphInputs) -> torch.Tensor:
            batch = ForwardBatch(
                input_ids=traced.input_ids,
                positions=traced.positions,
                out_slots=traced.out_slots,
                logit_idx=traced.logit_index,
                backend=attention,
                plan=self._plan,
                previous=traced.previous,
                lora=traced.lora if adapted else None,
                logit_lora=traced.logit_lora if adapted else None,
            )
            hidden = forward_step(model, draft, batch, ops, kv_pool)
            return model.logits(hidden, ops, batch.logit_lora) if head else hidden

        self._graph.capture(forward)

    @property
    def nbytes(self) -> int:
        """Bytes of the activations' buffers; resident once a step was that large."""
        return self._graph.arena_bytes

    def fits(self, plan: ScheduleBatch) -> bool:
        """Whether the step is within the limits it was recorded for."""
        limits = self._graph.limits
        words = 0 if plan.tree is None else len(plan.tree.words)
        return (
            plan.num_tokens <= limits.tokens
            and len(plan.rows) <= limits.rows
            and len(plan.logit_idx) <= limits.logit_rows
            and words <= limits.tree_words
        )

    def replay(self, plan: ScheduleBatch) -> torch.Tensor:
        """Run a step that fits.

        Returns:
            float32 [l, hidden], or [l, V] with the head; overwritten by the next replay.
        """
        t, b, n = plan.num_tokens, len(plan.rows), len(plan.logit_idx)
        self._ids[:t] = plan.input_ids
        self._positions[:t] = plan.positions
        self._slots[:t] = plan.out_slots
        if plan.previous is not None:
            self._previous[:t] = plan.previous
        self._logit_index[:n] = plan.logit_idx
        self._rows[:b] = plan.rows
        self._seq_lens[:b] = plan.seq_lens
        self._extend_lens[:b] = plan.extend_lens
        self._extend_start[: b + 1] = plan.extend_start
        slots = token_slots(plan)
        if slots is not None:
            self._lora_slots[:t] = slots
            self._logit_slots[:n] = slots[plan.logit_idx]
        if plan.tree is None:
            self._tree_lens[:b] = 0
        else:
            self._tree_lens[:b] = plan.tree.counts
            self._tree_offsets[:b] = plan.tree.offsets
            self._tree_words[: len(plan.tree.words)] = plan.tree.words.view(self._tree_words.dtype)
        self._attention.plan_replay(self._plan, self._graph.inputs.meta)
        self._graph.replay(t, b, n)
        return self._graph.outputs[0][:n]
