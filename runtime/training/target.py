"""The target model as its head sees it: hidden states of whole sequences, by the engine's own ops.

Invariant: the states are those that the same weights give while serving on the same device, and
nothing of one run is kept for the next. Gradients do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import AttentionMeta
from branchline.runtime.attention.base import AttentionNeeds
from branchline.runtime.attention.registry import make_attention
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import UnsupportedFeature
from branchline.runtime.executor.build import load_model
from branchline.runtime.loading.load import LoadFormat, open_checkpoint
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.llama import Llama
from branchline.runtime.training.batches import sent

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


class States(NamedTuple):
    """Of t tokens, sequence after sequence.

    Attributes:
        layers: [t, 3 H], residual stream after each of the three layers.
        final: [t, H], the normed states that the output head multiplies.
    """

    layers: torch.Tensor
    final: torch.Tensor


class Target:
    """A model without gradients.

    Args:
        path: its files.
        device: bfloat16 weights on a CUDA device, float32 on a CPU.
        max_context: longest sequence it is given; None = the model's own.
        load_format: see `open_checkpoint`.

    Attributes:
        head: [V, H], rows that logits are products with.
        embedding: [V, H].
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        max_context: int | None = None,
        load_format: LoadFormat = "auto",
    ) -> None:
        on_cpu = device.type == "cpu"
        self.device = device
        self.dtype = torch.float32 if on_cpu else torch.bfloat16
        self._ops = make_ops("reference" if on_cpu else "auto", dtype=self.dtype, device=device)
        checkpoint = open_checkpoint(path, load_format)
        model = load_model(
            checkpoint,
            self._ops,
            max_context=max_context,
            dtype="float32" if on_cpu else "bfloat16",
            device=device,
        )
        checkpoint.close()
        if not isinstance(model, Llama):
            raise UnsupportedFeature(
                "heads are trained for models of the Llama family",
                value=checkpoint.spec.raw_architecture,
            )
        self._model = model
        self.spec = spec = model.spec
        self.embedding = model.embed.weight.dense
        self.head = self.embedding if spec.tie_embeddings else model.head.weight.dense
        needs = AttentionNeeds(spec.heads, spec.kv_heads, spec.head_dim, self.dtype, device)
        name = "torch_native" if on_cpu else "auto"
        self._attention = make_attention(name, needs)
        self._pool: KVPool | None = None

    @torch.no_grad()
    def run(self, sequences: Sequence[Ids], layers: Sequence[int]) -> States:
        """States of whole sequences.

        Args:
            sequences: ids of each, at least one.
            layers: ascending; none is the model's last.
        """
        batch = self._batch(sequences)
        pool = self._room_for(batch.input_ids.shape[0])
        model, ops = self._model, self._ops
        residual = model.embed(batch.input_ids, ops)
        kept: dict[int, torch.Tensor] = {}
        q = model.layers[0].begin(residual, batch, ops, pool)
        for index, (layer, following) in enumerate(pairwise(model.layers)):
            attended = layer.attention.forward(q, batch, ops, pool)
            gated = layer.gated(attended, residual, ops, None)
            q = layer.then(gated, residual, following, batch, ops, pool)
            if index in layers:
                kept[index] = residual.clone()  # the stream is updated in place
        last = model.layers[-1]
        attended = last.attention.forward(q, batch, ops, pool)
        gated = last.gated(attended, residual, ops, None)
        final = last.end(gated, residual, model.norm, ops, None)
        return States(torch.cat([kept[index] for index in layers], dim=-1), final)

    def _room_for(self, tokens: int) -> KVPool:
        if self._pool is None or self._pool.num_slots <= tokens:
            spec = self.spec
            self._pool = KVPool(
                spec.num_layers,
                tokens,
                1,
                spec.kv_heads,
                spec.head_dim,
                dtype=self.dtype,
                device=self.device,
            )
        return self._pool

    def _batch(self, sequences: Sequence[Ids]) -> ForwardBatch:
        """One prompt step of all sequences; token i of the step lies in slot i + 1."""
        lens = np.array([len(ids) for ids in sequences], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        columns = np.arange(lens.max(), dtype=np.int32)
        table = np.where(columns < lens[:, None], starts[:-1, None] + columns + 1, 0)
        positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lens])
        host_lens = torch.from_numpy(lens)

        def there(array: np.ndarray[Any, Any]) -> torch.Tensor:
            return sent(array, self.device)

        meta = AttentionMeta(
            rows=there(np.arange(len(lens), dtype=np.int32)),
            slot_table=there(table.astype(np.int32)),
            seq_lens=there(lens),
            extend_lens=there(lens),
            extend_start=there(starts),
            host_seq_lens=host_lens,
            host_extend_lens=host_lens,
        )
        total = int(starts[-1])
        return ForwardBatch(
            input_ids=there(np.concatenate(sequences).astype(np.int32)),
            positions=there(positions),
            out_slots=there(np.arange(1, total + 1, dtype=np.int32)),
            logit_idx=there(np.arange(total, dtype=np.int32)),
            backend=self._attention,
            plan=self._attention.plan(meta),
        )
