"""Draft heads of the EAGLE family (Li et al., 2024 and 2025): one layer that reads the target.

The head's token at position j is made of the target's state at j - 1 and the embedding of token j;
what it gives is the state it expects at j, from which the next level goes on, and guesses of the
token at j + 1. Position 0 has no state before it, so it has no entry. Invariant: of a token that
the target has computed, keys and values alone are made, since nothing else is read of it later.

EAGLE and EAGLE-2: input = fc(embedding, state), the state is the target's final normed one, the
target's head reads the head's own state. EAGLE-3: state = fc(states after three layers), attention
reads the normed embedding and the normed state side by side, an own norm and head come behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import Ops
from branchline.kernels.stream import BlockEnd
from branchline.kernels.weights import BLOCK, DenseWeight, Weight, pick_rows, quantize_q4_1
from branchline.runtime.config.eagle_spec import EagleSpec, feature_layers
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.layers.embedding import Embedding, LMHead
from branchline.runtime.layers.linear import Linear
from branchline.runtime.layers.norm import RMSNorm
from branchline.runtime.layers.parameter import Slot, WeightDtype
from branchline.runtime.layers.rotary import rotary_table
from branchline.runtime.layers.split_linear import SplitLinear
from branchline.runtime.models.base import Tap
from branchline.runtime.models.blocks import GatedMLP, step
from branchline.runtime.models.draft import DraftEntries, DraftSizes, EntryAttention, Target


class FeatureTap:
    """The state vector that a head keeps of each token of one forward.

    Args:
        inputs: version 3: after which layer each share of fc reads. Empty: the final normed states.
        fc: the shares.
        last: index of the target's last layer.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        fc: SplitLinear,
        last: int,
    ) -> None:
        self.final = not inputs or last in inputs
        self.feature: torch.Tensor | None = None
        self._inputs = inputs
        self._fc = fc

    def layer(self, index: int, residual: torch.Tensor, ops: Ops) -> None:
        """Adds the layer's share, where it has one."""
        for share, wanted in enumerate(self._inputs):
            if wanted == index:
                if self.feature is None:
                    self.feature = self._fc.apply(share, residual, ops)
                else:
                    self.feature = self._fc.add(share, residual, self.feature, ops)

    def end(self, hidden: torch.Tensor) -> None:
        """Where no layer has a share, this is the state."""
        if not self._inputs:
            self.feature = hidden


