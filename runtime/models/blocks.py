"""The parts that decoders of the Llama family share: attention, gated MLP, decoder layer.

Invariant: the residual stream is updated in place, and each block returns what is still to be
added to it, so that the addition and the next norm are one op.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from branchline.kernels.ops import Ops
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
    """

    def __init__(
        self, spec: ModelSpec, index: int, rotary: torch.Tensor, dtype: WeightDtype
    ) -> None:
        name = f"model.layers.{index}.self_attn"
        self._index = index
        self._rotary = rotary
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

    def forward(self, x: torch.Tensor, batch: ForwardBatch, ops: Ops, kv: KVLayers) -> torch.Tensor:
        """x [t, hidden] -> attended values before the output projection, [t, q_size]."""
        k_pool, v_pool = kv.layer(self._index)
        q = ops.qk_norm_rope_write(
            self.qkv(x, ops),
            self._rotary,
            batch.positions,
            k_pool,
            v_pool,
            batch.out_slots,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            eps=self._eps,
        )
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
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: ModelSpec, index: int, dtype: WeightDtype) -> None:
        name = f"model.layers.{index}.mlp"
        self.gate_up = Linear(
            spec.hidden,
            [(f"{name}.gate_proj", spec.ffn), (f"{name}.up_proj", spec.ffn)],
            bias=spec.mlp_bias,
            dtype=dtype,
        )
        self.down = Linear(
            spec.ffn, [(f"{name}.down_proj", spec.hidden)], bias=spec.mlp_bias, dtype=dtype
        )

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """[t, hidden] -> [t, hidden]."""
        return self.down(ops.silu_mul(self.gate_up(x, ops)), ops)

    def slots(self) -> Iterator[Slot]:
        """All tensors of the block."""
        yield from self.gate_up.slots()
        yield from self.down.slots()


class DecoderLayer:
    """norm, attention, norm, MLP, each added to the residual stream."""

    def __init__(
        self, spec: ModelSpec, index: int, rotary: torch.Tensor, dtype: WeightDtype
    ) -> None:
        name = f"model.layers.{index}"
        self.input_norm = RMSNorm(f"{name}.input_layernorm", spec.hidden, spec.rms_eps)
        self.attention = Attention(spec, index, rotary, dtype)
        self.mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", spec.hidden, spec.rms_eps)
        self.mlp = GatedMLP(spec, index, dtype)

    def attend(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor,
        batch: ForwardBatch,
        ops: Ops,
        kv: KVLayers,
    ) -> torch.Tensor:
        """First half: attended values [t, q_size]; adds x, the layer before's output, if any."""
        if x is None:
            normed = self.input_norm(residual, ops)
        else:
            normed = self.input_norm.add(x, residual, ops)
        return self.attention.forward(normed, batch, ops, kv)

    def finish(self, attended: torch.Tensor, residual: torch.Tensor, ops: Ops) -> torch.Tensor:
        """Second half: each token by itself, so it may be given fewer tokens. [t, hidden]."""
        normed = self.mlp_norm.add(self.attention.output(attended, ops), residual, ops)
        return self.mlp.forward(normed, ops)

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
