"""A forward pass recorded once and replayed in one native call, for any batch up to its limits.

The model's own Python runs once with `RecordingOps`: no op computes, each leaves a descriptor with
addresses and static sizes. How many tokens, rows and logit rows are live is read at every replay,
so one list serves decode steps, prefill chunks and mixed batches alike.

Invariant: a buffer of the capture arena is handed out again only after the traced tensor that owned
it died, and a traced tensor refuses every torch function, so no hidden view can outlive it. Replay
equals the same ops run eagerly, bit for bit. The module knows no model and no scheduler.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from branchline.kernels.cpu.binding import Kind, NativeOp, Runner
from branchline.kernels.cpu.memory import huge_empty
from branchline.kernels.cpu.native_ops import NativeOpsBase, describe
from branchline.kernels.errors import CaptureError
from branchline.kernels.lora import LoraBatch
from branchline.kernels.ops import AttentionMeta, Ops

__all__ = ["CpuGraph", "GraphInputs", "GraphLimits", "RecordingOps", "TracedTensor"]

_TOKENS, _ROWS, _LOGITS = 0, 1, 2
_READABLE = frozenset({"shape", "dtype", "device", "ndim", "size", "dim", "data_ptr"})
_READABLE_CALLS = _READABLE | {"is_contiguous", "__len__"}


class TracedTensor(torch.Tensor):
    """Stands for an activation during capture: ops take it, torch functions are refused.

    Attributes:
        live: which live size its first dimension has (tokens, rows or logit rows).
    """

    live: int

    @classmethod
    def wrap(cls, data: torch.Tensor, live: int) -> "TracedTensor":
        """A traced tensor over the memory of `data`."""
        traced: TracedTensor = torch.Tensor._make_subclass(cls, data)
        traced.live = live
        return traced

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "attribute")
        if name in _READABLE_CALLS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise CaptureError(
            f"torch's {name!r} was called on an activation while a graph was captured; a recorded "
            "forward may only use the ops object that it was given"
        )


@dataclass(frozen=True)
class GraphLimits:
    """Largest step that a graph can replay: tokens, rows, rows with logits, mask words of trees."""

    tokens: int
    rows: int
    logit_rows: int
    tree_words: int = 0


@dataclass(frozen=True)
class GraphInputs:
    """The buffers that a runner fills before each replay; only leading parts are read.

    Attributes:
        input_ids: [tokens] int32; -1 = read the token table (see `Ops.resolve_ids`).
        positions: [tokens] int64.
        out_slots: [tokens] int32.
        previous: [tokens] int32, pool slot of the token before each one on its path.
        logit_index: [logit_rows] int32, which tokens need logits.
        meta: rows [rows], seq_lens, extend_lens, extend_start [rows + 1]; with limits.tree_words
            also tree_lens, tree_offsets [rows] and tree_words (set tree_lens to 0 for no tree).
        token_table: [max_rows, max_ctx] int32, shared with the scheduler.
        lora: slots [tokens] of the tokens' adapters, for forwards that were recorded with adapters.
        logit_lora: slots [logit_rows] likewise.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    out_slots: torch.Tensor
    previous: torch.Tensor
    logit_index: torch.Tensor
    meta: AttentionMeta
    token_table: torch.Tensor
    lora: LoraBatch
    logit_lora: LoraBatch


