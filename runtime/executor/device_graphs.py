"""Forwards recorded once for a set of sizes; a step is filled up to the smallest that holds it.

Invariant: what a replay gives for the step's own rows is what the same ops give eagerly; padding
changes nothing they read. On a CPU the same buffers, sizes and padding are used without recordings.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass

import numpy as np
import torch

from branchline.runtime.attention.base import AttentionBackend, AttentionPlan
from branchline.runtime.core.batch import ForwardMode, ScheduleBatch
from branchline.runtime.executor.device_stream import DeviceStream
from branchline.runtime.executor.plan_buffers import PlanBuffers, StepShape, StepTensors
from branchline.runtime.executor.recorder import Recorder

DECODE_STEP = 8
"""Distance of the larger decode sizes."""

FEWEST_TRUNK_ROWS = 4
"""Up to so many rows a shared trunk is read from the cache about as fast row by row."""

EXTEND_TOKENS = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
TREE_TOKENS = (32, 128, 512, 1024)
"""Tokens of recorded steps that are not pure decoding, without and with tree masks."""

ADAPTED_TOKENS = 512
"""Steps with adapters are recorded once more up to so many tokens; longer ones keep a device busy
for longer than the host needs to launch them."""

VERIFY_TOKENS = (8, 16, 32, 64, 128)
VERIFY_ROWS = (2, 5, 9, 17)
"""Tokens and rows (one of them padding) of recorded steps that check guesses."""

ROW_SIZES = (8, 72)
"""Rows that such steps are filled up to; one more than there can be comes on top."""

LONG_STEP = 1024
SHORT_CONTEXT = 512
"""Of longer steps than this, whose tokens see more tokens than so many on average, attention gains
more by being planned on the host than that takes."""

LEAST_FILLED = 7 / 8
"""Of a recording of more tokens than the host needs to be spared the launches of: padding would
take the device longer than launching takes the host."""

TOKEN_STEP = 64
"""Steps that are not recorded have a multiple of this many tokens, so that few sizes occur."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a recorded forward leaves in its buffers, overwritten by the next replay.

    Attributes:
        hidden: [l, hidden], final hidden states; None in decoding and in checking guesses.
        logits: [l, V] in recordings of decoding and of checking guesses; in those of mixed steps
            [n, V] of the first n places that are sampled; None where choices are scored.
        greedy: int32, most likely ids of these, -1 where there is none; written to the token table
            already.
    """

    hidden: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    greedy: torch.Tensor | None = None


Forward = Callable[[StepShape, StepTensors, AttentionPlan], Outputs]


@dataclass(slots=True)
class _Graph:
    tensors: StepTensors
    plan: AttentionPlan
    replay: Callable[[], Outputs]


def decode_sizes(most: int) -> list[int]:
    """Rows for which decoding is recorded, ascending, the last one at least `most`."""
    sizes = [1, 2, 4]
    while sizes[-1] < most:
        sizes.append(DECODE_STEP * (sizes[-1] // DECODE_STEP + 1))
    return [size for index, size in enumerate(sizes) if index == 0 or sizes[index - 1] < most]


def trunk_sizes(most: int) -> list[int]:
    """Rows for which decoding of rows that share trunks is recorded once more, ascending, up to
    the last of `decode_sizes`; less close together, since padding reads little."""
    largest = decode_sizes(most)[-1]
    sizes = [2 * FEWEST_TRUNK_ROWS, 4 * FEWEST_TRUNK_ROWS, 6 * FEWEST_TRUNK_ROWS]
    while sizes[-1] < largest:
        sizes.append(2 * sizes[-2])
    return sorted({min(size, largest) for size in sizes if largest > FEWEST_TRUNK_ROWS})


def adapted_sizes(most: int) -> list[int]:
    """Rows for which decoding with adapters is recorded once more: as `trunk_sizes`, and few."""
    return [*(size for size in decode_sizes(most) if size < DECODE_STEP), *trunk_sizes(most)]


def row_sizes(tokens: int, most_rows: int) -> list[int]:
    """Rows that a step of so many tokens is filled up to, ascending; each has room for padding."""
    most = min(tokens, most_rows) + 1
    return [*(rows for rows in ROW_SIZES if rows < most), most]


def extend_shapes(most_tokens: int, most_rows: int, *, adapted: bool = False) -> list[StepShape]:
    """Shapes for small mixed steps, ascending."""
    return [
        StepShape(tokens, rows, tokens, tree=tree, adapted=adapted)
        for tree, sizes in ((False, EXTEND_TOKENS), (True, TREE_TOKENS))
        for tokens in sizes
        if tokens <= most_tokens
        for rows in row_sizes(tokens, most_rows)
    ]


def planned_shapes(most_tokens: int, largest: int, most_rows: int) -> list[StepShape]:
    """Shapes for steps of many tokens whose attention is planned on the host.

    Args:
        most_tokens: up to which steps are recorded for the host's sake.
        largest: tokens of full steps, which is what long prompts are cut into; up to these steps
            are recorded, too, if it is not 0.
    """
    most = max(most_tokens, largest)
    sizes = {tokens for tokens in (*EXTEND_TOKENS, largest) if LONG_STEP < tokens <= most}
    return [
        StepShape(tokens, rows, tokens, planned=True)
        for tokens in sorted(sizes)
        for rows in sorted({min(ROW_SIZES[0], most_rows + 1), most_rows + 1})
    ]


def verify_shapes(most_tokens: int, most_rows: int, *, adapted: bool = False) -> list[StepShape]:
    """Shapes for steps that check guesses of a few rows, ascending."""
    return [
        StepShape(tokens, rows, tokens, tree=True, verify=True, adapted=adapted)
        for tokens in VERIFY_TOKENS
        for rows in sorted({min(rows, most_rows + 1) for rows in VERIFY_ROWS})
        if tokens <= most_tokens and rows <= tokens // 2 + 1
    ]


def eager_shape(plan: ScheduleBatch, most_rows: int) -> StepShape:
    """What a step that is not recorded is filled up to, so that few sizes occur: kernels are
    compiled for kinds of sizes, and serving is no time to compile."""
    tokens = -(-max(plan.num_tokens, 1) // TOKEN_STEP) * TOKEN_STEP
    assert len(plan.rows) <= most_rows, "a plan has no more rows than the settings allow"
    rows = next(n for n in row_sizes(most_rows, most_rows) if n > len(plan.rows))
    logits = min(padded(len(plan.logit_idx)), tokens)
    adapted = plan.adapter_slots is not None
    return StepShape(tokens, rows, logits, tree=plan.tree is not None, adapted=adapted)


def padded(count: int) -> int:
    """Rows of logits are made in these numbers: powers of two from 8."""
    return max(8, 1 << max(0, count - 1).bit_length())


def idle_step(shape: StepShape) -> ScheduleBatch:
    """A plan without rows: filled up to `shape`, it is all padding."""
    none = np.empty(0, dtype=np.int32)
    return ScheduleBatch(
        mode=ForwardMode.IDLE,
        rows=none,
        seq_lens=none,
        extend_lens=none,
        input_ids=none,
        positions=np.empty(0, dtype=np.int64),
        out_slots=none,
        logit_idx=none,
        sample_idx=none,
        sample_rows=none,
        previous=none,
    )


class DeviceGraphs:
    """All recorded sizes.

    Args:
        buffers: what the recordings read.
        attention: must support `AttentionNeeds.graph`.
        forward: runs the model on views of the buffers.
        stream: where they run.
        recorder: makes them.
    """

    def __init__(
        self,
        buffers: PlanBuffers,
        attention: AttentionBackend,
        forward: Forward,
        stream: DeviceStream,
        recorder: Recorder,
    ) -> None:
        self._buffers = buffers
        self._attention = attention
        self._forward = forward
        self._stream = stream
        self._recorder = recorder
        self._decode: dict[tuple[bool, int], _Graph] = {}  # by (adapted, rows)
        self._trunks: dict[int, _Graph] = {}
        self._extend: dict[StepShape, _Graph] = {}
        self._verify: dict[StepShape, _Graph] = {}

    @property
    def count(self) -> int:
        """Recordings held."""
        held: tuple[Sized, ...] = self._decode, self._trunks, self._extend, self._verify
        return sum(map(len, held))

    def record(self, shape: StepShape) -> None:
        """Record a size; the larger ones first, so that the smaller ones fit in their memory.

        Raises:
            torch.OutOfMemoryError: no memory for it; what was recorded before stays usable.
        """
        tensors = self._buffers.views(shape)
        with self._stream:
            meta = self._buffers.load(idle_step(shape), tensors)
            plan = self._attention.init_graph(meta, trunks=shape.trunks, planned=shape.planned)
            self._attention.plan_replay(plan, meta)
            replay = self._recorder.record(lambda: self._forward(shape, tensors, plan))
        graph = _Graph(tensors, plan, replay)
        if shape.decode and shape.trunks:
            self._trunks = dict(sorted([*self._trunks.items(), (shape.rows, graph)]))
        elif shape.decode:
            self._decode[shape.adapted, shape.rows] = graph
            self._decode = dict(sorted(self._decode.items()))
        elif shape.verify:
            self._verify = _in_order({**self._verify, shape: graph})
        else:
            self._extend = _in_order({**self._extend, shape: graph})

    def find(self, plan: ScheduleBatch) -> _Graph | None:
        """The smallest recording that holds the step, if any."""
        tokens, rows = plan.num_tokens, len(plan.rows)
        adapted = plan.adapter_slots is not None
        if plan.mode is ForwardMode.DECODE:
            if plan.trunks and not adapted and rows > FEWEST_TRUNK_ROWS:
                for size, graph in self._trunks.items():
                    if size >= rows:
                        return graph
            sizes = self._decode.items()
            return next((g for (a, size), g in sizes if a == adapted and size >= rows), None)
        if not self._buffers.fits(plan):
            return None
        if tokens > LONG_STEP and self._attention.most_planned_keys and plan.tree is None:
            spared = max((s.tokens for s in self._extend if not s.planned), default=0)
            seen = int(np.dot(plan.extend_lens.astype(np.int64), plan.seq_lens.astype(np.int64)))
            if tokens > spared or seen > SHORT_CONTEXT * tokens:
                return self._planned(plan, spared)
        found = _smallest(self._verify, plan) if _checks_guesses(plan) else None
        return found or _smallest(self._extend, plan)

    def _planned(self, plan: ScheduleBatch, spared: int) -> _Graph | None:
        """The recording that holds a step of many tokens and whose attention is planned, if it is
        worth the padding.

        Args:
            spared: tokens up to which launches take the host longer than padding the device.
        """
        found = _smallest(self._extend, plan, planned=True)
        if found is None:
            return None
        tokens = found.tensors.shape.tokens
        keys = int(plan.seq_lens.sum(dtype=np.int64)) + tokens - plan.num_tokens
        worth = tokens <= spared or plan.num_tokens >= LEAST_FILLED * tokens
        return found if worth and keys <= self._attention.most_planned_keys else None

    def replay(
        self, graph: _Graph, plan: ScheduleBatch, loaded: Callable[[StepTensors], None]
    ) -> tuple[StepTensors, Outputs]:
        """Queue the step: what the recording reads and what it leaves.

        Args:
            loaded: queues what comes between the plan and the recording.
        """
        meta = self._buffers.load(plan, graph.tensors)
        self._attention.plan_replay(graph.plan, meta)
        loaded(graph.tensors)
        return graph.tensors, graph.replay()


def _in_order(graphs: dict[StepShape, _Graph]) -> dict[StepShape, _Graph]:
    return {shape: graphs[shape] for shape in sorted(graphs, key=lambda s: (s.tokens, s.rows))}


def _smallest(
    graphs: dict[StepShape, _Graph], plan: ScheduleBatch, *, planned: bool = False
) -> _Graph | None:
    """The first of ascending sizes that holds a step and is of its kind."""
    kind = plan.adapter_slots is not None, plan.tree is not None, planned
    for shape, graph in graphs.items():
        fits = shape.tokens >= plan.num_tokens and shape.rows > len(plan.rows)
        if fits and (shape.adapted, shape.tree, shape.planned) == kind:
            return graph
    return None


def _checks_guesses(plan: ScheduleBatch) -> bool:
    """Whether logits are wanted of most tokens, and sampled wherever they are."""
    count = len(plan.logit_idx)
    return (
        count == len(plan.sample_idx)
        and plan.hidden_rows is None
        and (plan.score is None and 2 * count >= plan.num_tokens)
    )
