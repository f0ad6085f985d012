"""What an attention backend is: six methods, called in this order.

`supports` once, when an engine is put together. Then for each step `plan`, `begin`, and for each
layer `forward`. A runner that replays a recorded step calls `init_graph` once instead, records
`begin` and `forward`, and calls `plan_replay` for each step. Invariant: a backend keeps nothing of
a step outside its plan. It knows nothing of models, requests or pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from branchline.kernels.ops import AttentionMeta, Ops


class Support(NamedTuple):
    """Whether a backend can do it, and if not, why not (one clause)."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """What a model and a pool ask of a backend.

    Attributes:
        heads, kv_heads, head_dim: of the model.
        kv_dtype: of the pool.
        device: of queries and pool.
        graph: `forward` will be recorded and replayed.
        deterministic: a token's result must not depend on the rest of the step.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: torch.dtype
    device: torch.device
    graph: bool = False
    deterministic: bool = False


class AttentionPlan(Protocol):
    """A backend's view of one step, or of every step that one graph replays."""

    @property
    def meta(self) -> AttentionMeta:
        """The step it was made of."""


class AttentionBackend(Protocol):
    """Computes attention of a step's queries over the slots of their rows."""

    @property
    def name(self) -> str:
        """Its name in the registry."""

    @property
    def finds_trunks(self) -> bool:
        """Recorded steps of rows of one token find out which slots the rows begin with in common;
        what they find changes how long they take and not what they give."""

    @property
    def most_planned_keys(self) -> int:
        """Keys of all rows at most of a recorded step that is planned on the host; 0 = a recorded
        step is never planned there."""

    def supports(self, needs: AttentionNeeds) -> Support:
        """Whether `forward` gives right results for such a model and pool."""

    def plan(self, meta: AttentionMeta) -> AttentionPlan:
        """Prepare one step; the plan serves all layers and is not kept by the backend."""

    def begin(self, plan: AttentionPlan) -> None:
        """Derive on the device what all layers need of the step; under capture this is recorded.

        The step's metadata and the tables are in place by then.
        """

    def forward(
        self,
        ops: Ops,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """Attention of one layer; the step's own keys and values are in the pools already.

        Args:
            ops: the ops the model runs with; under capture they record.
            q: [t, heads, head_dim].
            k_pool, v_pool: [slots, kv_heads, head_dim].
            plan: of `plan` or `init_graph`.
            scale: factor of the scores.

        Returns:
            [t, heads * head_dim] in q's dtype.
        """

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> AttentionPlan:
        """A plan over buffers that stay in place; `meta` has the sizes of the largest step.

        Args:
            trunks: rows may share the slots they begin with. False is the runner's word that none
                do, in any step that is replayed.
            planned: plan each step on the host, where `most_planned_keys` says that it can be.
        """

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Make a plan of `init_graph` describe this step, in place."""


@dataclass(slots=True)
class OpsPlan:
    """The step's metadata, as `ops.paged_attention` takes it."""

    meta: AttentionMeta


class OpsAttention:
    """What backends have in common whose attention is `ops.paged_attention`.

    Their plan is the step's metadata and no more; a subclass says what it supports.
    """

    finds_trunks = False
    most_planned_keys = 0

    def plan(self, meta: AttentionMeta) -> OpsPlan:
        """As for a graph that replays this step alone."""
        plan = self.init_graph(meta)
        self.plan_replay(plan, meta)
        return plan

    def begin(self, plan: AttentionPlan) -> None:
        """Nothing is derived."""

    def forward(
        self,
        ops: Ops,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        return ops.paged_attention(q, k_pool, v_pool, plan.meta, scale)

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> OpsPlan:
        """Wraps the graph's own buffers."""
        return OpsPlan(meta)

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Nothing is derived from the metadata, and the graph copies it to its own buffers."""