class EagleHead:
    """A head and what it takes from its target. See `models.draft.DraftModel`.

    Args:
        spec: facts of the head.
        target: with its weights.
        vocabulary: the target's id of each of the head's, where it has fewer; in host memory.
        dtype: how matrices are kept.
        four_bit: round matrices to 4 bits, where the target's own are that narrow.

    Raises:
        ModelLoadError: the head was made for another model.
    """

    def __init__(
        self,
        spec: EagleSpec,
        target: Target,
        vocabulary: torch.Tensor | None,
        dtype: WeightDtype,
        *,
        four_bit: bool = False,
    ) -> None:
        _check(spec, target, vocabulary)
        self.spec = spec
        self.vocabulary = vocabulary
        layer, hidden = spec.layer, spec.layer.hidden
        third = spec.version == 3
        self._target, self._four_bit = target, four_bit
        self._inputs = feature_layers(spec, target.spec.num_layers) if third else ()
        width = hidden if third else spec.target_hidden
        self.sizes = DraftSizes(1, layer.kv_heads, layer.head_dim, width, first=1)
        widths = [spec.target_hidden] * len(self._inputs) if third else [hidden, spec.target_hidden]
        self.fc = SplitLinear(widths, [("fc", hidden)], bias=spec.fc_bias, dtype=dtype)
        prefix = "midlayer" if third else "layers.0"
        attention = f"{prefix}.self_attn"
        heads = [
            (f"{attention}.q_proj", layer.q_size),
            (f"{attention}.k_proj", layer.kv_size),
            (f"{attention}.v_proj", layer.kv_size),
        ]
        biased = "q" in layer.attention_bias
        self.qkv = SplitLinear([hidden] * (2 if third else 1), heads, bias=biased, dtype=dtype)
        self.output = Linear(
            layer.q_size,
            [(f"{attention}.o_proj", hidden)],
            bias="o" in layer.attention_bias,
            dtype=dtype,
        )
        self.mlp = GatedMLP(layer, f"{prefix}.mlp", dtype)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(name, hidden, layer.rms_eps)

        self.input_norm = norm(f"{prefix}.input_layernorm") if spec.input_norm else None
        self.state_norm = norm(f"{prefix}.hidden_norm") if third else None
        self.mlp_norm = norm(f"{prefix}.post_attention_layernorm")
        self.norm = norm("norm") if third else None
        self.embed = (
            Embedding("embed_tokens", layer.vocab_size, hidden, dtype)
            if spec.own_embedding
            else target.embed
        )
        self._own_head = (
            LMHead("lm_head", spec.draft_vocab, hidden, dtype) if spec.own_head else None
        )
        self.rotary = rotary_table(layer.rope, layer.head_dim, target.max_context)
        self._attention = EntryAttention()
        self._entries: list[Weight] = []
        self._joined = False
        self._head: Weight | None = None

    # -- the target's steps ------------------------------------------------------------------------

    def tap(self) -> FeatureTap:
        """Gathers the state vectors of one forward."""
        return FeatureTap(self._inputs, self.fc, self._target.spec.num_layers - 1)

    def observe(
        self, batch: ForwardBatch, ops: Ops, entries: DraftEntries, tap: Tap | None
    ) -> None:
        """State vectors first: a token's entry reads the one before it, maybe of the same step."""
        assert isinstance(tap, FeatureTap) and tap.feature is not None, "the target was listened to"
        ops.scatter_rows(tap.feature, batch.out_slots, entries.features)
        self._queries(batch, ops, entries, self._entries, skip=self.spec.layer.q_size)

    # -- guesses -----------------------------------------------------------------------------------

    def level(self, batch: ForwardBatch, ops: Ops, entries: DraftEntries) -> torch.Tensor:
        """See `DraftModel.level`; the state it expects at each token enters its slot."""
        q, residual = self._queries(batch, ops, entries, self.qkv.weights)
        batch = self._attention.over(batch)
        scale = self.spec.layer.head_dim**-0.5
        attended = self._attention.forward(ops, q, *entries.layer(0), batch.plan, scale)
        gated = step(
            attended, self.output, residual, self.mlp_norm, self.mlp.gate_up, ops, None, gated=True
        )
        assert self._head is not None, "the head was prepared"
        down = self.mlp.down
        if self.norm is None:
            states = ops.add(ops.linear(gated, down.weight, down.bias), residual)
            ops.scatter_rows(states, batch.out_slots, entries.features)
            return ops.head(states, self._head)
        if down.bias is None:
            norm = self.norm
            end = BlockEnd(gated, down.weight, residual, norm.weight, norm.eps)
            logits = ops.head_step(end, self._head)
        else:
            logits = ops.head(step(gated, down, residual, self.norm, None, ops, None), self._head)
        ops.scatter_rows(residual, batch.out_slots, entries.features)
        return logits

    def _queries(
        self,
        batch: ForwardBatch,
        ops: Ops,
        entries: DraftEntries,
        weights: list[Weight],
        skip: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(turned queries of the layer, the stream they are made from), when keys and values are in
        the pool; without the first `skip` rows of the matrix."""
        assert batch.previous is not None, "steps with drafts name the token before each"
        bias = None if self.qkv.bias is None else self.qkv.bias[skip:]
        into = HeadPlaces(self.rotary, batch.positions, *entries.layer(0), batch.out_slots)
        if self._joined:
            assert self.input_norm is not None and self.state_norm is not None, "EAGLE-3 has both"
            norms, state = ops.joined_norms(
                batch.input_ids,
                self.embed.weight,
                self.input_norm.weight,
                batch.previous,
                entries.features,
                self.state_norm.weight,
                self.input_norm.eps,
            )
            return ops.linear_heads(norms, weights[0], into, bias), state
        embedded = self.embed(batch.input_ids, ops)
        state = ops.gather_rows(entries.features, batch.previous)
        if self.state_norm is None:
            x = ops.add(self.fc.apply(0, embedded, ops), self.fc.apply(1, state, ops))
            if self.input_norm is None:
                return ops.linear_heads(x, weights[0], into, bias), x
            norm = self.input_norm
            return ops.norm_heads(x, norm.weight, norm.eps, weights[0], into, bias), x
        assert self.input_norm is not None, "EAGLE-3 has both norms"
        norm, other = self.input_norm, self.state_norm
        heads = ops.add(
            ops.norm_linear(embedded, norm.weight, norm.eps, weights[0], bias),
            ops.norm_linear(state, other.weight, other.eps, weights[1]),
        )
        return ops.write_heads(heads, into), state

    # -- weights -----------------------------------------------------------------------------------

    def slots(self) -> Iterator[Slot]:
        """All tensors of the head's own."""
        yield from self.fc.slots()
        yield from self.qkv.slots()
        yield from self.output.slots()
        yield from self.mlp.slots()
        for norm in (self.input_norm, self.state_norm, self.mlp_norm, self.norm):
            if norm is not None:
                yield from norm.slots()
        if self.spec.own_embedding:
            yield from self.embed.slots()
        if self._own_head is not None:
            yield from self._own_head.slots()

    def prepare(self, ops: Ops) -> None:
        """Cut what is read of computed tokens out of the matrices, take the target's head."""
        layer, device = self.spec.layer, self.mlp_norm.weight.device
        self.rotary = self.rotary.to(device)
        own = torch.arange(layer.q_size, layer.q_size + 2 * layer.kv_size)
        self._joined = self.spec.version == 3 and ops.joins_inputs
        if self._joined:
            self.qkv.weights = [_side_by_side(self.qkv.weights)]
        narrow = [self._narrow(weight) for weight in self.qkv.weights]
        self._entries = [ops.prepare(pick_rows(weight, own)) for weight in narrow]
        self.qkv.weights = [ops.prepare(weight) for weight in narrow]
        self.fc.weights = [ops.prepare(self._narrow(weight)) for weight in self.fc.weights]
        for linear in (self.output, self.mlp.gate_up, self.mlp.down):
            linear.weight = ops.prepare(self._narrow(linear.weight))
        if self.spec.own_embedding:
            self.embed.prepare(ops)
        if self._own_head is not None:
            self._own_head.weight = self._narrow(self._own_head.weight)
            self._own_head.prepare(ops)
            self._head = self._own_head.matrix
        elif self.vocabulary is None:
            self._head = self._target.head.matrix
        else:
            rows = pick_rows(self._target.head.matrix, self.vocabulary.long())
            if self._four_bit:
                rows = self._narrow(DenseWeight(rows.dequantize()))
            self._head = ops.prepare(rows)
        if self.vocabulary is not None:
            self.vocabulary = self.vocabulary.to(device)

    def memory(self) -> int:
        """Bytes of what is not the target's."""
        norms = (self.input_norm, self.state_norm, self.mlp_norm, self.norm)
        linears = (self.output, self.mlp.gate_up, self.mlp.down)
        total = self.fc.memory() + self.qkv.memory() + self.rotary.nbytes
        total += sum(linear.memory() for linear in linears)
        total += sum(norm.memory() for norm in norms if norm is not None)
        total += self.embed.memory() if self.spec.own_embedding else 0
        if self._head is not None and self._head is not self._target.head.matrix:
            total += self._head.nbytes
        return total

    def _narrow(self, weight: Weight) -> Weight:
        """The weight in 4 bits, where that was asked for and its rows are whole blocks."""
        if self._four_bit and isinstance(weight, DenseWeight) and weight.columns % BLOCK == 0:
            return quantize_q4_1(weight.tensor)
        return weight


def _side_by_side(weights: Sequence[Weight]) -> Weight:
    """One matrix over the inputs of several, side by side."""
    return DenseWeight(torch.cat([weight.dense for weight in weights], dim=1))


def _check(spec: EagleSpec, target: Target, vocabulary: torch.Tensor | None) -> None:
    facts, hidden = target.spec, spec.layer.hidden
    misfits = []
    if spec.target_hidden != facts.hidden:
        misfits.append(f"it reads states of {spec.target_hidden} numbers, not {facts.hidden}")
    if spec.version == 1 and hidden != facts.hidden:
        misfits.append(f"its states have {hidden} numbers, the model's {facts.hidden}")
    if not spec.own_embedding and hidden != facts.hidden:
        misfits.append(f"it has no embedding and is {hidden} wide, not {facts.hidden}")
    if not spec.own_head and hidden != facts.hidden:
        misfits.append(f"it has no output head and is {hidden} wide, not {facts.hidden}")
    if spec.layer.vocab_size != facts.vocab_size:
        misfits.append(f"its vocabulary is {spec.layer.vocab_size}, not {facts.vocab_size}")
    if vocabulary is None and spec.draft_vocab != facts.vocab_size:
        misfits.append(f"it proposes {spec.draft_vocab} ids and does not say which (no d2t)")
    if vocabulary is not None and (
        len(vocabulary) != spec.draft_vocab
        or int(vocabulary.min()) < 0
        or int(vocabulary.max()) >= facts.vocab_size
    ):
        misfits.append("its d2t names ids that the model does not have")
    if misfits:
        raise ModelLoadError(
            "The draft head was made for another model: " + "; ".join(misfits) + ".",
            hint="Pass the head that belongs to the model, or speculative=None.",
        )
