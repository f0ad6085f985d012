"""The parts that decoders of the Llama family share: attention, gated MLP, decoder layer.

Invariant: the residual stream is updated in place, and what lies between two blocks (projection,
addition, norm, next projection) is one op, which a backend may fuse. `lora` is None where no token
of the step has an adapter; the ops are then those of a model that knows no adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import Ops
from branchline.kernels.stream import BlockEnd
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.layers.linear import Linear
from branchline.runtime.layers.norm import RMSNorm
from branchline.runtime.layers.parameter import Slot, WeightDtype
from branchline.runtime.models.base import KVLayers


class Attention:
    """Grouped-query self-attention with rotary positions; q and k maybe normed per head.

    Args:
        spec: facts of the model.
        index: of the layer; its pool is `kv.layer(index)`.
        rotary: float32 [context, head_dim], shared by all layers.
        dtype: how matrices are kept.

    Attributes:
        rotary: the table, on the device of the weights.
    """

    def __init__(
        self, spec: ModelSpec, index: int, rotary: torch.Tensor, dtype: WeightDtype
    ) -> None:
        name = f"model.layers.{index}.self_attn"
        self._index = index
        self.rotary = rotary
        self._scale = spec.head_dim**-0.5
        self._eps = spec.rms_eps
        self.qkv = Linear(
            spec.hidden,
            [
                (f"{name}.q_proj", spec.q_size),
                (f"{name}.k_proj", spec.kv_size),
                (f"{name}.v_proj", spec.kv_size),
            ],
            bias="q" in spec.attention_bias,
            dtype=dtype,
        )
        self.output = Linear(
            spec.q_size,
            [(f"{name}.o_proj", spec.hidden)],
            bias="o" in spec.attention_bias,
            dtype=dtype,
        )
        self.q_norm, self.k_norm = (
            RMSNorm(f"{name}.{which}_norm", spec.head_dim, spec.rms_eps) if spec.qk_norm else None
            for which in ("q", "k")
        )

    def into(self, batch: ForwardBatch, kv: KVLayers) -> HeadPlaces:
        """How the heads of a step are turned, and where its keys and values go."""
        return HeadPlaces(
            self.rotary,
            batch.positions,
            *kv.layer(self._index),
            batch.out_slots,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            eps=self._eps,
            several=batch.out_slots.shape[0] > batch.plan.meta.rows.shape[0],
        )

    def queries(self, x: torch.Tensor, batch: ForwardBatch, ops: Ops, kv: KVLayers) -> torch.Tensor:
        """Of normed states [t, hidden], with adapters: turned [t, heads, d]; keys and values are
        written."""
        qkv, into = self.qkv, self.into(batch, kv)
        if batch.lora is None or qkv.lora is None:
            return ops.linear_heads(x, qkv.weight, into, qkv.bias)
        heads = ops.adapted_heads(x, qkv.weight, qkv.lora, batch.lora, qkv.bias)
        return ops.adapted_rope_write(heads, into)

    def forward(self, q: torch.Tensor, batch: ForwardBatch, ops: Ops, kv: KVLayers) -> torch.Tensor:
        """Attended, before the output projection: [t, q_size]. Of queries [t, heads, d], whose keys
        and values are written."""
        k_pool, v_pool = kv.layer(self._index)
        return batch.backend.forward(ops, q, k_pool, v_pool, batch.plan, self._scale)

    def norms(self) -> list[RMSNorm]:
        """The norms of q and k, if it has any."""
        return [norm for norm in (self.q_norm, self.k_norm) if norm is not None]

    def slots(self) -> Iterator[Slot]:
        """All tensors of the block."""
        yield from self.qkv.slots()
        yield from self.output.slots()
        for norm in self.norms():
            yield from norm.slots()


class GatedMLP:
    """down(silu(gate(x)) * up(x)).

    Args:
        name: of its tensors, without the projection.
    """

    def __init__(self, spec: ModelSpec, name: str, dtype: WeightDtype) -> None:
        self.gate_up = Linear(
            spec.hidden,
            [(f"{name}.gate_proj", spec.ffn), (f"{name}.up_proj", spec.ffn)],
            bias=spec.mlp_bias,
            dtype=dtype,
        )
        self.down = Linear(
            spec.ffn, [(f"{name}.down_proj", spec.hidden)], bias=spec.mlp_bias, dtype=dtype
        )

    def slots(self) -> Iterator[Slot]:
        """All tensors of the block."""
        yield from self.gate_up.slots()
        yield from self.down.slots()


class DecoderLayer:
    """norm, attention, norm, MLP, each added to the residual stream.

    A layer begins with its queries, when its keys and values are written, and ends with its gated
    values: the way from there to the next layer's queries is one op (`Ops.step_heads`).
    """

    def __init__(
        self, spec: ModelSpec, index: int, rotary: torch.Tensor, dtype: WeightDtype
    ) -> None:
        name = f"model.layers.{index}"
        self.input_norm = RMSNorm(f"{name}.input_layernorm", spec.hidden, spec.rms_eps)
        self.attention = Attention(spec, index, rotary, dtype)
        self.mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", spec.hidden, spec.rms_eps)
        self.mlp = GatedMLP(spec, f"{name}.mlp", dtype)

    def begin(
        self, residual: torch.Tensor, batch: ForwardBatch, ops: Ops, kv: KVLayers
    ) -> torch.Tensor:
        """Queries of the first layer."""
        norm, attention = self.input_norm, self.attention
        if batch.lora is not None:
            normed = ops.rms_norm(residual, norm.weight, norm.eps)
            return attention.queries(normed, batch, ops, kv)
        qkv, into = attention.qkv, attention.into(batch, kv)
        return ops.norm_heads(residual, norm.weight, norm.eps, qkv.weight, into, qkv.bias)

    def gated(
        self, attended: torch.Tensor, residual: torch.Tensor, ops: Ops, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Second half, up to the gate: each token by itself, so it may be given fewer. [t, F]."""
        output, gate_up = self.attention.output, self.mlp.gate_up
        return step(attended, output, residual, self.mlp_norm, gate_up, ops, lora, gated=True)

    def then(
        self,
        gated: torch.Tensor,
        residual: torch.Tensor,
        following: DecoderLayer,
        batch: ForwardBatch,
        ops: Ops,
        kv: KVLayers,
    ) -> torch.Tensor:
        """From this layer's gated values to the queries of the following one."""
        down, norm, attention = self.mlp.down, following.input_norm, following.attention
        if batch.lora is not None:
            normed = step(gated, down, residual, norm, None, ops, batch.lora)
            return attention.queries(normed, batch, ops, kv)
        end = BlockEnd(gated, down.weight, residual, norm.weight, norm.eps, down.bias)
        qkv = attention.qkv
        return ops.step_heads(end, qkv.weight, attention.into(batch, kv), qkv.bias)

    def end(
        self,
        gated: torch.Tensor,
        residual: torch.Tensor,
        norm: RMSNorm,
        ops: Ops,
        lora: LoraBatch | None,
    ) -> torch.Tensor:
        """From the last layer's gated values to the model's final norm: [t, hidden]."""
        return step(gated, self.mlp.down, residual, norm, None, ops, lora)

    def norms(self) -> list[RMSNorm]:
        """All norms of the layer."""
        return [self.input_norm, self.mlp_norm, *self.attention.norms()]

    def linears(self) -> tuple[list[Linear], list[Linear]]:
        """Matrices of the attention and of the MLP."""
        return [self.attention.qkv, self.attention.output], [self.mlp.gate_up, self.mlp.down]

    def slots(self) -> Iterator[Slot]:
        """All tensors of the layer."""
        for part in (self.input_norm, self.attention, self.mlp_norm, self.mlp):
            yield from part.slots()


def step(
    x: torch.Tensor,
    projection: Linear,
    residual: torch.Tensor,
    norm: RMSNorm,
    into: Linear | None,
    ops: Ops,
    lora: LoraBatch | None,
    *,
    gated: bool = False,
) -> torch.Tensor:
    """From one block to the next with the layers' own weights: `Ops.residual_step`, or with
    adapters `Ops.adapted_step`."""
    end = BlockEnd(x, projection.weight, residual, norm.weight, norm.eps, projection.bias)
    weight, bias = (None, None) if into is None else (into.weight, into.bias)
    if lora is None:
        return ops.residual_step(end, weight, gated=gated, bias=bias)
    return ops.adapted_step(
        end,
        weight,
        lora,
        projection.lora,
        weight_lora=None if into is None else into.lora,
        gated=gated,
        bias=bias,
    )
