"""The ops of the native CPU backend: checks operands, then hands addresses to the library.

Invariant: eager and recorded ops are built by the same code (`NativeOpsBase`); the two differ only
in where outputs live and whether a descriptor runs now or is kept. Activations are float32 and
contiguous. Operand order of each kind is stated beside its descriptor here and read in library.cpp.
"""

from abc import abstractmethod
from itertools import accumulate

import torch

from branchline.kernels.cpu.binding import Format, Kind, NativeOp, Runner
from branchline.kernels.cpu.memory import HugeArena
from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.kernels.weights import DenseWeight, PanelWeight, Q4_1Weight, Q8_0Weight, Weight

__all__ = ["NativeOps", "NativeOpsBase"]

_MAX_HEAD = 1024
_MAX_GROUP = 64
_MAX_TOP = 64
_MAX_RANK = 512
_POOL_DTYPES = (torch.float32, torch.bfloat16)


def _check(name: str, x: torch.Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """Raise unless x has the dtype, is contiguous on the CPU and fits the shape (None = any)."""
    got = tuple(x.shape)
    fits = len(got) == len(shape) and all(
        w is None or g == w for g, w in zip(got, shape, strict=True)
    )
    if x.dtype != dtype or not fits or x.device.type != "cpu" or not x.is_contiguous():
        raise KernelInputError(
            f"{name} must be a contiguous {dtype} CPU tensor of shape {shape}, got {x.dtype} "
            f"{got} on {x.device}"
        )


def _weight_format(weight: Weight) -> tuple[Format, torch.Tensor]:
    if isinstance(weight, Q4_1Weight):
        return Format.Q4_1, weight.packed
    if isinstance(weight, Q8_0Weight):
        return Format.Q8_0, weight.packed
    if isinstance(weight, PanelWeight):
        bf16 = weight.panels.dtype == torch.bfloat16
        return (Format.BF16 if bf16 else Format.F32), weight.panels
    raise KernelInputError(
        f"the native CPU backend cannot multiply by a {type(weight).__name__} of shape "
        f"{weight.shape}; keep the result of ops.prepare(weight) instead"
    )


def _check_pools(k_pool: torch.Tensor, v_pool: torch.Tensor) -> tuple[int, int, int]:
    """(hkv, d, 1 if bfloat16 else 0) of a pair of pools."""
    if k_pool.dim() != 3 or k_pool.dtype not in _POOL_DTYPES:
        raise KernelInputError(
            f"k_pool must be float32 or bfloat16 [num_slots, hkv, d], got {k_pool.dtype} "
            f"{tuple(k_pool.shape)}"
        )
    slots, hkv, d = k_pool.shape
    _check("k_pool", k_pool, k_pool.dtype, slots, hkv, d)
    _check("v_pool", v_pool, k_pool.dtype, slots, hkv, d)
    if d % 2 or d > _MAX_HEAD:
        raise KernelInputError(f"the head size must be even and at most {_MAX_HEAD}, got {d}")
    return hkv, d, int(k_pool.dtype == torch.bfloat16)


def _check_lora(weight: LoraWeight, n: int) -> tuple[int, ...]:
    """(N, R, parts, format, strides of a slot in a, b and ranks) of adapters of N outputs."""
    a, b, ranks, scales = weight.a, weight.b, weight.ranks, weight.scales
    slots, rank, parts = len(a), a.shape[-2] if a.dim() == 4 else a.shape[-1], len(weight.parts)
    fits = (
        a.dtype in (torch.float32, torch.bfloat16)
        and b.dtype == a.dtype
        and b.shape == (slots, rank, n)
        and n == sum(weight.parts)
        and ranks.shape == scales.shape == (slots, parts)
        and (ranks.dtype, scales.dtype) == (torch.int32, torch.float32)
        and ranks.stride() == scales.stride()
        and all(x.device.type == "cpu" and x[0].is_contiguous() for x in (a, b, ranks, scales))
    )
    if not fits or rank > _MAX_RANK or max(a.stride(0), b.stride(0)) >= 2**31:
        raise KernelInputError(
            f"adapters of {n} outputs need float32 or bfloat16 CPU tensors a [S, P, R, K] or "
            f"[S, V, R], b [S, R, {n}], int32 ranks and float32 scales [S, P], all whole within "
            f"a slot, P parts that sum to {n}, and R of at most {_MAX_RANK}; got a {a.dtype} "
            f"{tuple(a.shape)}, b {b.dtype} {tuple(b.shape)}, ranks {ranks.dtype} "
            f"{tuple(ranks.shape)}, scales {scales.dtype} {tuple(scales.shape)}, {weight.parts}"
        )
    form = Format.BF16 if a.dtype == torch.bfloat16 else Format.F32
    return n, rank, parts, form, a.stride(0), b.stride(0), ranks.stride(0)


class NativeOpsBase(Ops):
    """Checks operands and builds descriptors; subclasses place outputs and run or keep the ops."""

    @abstractmethod
    def _new(self, like: torch.Tensor, dtype: torch.dtype, *tail: int) -> torch.Tensor:
        """An output with as many rows as `like` and the given further dimensions."""

    @abstractmethod
    def _emit(
        self,
        kind: Kind,
        rows_of: torch.Tensor,
        tensors: list[torch.Tensor | None],
        ints: tuple[int, ...],
        floats: tuple[float, ...] = (),
        *,
        batch: int = 0,
    ) -> None:
        """Run or keep one op over the rows of `rows_of`; batch = rows of the step, if it cares."""

    def prepare(self, weight: Weight) -> Weight:
        return PanelWeight(weight.tensor) if isinstance(weight, DenseWeight) else weight

    def resolve_ids(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        meta: AttentionMeta,
        token_table: torch.Tensor,
    ) -> torch.Tensor:
        t, b, ctx = ids.shape[0], meta.rows.shape[0], token_table.shape[1]
        _check("ids", ids, torch.int32, t)
        _check("positions", positions, torch.int64, t)
        _check("token_table", token_table, torch.int32, None, None)
        _check("meta.rows", meta.rows, torch.int32, b)
        _check("meta.extend_start", meta.extend_start, torch.int32, b + 1)
        out = self._new(ids, torch.int32)
        operands = [ids, positions, meta.rows, meta.extend_start, token_table, out]
        self._emit(Kind.RESOLVE, ids, [*operands], (ctx,), batch=b)
        return out

    def embedding(self, ids: torch.Tensor, weight: Weight) -> torch.Tensor:
        _check("ids", ids, torch.int32, None)
        form, data = _weight_format(weight)
        out = self._new(ids, torch.float32, weight.columns)
        self._emit(Kind.EMBED, ids, [ids, data, out], (form, weight.columns))
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        h = weight.shape[0]
        _check("x", x, torch.float32, None, h)
        _check("weight", weight, torch.float32, h)
        out = self._new(x, torch.float32, h)
        self._emit(Kind.RMS, x, [x, weight, out], (h,), (eps,))
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        h = weight.shape[0]
        _check("x", x, torch.float32, None, h)
        _check("residual", residual, torch.float32, x.shape[0], h)
        _check("weight", weight, torch.float32, h)
        out = self._new(x, torch.float32, h)
        self._emit(Kind.ADD_RMS, x, [x, residual, weight, out], (h,), (eps,))
        return out

    def linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        n, k = weight.shape
        _check("x", x, torch.float32, None, k)
        if bias is not None:
            _check("bias", bias, torch.float32, n)
        form, data = _weight_format(weight)
        out = self._new(x, torch.float32, n)
        self._emit(Kind.LINEAR, x, [x, data, bias, out], (form, n, k))
        return out

    def lora_add(
        self, y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        k = weight.a.shape[-1]
        _check("a", weight.a[0], weight.a.dtype, len(weight.parts), None, k)
        _check("x", x, torch.float32, y.shape[0], k)
        self._lora(y, x, weight, lora, k)

    def lora_embedding(
        self, y: torch.Tensor, ids: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        _check("a", weight.a[0], weight.a.dtype, None, None)
        _check("ids", ids, torch.int32, y.shape[0])
        self._lora(y, ids, weight, lora, 0)

    def _lora(
        self, y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch, k: int
    ) -> None:
        t, n = y.shape
        _check("y", y, torch.float32, t, n)
        _check("lora.slots", lora.slots, torch.int32, t)
        width, rank, parts, form, *strides = _check_lora(weight, n)
        ends = torch.tensor(list(accumulate(weight.parts)), dtype=torch.int32)
        operands = [x, y, weight.a, weight.b, lora.slots, weight.ranks, weight.scales, ends]
        self._emit(Kind.LORA, y, [*operands], (width, k, rank, parts, form, *strides))

    def write_heads(self, qkv: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
        hkv, d, bf16 = _check_pools(into.k_pool, into.v_pool)
        t, width = qkv.shape
        hq = width // d - 2 * hkv
        _check("qkv", qkv, torch.float32, t, (hq + 2 * hkv) * d)
        _check("cos_sin", into.cos_sin, torch.float32, None, d)
        _check("positions", into.positions, torch.int64, t)
        _check("out_slots", into.out_slots, torch.int32, t)
        for name, norm in (("q_norm", into.q_norm), ("k_norm", into.k_norm)):
            if norm is not None:
                _check(name, norm, torch.float32, d)
        out = self._new(qkv, torch.float32, hq, d)
        places = into.cos_sin, into.positions, into.k_pool, into.v_pool, into.out_slots
        operands = [qkv, *places, into.q_norm, into.k_norm, out]
        self._emit(Kind.ROPE, qkv, operands, (hq, hkv, d, bf16), (into.eps,))
        return out

    def paged_attention(
        self,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        meta: AttentionMeta,
        scale: float,
    ) -> torch.Tensor:
        hkv, d, bf16 = _check_pools(k_pool, v_pool)
        hq, b = q.shape[1], meta.rows.shape[0]
        _check("q", q, torch.float32, None, hq, d)
        if hq % hkv or hq // hkv > _MAX_GROUP:
            raise KernelInputError(
                f"{hq} query heads cannot share {hkv} KV heads (at most {_MAX_GROUP} each)"
            )
        _check("meta.slot_table", meta.slot_table, torch.int32, None, None)
        for name in ("rows", "seq_lens", "extend_lens", "tree_lens", "tree_offsets"):
            value = getattr(meta, name)
            if value is not None:
                _check(f"meta.{name}", value, torch.int32, b)
        _check("meta.extend_start", meta.extend_start, torch.int32, b + 1)
        out = self._new(q, torch.float32, hq * d)
        operands = [q, k_pool, v_pool, meta.rows, meta.slot_table, meta.seq_lens]
        operands += [meta.extend_lens, meta.extend_start]
        tree = [meta.tree_lens, meta.tree_offsets, meta.tree_words]
        if any(part is None for part in tree):
            tree = [None, None, None]
        ints = (hq, hkv, d, bf16, meta.slot_table.shape[1])
        self._emit(Kind.ATTENTION, q, [*operands, *tree, out], ints, (scale,), batch=b)
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        f = gate_up.shape[1] // 2
        _check("gate_up", gate_up, torch.float32, None, 2 * f)
        out = self._new(gate_up, torch.float32, f)
        self._emit(Kind.SILU_MUL, gate_up, [gate_up, out], (f,))
        return out

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        t, h = x.shape
        _check("x", x, torch.float32, t, h)
        _check("y", y, torch.float32, t, h)
        out = self._new(x, torch.float32, h)
        self._emit(Kind.ADD, x, [x, y, out], (h,))
        return out

    def gather_rows(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        h = x.shape[1]
        _check("x", x, torch.float32, None, h)
        _check("index", index, torch.int32, None)
        out = self._new(index, torch.float32, h)
        self._emit(Kind.GATHER, index, [x, index, out], (h,))
        return out

    def scatter_rows(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        t, h = x.shape
        _check("x", x, torch.float32, t, h)
        _check("index", index, torch.int32, t)
        _check("out", out, torch.float32, None, h)
        self._emit(Kind.SCATTER, x, [x, index, out], (h,))

    def apply_bitmask(
        self, logits: torch.Tensor, bitmask: torch.Tensor, need: torch.Tensor
    ) -> None:
        n, v = logits.shape
        _check("logits", logits, torch.float32, n, v)
        _check("bitmask", bitmask, torch.int32, n, (v + 31) // 32)
        _check("need", need, torch.bool, n)
        self._emit(Kind.BITMASK, logits, [logits, bitmask, need], (v,))

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        _check("logits", logits, torch.float32, None, None)
        out = self._new(logits, torch.int32)
        self._emit(Kind.ARGMAX, logits, [logits, out], (logits.shape[1],))
        return out

    def top_rows(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        v = logits.shape[1]
        _check("logits", logits, torch.float32, None, v)
        if not 1 <= k <= min(v, _MAX_TOP):
            raise KernelInputError(f"the top {k} of {v} logits: 1 to {_MAX_TOP} can be taken")
        values = self._new(logits, torch.float32, k)
        indices = self._new(logits, torch.int32, k)
        self._emit(Kind.TOP, logits, [logits, values, indices], (v, k))
        return values, indices

    def logsumexp_rows(self, logits: torch.Tensor) -> torch.Tensor:
        _check("logits", logits, torch.float32, None, None)
        out = self._new(logits, torch.float32)
        self._emit(Kind.LOGSUMEXP, logits, [logits, out], (logits.shape[1],))
        return out


def describe(
    kind: Kind,
    dim: int,
    tensors: list[torch.Tensor | None],
    ints: tuple[int, ...],
    floats: tuple[float, ...],
) -> NativeOp:
    """The native descriptor of an op. The caller keeps the tensors alive while it is used."""
    op = NativeOp(kind=kind, dim=dim)
    op.i[: len(ints)] = ints
    op.f[: len(floats)] = floats
    op.p[: len(tensors)] = [None if x is None else x.data_ptr() for x in tensors]
    return op


class NativeOps(NativeOpsBase):
    """Runs each op at once on the runner's threads."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._arena = HugeArena()

    def prepare(self, weight: Weight) -> Weight:
        """As the base class, and moved onto huge pages, in the order of the calls."""
        return super().prepare(weight).placed(self._arena.place)

    def _new(self, like: torch.Tensor, dtype: torch.dtype, *tail: int) -> torch.Tensor:
        return torch.empty(like.shape[0], *tail, dtype=dtype)

    def _emit(
        self,
        kind: Kind,
        rows_of: torch.Tensor,
        tensors: list[torch.Tensor | None],
        ints: tuple[int, ...],
        floats: tuple[float, ...] = (),
        *,
        batch: int = 0,
    ) -> None:
        op = (NativeOp * 1)(describe(kind, 0, tensors, ints, floats))
        self.runner.run(op, (rows_of.shape[0], batch, 0))
