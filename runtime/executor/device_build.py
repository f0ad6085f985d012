"""Puts the worker of a device together: what a step needs is measured, the rest is for the cache.

Invariant: after `worker`, nothing is allocated that grows with load, and kernels that serving
needs are compiled. What does not fit is left out and said so (`notes`). Knows nothing of settings
files or requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from branchline.kernels.ops import Ops
from branchline.runtime.attention.base import AttentionBackend, AttentionNeeds
from branchline.runtime.attention.registry import make_attention
from branchline.runtime.core.drafting import MAX_GUESSES
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.executor.build import draft_beside
from branchline.runtime.executor.device_draft import (
    ROW_SIZES,
    DeviceDraft,
    draft_sizes,
    recordings_bytes,
)
from branchline.runtime.executor.device_graphs import (
    ADAPTED_TOKENS,
    TOKEN_STEP,
    VERIFY_ROWS,
    adapted_sizes,
    decode_sizes,
    extend_shapes,
    padded,
    planned_shapes,
    row_sizes,
    trunk_sizes,
    verify_shapes,
)
from branchline.runtime.executor.device_lookup import DeviceLookup
from branchline.runtime.executor.device_runner import DeviceRunner
from branchline.runtime.executor.device_stream import DeviceStream, to_device
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.device_worker import DeviceWorker
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.host_draft import scratch_slots
from branchline.runtime.executor.plan_buffers import StepShape
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.memory.kv_pool import MOVED_AT_ONCE, KVPool
from branchline.runtime.memory.sizing import free_memory
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel
from branchline.runtime.sampling.device_sampler import DeviceSampler
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch

GRAPH_WORK = 4e12
GRAPH_TOKENS = (128, 8192)
"""Mixed steps are recorded up to this many operations on the weights, which take a device about as
long as the host needs to launch the kernels one by one, and within these bounds of tokens."""

FULL_WORK = 4 * GRAPH_WORK
"""So are steps that fill a recording up to this many: a slow host needs nearly as long, and full
steps come one behind the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Sizes and choices.

    Attributes:
        page_size: tokens per page.
        max_step_tokens, max_rows: of a step.
        slot_width: columns of the host's slot table.
        kv_dtype: of the key-value pool.
        attention: name of the backend, or "auto".
        graphs: record forwards.
        draft_width, draft_levels: guesses of a row that a draft model looks into at each level, and
            levels at most.
        draft_nodes: guesses of a row at most that are checked.
        guesses: some steps will check guesses.
        lookup_nodes: guesses of a row at most that are looked up here; 0 = none are.
        adapter_slots: that the model's layers were given.
    """

    page_size: int
    max_step_tokens: int
    max_rows: int
    slot_width: int
    kv_dtype: torch.dtype
    attention: str = "auto"
    graphs: bool = True
    draft_width: int = 0
    draft_levels: int = 0
    draft_nodes: int = 0
    guesses: bool = False
    lookup_nodes: int = 0
    adapter_slots: int = 0


class DeviceBuilder:
    """Builds one worker.

    Args:
        model: with its weights on the device.
        ops: what it runs with.
        device: where.
        draft_model: keeps something of every token that is computed.

    Attributes:
        attention: the backend that was chosen.
        notes: (setting, value, why) of what was decided on the way.
    """

    def __init__(
        self,
        model: Model,
        ops: Ops,
        settings: DeviceSettings,
        device: torch.device,
        draft_model: DraftModel | None = None,
    ) -> None:
        spec = model.spec
        self._draft_model = draft_model
        self._model, self._ops, self._settings, self._device = model, ops, settings, device
        self.notes: list[tuple[str, str, str]] = []
        needs = AttentionNeeds(
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            settings.kv_dtype,
            device,
            graph=settings.graphs,
            deterministic=ops.deterministic,
        )
        self.attention: AttentionBackend = make_attention(settings.attention, needs)
        pool = self._pool(1)
        tables = DeviceTables(settings.max_rows, settings.slot_width, model.max_context, device)
        lookup = None
        if settings.lookup_nodes:
            lookup = DeviceLookup(ops, tables, settings.lookup_nodes)
        self._runner = DeviceRunner(
            model,
            ops,
            self.attention,
            pool,
            tables,
            DeviceStream(device),
            max_tokens=settings.max_step_tokens,
            max_rows=settings.max_rows,
            graph_tokens=max(self._graph_tokens(), self._full_tokens()),
            draft=self._draft(pool),
            adapter_slots=settings.adapter_slots,
            lookup=lookup,
        )
        if settings.graphs:
            self._runner.choice = self._runner.recorded_choice()

    def _graph_tokens(self) -> int:
        """Tokens of the largest step that is recorded for the host's sake."""
        least, most = GRAPH_TOKENS
        settings = self._settings
        work = min(self._tokens_of(GRAPH_WORK), most)
        return min(max(least, work), settings.slot_width, settings.max_step_tokens)

    def _full_tokens(self) -> int:
        """Tokens of a full step, if it is recorded, else 0."""
        full = self._settings.max_step_tokens
        planned = self._settings.graphs and self.attention.most_planned_keys
        # at least two rows of padding are full of slots when it is recorded
        most = min(self._tokens_of(FULL_WORK), 2 * self._settings.slot_width)
        return full if planned and full <= most else 0

    def _tokens_of(self, work: float) -> int:
        """Tokens that take so many operations on the weights."""
        report = self._model.memory_report()
        wide = 2 if report.kinds.get("bfloat16") else 4
        return int(work / 2 / max((report.attention + report.mlp) / wide, 1))

    def free_bytes(self) -> int:
        """Memory left for the cache once the largest step has what it needs."""
        device = self._device
        if device.type != "cuda":
            return free_memory(device)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._largest_step()
        needed = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        needed += self._draft_bytes()
        free = free_memory(device)
        self.notes.append(
            ("step_memory", f"{needed / 1e6:.0f} MB", "measured in a step of the largest size")
        )
        return max(0, free - needed)

    def _draft_bytes(self) -> int:
        """Memory for the draft model's recordings, which are made when the cache has its own:
        measured with the largest one, made twice, since only the first one loads kernels."""
        if self._draft_model is None:
            return 0
        device, made = self._device, self._guesser(Recorder(self._runner.stream))
        seen = []
        for _ in range(3):
            torch.cuda.synchronize(device)
            seen.append((free_memory(device), torch.cuda.memory_reserved(device)))
            if len(seen) < 3:
                made.record(ROW_SIZES[-1], made.max_depth)
        (_, before), (free, held), (free_after, held_after) = seen
        del made
        torch.cuda.empty_cache()
        return recordings_bytes(
            held - before,
            max(0, free - free_after - (held_after - held)),
            [depth for _, depth in draft_sizes(self._settings.draft_levels)],
        )

    def worker(self, num_pages: int, *, overlap: bool) -> DeviceWorker:
        """Allocate the cache, record and compile."""
        self._runner.kv_pool = self._pool(num_pages)
        self._runner.draft = self._draft(self._runner.kv_pool)
        if self._settings.graphs:
            self._record()
        self._warm_eager()
        self._warm_sampling()
        choice = self._runner.choice
        if choice is not None:
            kinds = [partial(choice.record, *kind) for kind in choice.kinds]
            self._record_all("sampling_graphs", kinds)
        if self._draft_model is not None:
            self._runner.guesser = self._record_guesses()
            rows = {min(rows, self._settings.max_rows + 1) for rows in VERIFY_ROWS}
            keeps = [partial(self._runner.record_accept, size) for size in sorted(rows)]
            self._record_all("keep_graphs", keeps)
            self._warm_moves()
        self._runner.stream.drain()
        return DeviceWorker(self._runner, overlap=overlap)

    def _pool(self, num_pages: int) -> KVPool:
        spec = self._model.spec
        return KVPool(
            spec.num_layers,
            num_pages,
            self._settings.page_size,
            spec.kv_heads,
            spec.head_dim,
            dtype=self._settings.kv_dtype,
            device=self._device,
        )

    def _record_guesses(self) -> DeviceDraft:
        """What runs the draft model, recorded as far as memory goes."""
        made = self._guesser(self._runner.recorder)
        sizes = [partial(made.record, *size) for size in draft_sizes(made.max_depth)]
        self._record_all("draft_graphs", sizes)
        return made

    def _guesser(self, recorder: Recorder) -> DeviceDraft:
        runner = self._runner
        assert runner.draft is not None, "there is a draft model"
        return DeviceDraft(
            runner.draft,
            self._ops,
            runner.stream,
            recorder,
            runner.tables,
            max_context=self._model.max_context,
            width=self._settings.draft_width,
            max_depth=self._settings.draft_levels,
            most=self._settings.draft_nodes,
            vocab_size=runner.vocab_size,
            check=runner.recorded_check(),
        )

    def _record_all(self, name: str, sizes: Sequence[Callable[[], None]]) -> None:
        """Record one size after the other until memory ends, and note how many."""
        started, done, why = time.monotonic(), 0, "sizes recorded"
        try:
            for record in sizes:
                record()
                done += 1
        except torch.OutOfMemoryError:
            why = f"of {len(sizes)} sizes: no memory for more; lower memory_fraction"
        took = time.monotonic() - started
        self.notes.append((name, str(done), f"{why}, in {took:.1f} s"))

    def _draft(self, pool: KVPool) -> Draft | None:
        if self._draft_model is None:
            return None
        scratch = scratch_slots(self._settings.draft_width, self._settings.draft_levels)
        return draft_beside(pool, self._draft_model, scratch, self._ops.dtype)

    def _largest_step(self) -> None:
        """All tokens there can be, in padding rows, and logits of all rows and guesses."""
        tokens, rows = self._settings.max_step_tokens, self._settings.max_rows
        logits = min(tokens, rows + (MAX_GUESSES if self._settings.guesses else 0))
        runner = self._runner
        for adapted in self._kinds():
            with runner.stream:
                hidden = runner.idle_hidden(StepShape(tokens, rows, logits, adapted=adapted))
                self._model.logits(hidden, self._ops).float()
            runner.stream.drain()

    def _kinds(self) -> tuple[bool, ...]:
        """Without adapters, and with them if there can be any."""
        return (False, True) if self._settings.adapter_slots else (False,)

    def _record(self) -> None:
        """Largest sizes first; stops where memory ends."""
        most_rows = self._settings.max_rows
        shapes: list[StepShape] = []
        if self.attention.finds_trunks:
            shapes += [StepShape(n, n, n, decode=True, trunks=True) for n in trunk_sizes(most_rows)]
        for adapted in self._kinds():
            most = min(self._graph_tokens(), ADAPTED_TOKENS) if adapted else self._graph_tokens()
            for n in (adapted_sizes if adapted else decode_sizes)(most_rows):
                shapes.append(StepShape(n, n, n, decode=True, adapted=adapted))
            shapes += extend_shapes(most, most_rows, adapted=adapted)
            if self._settings.guesses:
                shapes += verify_shapes(most, most_rows, adapted=adapted)
        if self.attention.most_planned_keys:
            shapes += planned_shapes(self._graph_tokens(), self._full_tokens(), most_rows)
        # of the same size those without adapters first, should memory end
        shapes.sort(key=lambda shape: (-shape.tokens, shape.adapted))
        self._record_all("cuda_graphs", [partial(self._runner.graphs.record, s) for s in shapes])

    def _warm_eager(self) -> None:
        """Every kind of size that a step which is not recorded can have."""
        most_rows = self._settings.max_rows
        runner = self._runner
        for rows in row_sizes(most_rows, most_rows):
            # few tokens a row, the most that are still few, more, and the largest trees
            for tokens in sorted({TOKEN_STEP, 16 * rows, 16 * rows + TOKEN_STEP, 512}):
                whole = min(tokens, self._settings.max_step_tokens) // TOKEN_STEP * TOKEN_STEP
                for tree, adapted in product((False, True), self._kinds()):
                    most = max(whole, TOKEN_STEP)
                    with runner.stream:
                        runner.idle_hidden(StepShape(most, rows, 8, tree=tree, adapted=adapted))
        count = 8
        while count <= padded(most_rows):
            shape = StepShape(TOKEN_STEP, 8, TOKEN_STEP)
            index = torch.zeros(count, dtype=torch.int32, device=self._device)
            with runner.stream:
                hidden = runner.idle_hidden(shape)
                for adapted in self._kinds():
                    lora = runner.lora(torch.full_like(index, -1)) if adapted else None
                    self._model.logits(self._ops.gather_rows(hidden, index), self._ops, lora)
            count *= 2

    def _warm_moves(self) -> None:
        """What moves kept guesses where that is not recorded, once for each size."""
        runner = self._runner
        draft = runner.draft
        assert draft is not None, "there is a draft model"
        with runner.stream:
            for count in (1 << bits for bits in range(MOVED_AT_ONCE.bit_length())):
                none = torch.zeros(count, dtype=torch.int32, device=self._device)
                for pool in (runner.kv_pool, draft.pool):
                    pool.move_slots(self._ops, none, none)

    def _warm_sampling(self) -> None:
        """Every way to choose a token, once."""
        vocab = self._runner.vocab_size
        kinds = ({"temperature": 0.0}, {"temperature": 0.7}, {"logprobs": 2}, {"top_p": 0.9})
        device = self._device
        sampler = DeviceSampler(self._runner.sampling, lambda array: to_device(array, device))
        # without cuts, and with: few rows and many are cut in different ways
        for count in (3, len(kinds), max(len(kinds), self._settings.max_rows)):
            rows = [
                RowSampling(SamplingParams(**kinds[i % len(kinds)]), 0, 1) for i in range(count)
            ]
            batch = SamplingBatch.build(rows)
            words = np.full((count, -(-vocab // 32)), -2, dtype=np.int32)
            positions = np.ones(count, dtype=np.int64)
            with self._runner.stream:
                hidden = self._runner.idle_hidden(StepShape(count, count, count))
                for mask in (words, None):
                    logits = self._model.logits(hidden, self._ops)
                    sampler.sample(logits, batch, positions, lambda _: torch.empty(0), mask)