class _Arena:
    """Buffers for the activations of a capture, reused as soon as their owner is dead."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self.nbytes = 0

    def take(self, nbytes: int) -> torch.Tensor:
        """A buffer of at least `nbytes`, the smallest free one that fits or a new one."""
        fitting = [i for i, b in enumerate(self._free) if b.numel() >= nbytes]
        if fitting:
            return self._free.pop(min(fitting, key=lambda i: self._free[i].numel()))
        self.nbytes += nbytes
        return huge_empty((nbytes,), torch.uint8).zero_()

    def give_back(self, buffer: torch.Tensor) -> None:
        """Make a buffer available for later ops of the capture."""
        self._free.append(buffer)


class RecordingOps(NativeOpsBase):
    """Keeps a descriptor of each op instead of running it."""

    def __init__(self, limits: GraphLimits) -> None:
        self.recorded: list[NativeOp] = []
        self.arena = _Arena()
        self._capacity = (limits.tokens, limits.rows, limits.logit_rows)
        self._alive: list[object] = []

    def _live(self, x: torch.Tensor) -> int:
        if isinstance(x, TracedTensor):
            return x.live
        raise CaptureError(
            f"an op's input of shape {tuple(x.shape)} does not come from the graph's inputs; a "
            "recorded forward must compute everything from them"
        )

    def _new(self, like: torch.Tensor, dtype: torch.dtype, *tail: int) -> torch.Tensor:
        live = self._live(like)
        shape = (self._capacity[live], *tail)
        count = torch.Size(shape).numel()
        buffer = self.arena.take(-(-count * dtype.itemsize // 64) * 64)
        data = buffer[: count * dtype.itemsize].view(dtype).view(shape)
        traced = TracedTensor.wrap(data, live)
        self._alive.append(buffer)
        weakref.finalize(traced, self.arena.give_back, buffer)
        return traced

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
        self.recorded.append(describe(kind, self._live(rows_of), tensors, ints, floats))
        # Weights and pools must live as long as the graph; activations are kept by the arena.
        self._alive.extend(x for x in tensors if x is not None and not isinstance(x, TracedTensor))


class CpuGraph:
    """A recorded forward.

    Args:
        runner: the threads that replay it.
        limits: largest step.
        slot_table: [max_rows, max_ctx] int32, filled by the memory room.
        token_table: [max_rows, max_ctx] int32.

    Attributes:
        inputs: buffers to fill before `replay`.
        outputs: what the forward returned, at full capacity; overwritten by each replay.
    """

    def __init__(
        self,
        runner: Runner,
        limits: GraphLimits,
        slot_table: torch.Tensor,
        token_table: torch.Tensor,
    ) -> None:
        self.runner = runner
        self.limits = limits
        ids, rows = torch.int32, limits.rows
        tree = limits.tree_words > 0
        meta = AttentionMeta(
            rows=torch.zeros(rows, dtype=ids),
            slot_table=slot_table,
            seq_lens=torch.zeros(rows, dtype=ids),
            extend_lens=torch.zeros(rows, dtype=ids),
            extend_start=torch.zeros(rows + 1, dtype=ids),
            tree_lens=torch.zeros(rows, dtype=ids) if tree else None,
            tree_offsets=torch.zeros(rows, dtype=ids) if tree else None,
            tree_words=torch.zeros(limits.tree_words, dtype=torch.int64) if tree else None,
        )
        self.inputs = GraphInputs(
            input_ids=torch.zeros(limits.tokens, dtype=ids),
            positions=torch.zeros(limits.tokens, dtype=torch.int64),
            out_slots=torch.zeros(limits.tokens, dtype=ids),
            previous=torch.zeros(limits.tokens, dtype=ids),
            logit_index=torch.zeros(limits.logit_rows, dtype=ids),
            meta=meta,
            token_table=token_table,
            lora=LoraBatch(torch.full((limits.tokens,), -1, dtype=ids)),
            logit_lora=LoraBatch(torch.full((limits.logit_rows,), -1, dtype=ids)),
        )
        self.outputs: tuple[torch.Tensor, ...] = ()
        self.arena_bytes = 0
        self._ops: Any = None
        self._keep: RecordingOps | None = None
        self._traced_outputs: tuple[torch.Tensor, ...] = ()

    def capture(
        self, forward: Callable[[Ops, GraphInputs], torch.Tensor | tuple[torch.Tensor, ...]]
    ) -> None:
        """Record `forward(ops, inputs)`; it must compute its results with `ops` alone.

        The ids that `forward` sees are resolved already (never -1).

        Raises:
            CaptureError: it used torch on an activation, or an input that is not the graph's.
        """
        ops = RecordingOps(self.limits)
        plain = self.inputs
        positions = TracedTensor.wrap(plain.positions, _TOKENS)
        ids = ops.resolve_ids(
            TracedTensor.wrap(plain.input_ids, _TOKENS), positions, plain.meta, plain.token_table
        )
        traced = replace(
            plain,
            input_ids=ids,
            positions=positions,
            out_slots=TracedTensor.wrap(plain.out_slots, _TOKENS),
            previous=TracedTensor.wrap(plain.previous, _TOKENS),
            logit_index=TracedTensor.wrap(plain.logit_index, _LOGITS),
        )
        result = forward(ops, traced)
        outputs = result if isinstance(result, tuple) else (result,)
        if not all(isinstance(x, TracedTensor) for x in outputs):
            raise CaptureError("a recorded forward must return activations that its ops made")
        self._keep = ops
        self._traced_outputs = outputs  # their buffers must not be reused
        self.outputs = tuple(_plain(x) for x in outputs)
        self.arena_bytes = ops.arena.nbytes
        self._ops = (NativeOp * len(ops.recorded))(*ops.recorded)

    def replay(self, num_tokens: int, num_rows: int, num_logit_rows: int) -> None:
        """Run the recorded ops on the leading parts of the inputs.

        Results are in the leading rows of `outputs`. Ids, slots and lengths must be valid: they are
        not checked here.

        Raises:
            CaptureError: nothing was captured, or the step is larger than the limits.
        """
        limits = self.limits
        if self._ops is None:
            raise CaptureError("replay was called before capture")
        if not (
            0 <= num_tokens <= limits.tokens
            and 0 <= num_rows <= limits.rows
            and 0 <= num_logit_rows <= limits.logit_rows
        ):
            raise CaptureError(
                f"a step of {num_tokens} tokens, {num_rows} rows and {num_logit_rows} logit rows "
                f"does not fit the graph's {limits}"
            )
        self.runner.run(self._ops, (num_tokens, num_rows, num_logit_rows))


def _plain(x: torch.Tensor) -> torch.Tensor:
    """The memory of a traced tensor as an ordinary tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor._make_subclass(torch.Tensor, x)
