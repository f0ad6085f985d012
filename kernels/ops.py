"""The ops of a forward pass: one typed method each, the same for every backend.

Invariant (a law of the project): the result for one row of any op depends on that row's operands
alone. It is bitwise the same whatever the number of rows, the batch mates, the split of a prompt
into chunks, the number of threads, and whether the op runs eagerly or in a recorded graph.
On a GPU this holds in deterministic mode; elsewhere kernels may be chosen by the number of rows.

A model is handed an `Ops` object and calls nothing else on its activations, so the same model code
runs eagerly (`dispatch.make_ops`) and under capture (`cpu.graph.CpuGraph`). The ops know nothing of
requests, schedulers or layers. Symbols: t = tokens of this step, b = rows of this step, n = rows
that need logits, H = hidden size, V = vocabulary, d = head size, hq and hkv = query and KV heads.
"""

from abc import ABC, abstractmethod

import torch

from branchline.kernels.attention_meta import AttentionMeta
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraBatch, LoraOps, LoraProduct, LoraWeight
from branchline.kernels.stream import BlockEnd
from branchline.kernels.weights import Weight

__all__ = ["AttentionMeta", "Ops"]

# size: Ops: the interface of a backend, one method for each op


class Ops(LoraOps, ABC):
    """What a model may do to its activations. Outputs are new tensors unless said otherwise.

    Attributes:
        deterministic: the invariant above holds, so nothing else of a step may break it.
        dtype: of activations.
        joins_inputs: one product of two inputs side by side (`joined_norms`) is faster than two
            that are added.
    """

    deterministic: bool = True
    joins_inputs: bool = False
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def prepare(self, weight: Weight) -> Weight:
        """The weight in the layout that this backend multiplies fastest.

        Called once per weight at load, after fusing; the caller keeps the result in place of the
        argument. The reference returns its argument; the native CPU backend copies dense weights
        into panels and refuses dense weights that were not prepared.
        """

    @abstractmethod
    def resolve_ids(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        meta: AttentionMeta,
        token_table: torch.Tensor,
    ) -> torch.Tensor:
        """Replace each id -1 by `token_table[row of the token, its index in the row]`.

        Lets a step be planned before the previous step's sample is known.

        Args:
            ids: [t] int32.
            positions: [t] int64, index of each token in its row.
            meta: gives the row of each token.
            token_table: [max_rows, max_ctx] int32.

        Returns:
            [t] int32, none negative.
        """

    @abstractmethod
    def embedding(self, ids: torch.Tensor, weight: Weight) -> torch.Tensor:
        """Rows of the embedding table. ids [t] int32 in [0, V); weight [V, H] -> [t, H]."""

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019). x [t, H], weight [H]."""

    @abstractmethod
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`residual += x` in place, then the RMS norm of `residual`. x, residual [t, H]."""

    def joined_norms(
        self,
        ids: torch.Tensor,
        table: Weight,
        norm: torch.Tensor,
        index: torch.Tensor,
        states: torch.Tensor,
        state_norm: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a draft head reads of tokens: norms of their embeddings and of states before them.

        Args:
            ids: [t] int32 in [0, V).
            table: [V, H] of embeddings.
            norm: [H] weight of the embeddings' norm.
            index: [t] int32 in [0, n), of each token's state.
            states: [n, H].
            state_norm: [H] weight of the states' norm.
            eps: of both.

        Returns:
            Both norms side by side [t, 2H], and the states [t, H].
        """
        state = self.gather_rows(states, index)
        embedded = self.embedding(ids, table)
        norms = self.rms_norm(embedded, norm, eps), self.rms_norm(state, state_norm, eps)
        return torch.cat(norms, dim=1), state

    @abstractmethod
    def linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias. x [t, K], weight [N, K], bias [N] float32 -> [t, N] in x's dtype.

        Quantized weights take x rounded per block of 32 to 8 bits (scale = max|x| / 127) in the
        native backend; the reference multiplies by the dequantized weight.
        """

    def linear_add(self, x: torch.Tensor, weight: Weight, y: torch.Tensor) -> torch.Tensor:
        """y + linear(x). x [t, K], weight [N, K], y [t, N], whose memory the result may take."""
        return self.add(y, self.linear(x, weight))

    def head(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """linear(x, weight) in float32 if the backend's sums are: logits [t, N].

        Logits that were rounded to bfloat16 are equal too often to be ranked.
        """
        return self.linear(x, weight)

    def norm_linear(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: Weight,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """linear(rms_norm(x)); one op so that a backend can read x once. [t, K] -> [t, N]."""
        return self.linear(self.rms_norm(x, norm, eps), weight, bias)

    def gated_linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """silu_mul(linear(x)) for a weight that holds gate and up. [t, K] -> [t, N / 2]."""
        return self.silu_mul(self.linear(x, weight, bias))

    def residual_step(
        self,
        end: BlockEnd,
        weight: Weight | None,
        *,
        gated: bool = False,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """From the end of one block to the start of the next, through the residual stream.

        What `BlockEnd` says, then `weight`. A backend may fuse what it likes; this is what they all
        compute.

        Args:
            end: of the block; its residual stream is changed.
            weight: [N, H]; None = the result is the norm itself.
            gated: `weight` holds gate and up, the result is silu_mul of the product.
            bias: [N] float32.

        Returns:
            [t, N], or with `gated` [t, N / 2], or without `weight` [t, H].
        """
        y = self.linear(end.x, end.projection, end.bias)
        normed = self.add_rms_norm(y, end.residual, end.norm, end.eps)
        return self._begun(normed, weight, bias, gated)

    def _begun(
        self, normed: torch.Tensor, weight: Weight | None, bias: torch.Tensor | None, gated: bool
    ) -> torch.Tensor:
        """The first product of a block, if there is one."""
        if weight is None:
            return normed
        return (self.gated_linear if gated else self.linear)(normed, weight, bias)

    def head_step(self, end: BlockEnd, head: Weight) -> torch.Tensor:
        """The logits behind a last block: `residual_step` up to the norm, then `head`.

        head [N, H] -> [t, N].
        """
        return self.head(self.residual_step(end, None), head)

    @abstractmethod
    def write_heads(self, qkv: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
        """Optional per-head RMS norm and rotary embedding of q and k; k and v go to the pools.

        Rotary embedding (Su et al., 2021) of the half-split kind: dimension i turns with i + d/2.

        Args:
            qkv: [t, (hq + 2 * hkv) * d], query, key and value heads one after the other.
            into: norms, angles and places; its pools are changed.

        Returns:
            [t, hq, d], the queries.
        """

    def linear_heads(
        self, x: torch.Tensor, weight: Weight, into: HeadPlaces, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`write_heads` of linear(x); one op so that a backend can end the product with it.

        x [t, K], weight [(hq + 2 * hkv) * d, K] -> queries [t, hq, d].
        """
        return self.write_heads(self.linear(x, weight, bias), into)

    def norm_heads(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: Weight,
        into: HeadPlaces,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`linear_heads` of rms_norm(x)."""
        return self.write_heads(self.norm_linear(x, norm, eps, weight, bias), into)

    def step_heads(
        self,
        end: BlockEnd,
        weight: Weight,
        into: HeadPlaces,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The way into the heads of the next layer: `residual_step`, then `write_heads`.

        weight [(hq + 2 * hkv) * d, H] -> queries [t, hq, d].
        """
        return self.write_heads(self.residual_step(end, weight, bias=bias), into)

    def adapted_linear(
        self,
        x: torch.Tensor,
        weight: Weight,
        weight_lora: LoraWeight,
        lora: LoraBatch,
        bias: torch.Tensor | None = None,
        *,
        gated: bool = False,
    ) -> torch.Tensor:
        """linear(x) with adapters, one op so that a backend can end the product with them.

        Args:
            x: [t, K].
            weight: [N, K].
            weight_lora: of the layer.
            lora: slots of the t tokens.
            bias: [N] float32.
            gated: `weight` holds gate and up, the result is silu_mul of the sum: [t, N / 2].

        Returns:
            [t, N]; rows of the base model get the bits of `linear` where the backend is
            deterministic.
        """
        y = self.linear(x, weight, bias)
        self.lora_add(y, x, weight_lora, lora)
        return self.silu_mul(y) if gated else y

    def adapted_heads(
        self,
        x: torch.Tensor,
        weight: Weight,
        weight_lora: LoraWeight,
        lora: LoraBatch,
        bias: torch.Tensor | None = None,
    ) -> LoraProduct:
        """`adapted_linear` of queries, keys and values; for `adapted_rope_write`, which may be left
        some of the work.

        Args:
            weight_lora: of three parts.
        """
        return LoraProduct(self.adapted_linear(x, weight, weight_lora, lora, bias))

    def adapted_rope_write(self, heads: LoraProduct, into: HeadPlaces) -> torch.Tensor:
        """`write_heads` of what `adapted_heads` of the same ops has made."""
        return self.write_heads(heads.y, into)

    def adapted_step(
        self,
        end: BlockEnd,
        weight: Weight | None,
        lora: LoraBatch,
        projection_lora: LoraWeight | None,
        *,
        weight_lora: LoraWeight | None = None,
        gated: bool = False,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`residual_step` with adapters on both products.

        Args:
            lora: slots of the t tokens.
            projection_lora: of the block's projection; None = no adapter changes it.
            weight_lora: of `weight`, applied to the norm's result, before the gate.

        Other arguments and the result are those of `residual_step`; rows of the base model get the
        same bits as there where the backend is deterministic.
        """
        if projection_lora is None:
            y = self.linear(end.x, end.projection, end.bias)
        else:
            y = self.adapted_linear(end.x, end.projection, projection_lora, lora, end.bias)
        normed = self.add_rms_norm(y, end.residual, end.norm, end.eps)
        if weight is None or weight_lora is None:
            return self._begun(normed, weight, bias, gated)
        return self.adapted_linear(normed, weight, weight_lora, lora, bias, gated=gated)

    @abstractmethod
    def paged_attention(
        self,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        meta: AttentionMeta,
        scale: float,
    ) -> torch.Tensor:
        """softmax(scale * q k^T) v of every token over the tokens of its row that it may see.

        Rows with any number of tokens mix in one call without padding. Head h of q uses KV head
        `h // (hq // hkv)`. The step's own k and v must be in the pools already.

        Args:
            q: [t, hq, d].
            k_pool: [num_slots, hkv, d] float32 or bfloat16.
            v_pool: like k_pool.
            meta: rows, lengths, slots and tree masks of the step.
            scale: factor of the scores, usually d ** -0.5.

        Returns:
            [t, hq * d].
        """

    @abstractmethod
    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up (Shazeer, 2020). gate_up [t, 2F], gate first -> [t, F]."""

    @abstractmethod
    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x + y. Both [t, H] -> [t, H]."""

    @abstractmethod
    def gather_rows(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """x[index]. x [t, H], index [n] int32 in [0, t) -> [n, H]."""

    @abstractmethod
    def scatter_rows(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        """out[index] = x, in out's dtype. x [t, H], index [t] int32 in [0, n), out [n, H] changed.

        Where an index is named twice, each element is that of one of its rows, not all of the same
        one: nobody waits for a row to be whole.
        """

    @abstractmethod
    def apply_bitmask(
        self, logits: torch.Tensor, bitmask: torch.Tensor, need: torch.Tensor
    ) -> None:
        """Set logits of forbidden tokens to -inf, in place, in the rows where `need` is true.

        Args:
            logits: [n, V] float32, changed in place.
            bitmask: [n, ceil(V / 32)] int32; bit v % 32 of word v // 32 set = token v allowed.
            need: [n] bool; rows with False stay as they are.
        """

    @abstractmethod
    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """Index of the largest logit of each row, the first of equals. [n, V] -> [n] int32."""

    @abstractmethod
    def top_rows(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest logits of each row, largest first. [n, V] -> values [n, k] float32 and
        their indices [n, k] int32; of equal ones any. No NaN; k in [1, V], small."""

    @abstractmethod
    def logsumexp_rows(self, logits: torch.Tensor) -> torch.Tensor:
        """log(sum(exp(logits))) of each row. [n, V] -> [n] float32; -inf if all are -inf."""

    def copy_slots(self, buffer: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy slots of a pool in all its planes; every source is read before a target is written.

        Args:
            buffer: [..., num_slots, hkv, d].
            source: [n] int32 or int64.
            target: [n] likewise, distinct.
        """
        dim = buffer.dim() - 3
        buffer.index_copy_(dim, target.long(), buffer.index_select(dim, source.long()))
