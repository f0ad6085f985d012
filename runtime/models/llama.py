"""Llama (Touvron et al., 2023) and everything shaped like it: SmolLM, Mistral, Qwen.

Invariant: only tokens whose logits are wanted pass the last MLP, the final norm and the head,
unless a tap wants the final states of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise

import torch

from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import Ops
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.layers.embedding import Embedding, LMHead
from branchline.runtime.layers.lora_site import LoraSite
from branchline.runtime.layers.norm import RMSNorm
from branchline.runtime.layers.parameter import Slot, WeightDtype, stored_as
from branchline.runtime.layers.rotary import rotary_table
from branchline.runtime.models.base import KVLayers, MemoryReport, Tap
from branchline.runtime.models.blocks import DecoderLayer


class Llama:
    """A decoder of identical layers. See `models.base.Model`.

    Args:
        spec: facts of the model.
        max_context: longest sequence it will be asked for; sizes the rotary table.
        dtype: how matrices are kept.
    """

    def __init__(self, spec: ModelSpec, max_context: int, dtype: WeightDtype = "auto") -> None:
        if spec.activation != "silu":
            raise ModelLoadError(
                "Only gated MLPs with silu are supported.", value=f"activation={spec.activation}"
            )
        self.spec = spec
        self.max_context = max_context
        self.rotary = rotary_table(spec.rope, spec.head_dim, max_context)
        self.embed = Embedding("model.embed_tokens", spec.vocab_size, spec.hidden, dtype)
        self.layers = [DecoderLayer(spec, i, self.rotary, dtype) for i in range(spec.num_layers)]
        self.norm = RMSNorm("model.norm", spec.hidden, spec.rms_eps)
        tied = self.embed if spec.tie_embeddings else None
        self.head = LMHead("lm_head", spec.vocab_size, spec.hidden, dtype, tied=tied)

    def forward(
        self, batch: ForwardBatch, ops: Ops, kv: KVLayers, tap: Tap | None = None
    ) -> torch.Tensor:
        """[l, hidden], normed."""
        lora = batch.lora
        residual = self.embed(batch.input_ids, ops, lora)
        q = self.layers[0].begin(residual, batch, ops, kv)
        for index, (layer, following) in enumerate(pairwise(self.layers)):
            attended = layer.attention.forward(q, batch, ops, kv)
            gated = layer.gated(attended, residual, ops, lora)
            q = layer.then(gated, residual, following, batch, ops, kv)
            if tap is not None:
                tap.layer(index, residual, ops)
        last = self.layers[-1]
        attended = last.attention.forward(q, batch, ops, kv)
        if tap is not None and tap.final:
            gated = last.gated(attended, residual, ops, lora)
            hidden = last.end(gated, residual, self.norm, ops, lora)
            tap.layer(len(self.layers) - 1, residual, ops)
            tap.end(hidden)
            return ops.gather_rows(hidden, batch.logit_idx)
        residual = ops.gather_rows(residual, batch.logit_idx)
        attended = ops.gather_rows(attended, batch.logit_idx)
        lora = batch.logit_lora
        gated = last.gated(attended, residual, ops, lora)
        return last.end(gated, residual, self.norm, ops, lora)

    def logits(self, hidden: torch.Tensor, ops: Ops, lora: LoraBatch | None = None) -> torch.Tensor:
        """[n, hidden] -> [n, vocab]."""
        return self.head(hidden, ops, lora)

    def slots(self) -> Iterator[Slot]:
        """All tensors of the model."""
        yield from self.embed.slots()
        for layer in self.layers:
            yield from layer.slots()
        yield from self.norm.slots()
        yield from self.head.slots()

    def lora_sites(self) -> Iterator[LoraSite]:
        """Embedding, the layers' projections, head."""
        yield self.embed.site()
        for layer in self.layers:
            yield from (linear.site() for linear in chain(*layer.linears()))
        yield self.head.site()

    def prepare(self, ops: Ops) -> None:
        """Once, after all slots are filled."""
        self.rotary = self.rotary.to(self.norm.weight.device)
        for layer in self.layers:
            layer.attention.rotary = self.rotary
        self.embed.prepare(ops)
        for layer in self.layers:
            for linear in chain(*layer.linears()):
                linear.prepare(ops)
        self.head.prepare(ops)

    def memory_report(self) -> MemoryReport:
        """What its weights take now."""
        attention = [lin for layer in self.layers for lin in layer.linears()[0]]
        mlp = [lin for layer in self.layers for lin in layer.linears()[1]]
        norms = [self.norm, *(norm for layer in self.layers for norm in layer.norms())]
        kinds: Counter[str] = Counter()
        for weight in [self.embed.weight, *(lin.weight for lin in attention + mlp)]:
            kinds[stored_as(weight)] += weight.nbytes
        if self.head.memory():
            kinds[stored_as(self.head.weight)] += self.head.memory()
        return MemoryReport(
            embedding=self.embed.memory(),
            head=self.head.memory(),
            attention=sum(lin.memory() for lin in attention),
            mlp=sum(lin.memory() for lin in mlp),
            norms=sum(norm.memory() for norm in norms),
            tables=self.rotary.nbytes,
            kinds=dict(kinds),
        )
