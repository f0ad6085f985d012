"""A scheduler over the hash model, and a record of what came out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.drafting import Drafter
from branchline.runtime.core.messages import EmbedRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import EmbedResult
from branchline.runtime.core.protocols import Visit
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.sequence import reading_of
from branchline.runtime.grammar.base import accept_forced, visit
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.scheduler.adapters import Adapters
from branchline.runtime.scheduler.constrained_overlap import ConstrainedOverlap
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.intake import Intake
from branchline.runtime.scheduler.pace import Pace
from branchline.runtime.scheduler.scheduler import Scheduler
from tests.support.hash_model import HIDDEN, VOCAB, HashWorker


class TableMatcher:
    """Allows at each place what a table of id tuples says; the last place has ended.

    Args:
        table: allowed ids by place; None = every id; a list = every id, but these are forced from
            there on.
        forcing: report single choices as forced.
        enough: places after which the output is complete, though it may go on; None = all.
    """

    def __init__(
        self,
        table: list[tuple[int, ...] | list[int] | None],
        *,
        forcing: bool,
        enough: int | None = None,
    ) -> None:
        self.table = table
        self.forcing = forcing
        self.enough = len(table) if enough is None else enough
        self.place = 0

    def accept(self, token_id: int) -> bool:
        options = self.table[self.place] if self.place < len(self.table) else ()
        if isinstance(options, tuple) and token_id not in options:
            return False
        self.place += 1
        return True

    def fill(self, bitmask: np.ndarray, row: int) -> bool:
        options = self.table[self.place]
        if not isinstance(options, tuple):
            return False
        bitmask[row] = 0
        for token in options:
            bitmask[row, token >> 5] |= np.int32(np.uint32(1 << (token & 31)).view(np.int32))
        return True

    def rollback(self, num_tokens: int) -> None:
        self.place -= num_tokens

    def is_terminated(self) -> bool:
        return self.place == len(self.table)

    def is_accepting(self) -> bool:
        return self.place >= self.enough

    def forced_tokens(self) -> list[int]:
        if not self.forcing:
            return []
        found = []
        run = self.table[self.place] if self.place < self.enough else None
        if isinstance(run, list):
            return run
        for options in self.table[self.place :]:
            complete = self.place + len(found) >= self.enough
            if not isinstance(options, tuple) or len(options) != 1 or complete:
                break
            found.append(options[0])
        return found

    def accept_forced(self, most: int) -> list[int]:
        return accept_forced(self, most)

    def fork(self) -> TableMatcher:
        copy = TableMatcher(self.table, forcing=self.forcing, enough=self.enough)
        copy.place = self.place
        return copy

    def after(self, token_id: int) -> TableMatcher | None:
        copy = self.fork()
        return copy if copy.accept(token_id) else None

    def visit(self, token_id: int, bitmask: np.ndarray, row: int, *, free: bool) -> Visit | None:
        return visit(self, token_id, bitmask, row, free=free)


class TableGrammars:
    """Reads a constraint's text as JSON: a list of lists of ids, null for "every id", {"run": ids}
    for ids forced where others are allowed; or an object with such "rows" and how many are
    "enough"."""

    def __init__(self, *, forcing: bool) -> None:
        self.forcing = forcing
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def request(self, constraint: Constraint, ready: Any, section: Any = None) -> None:
        read = json.loads(constraint.text)
        rows, enough = (read["rows"], read["enough"]) if isinstance(read, dict) else (read, None)
        table = [
            row["run"] if isinstance(row, dict) else None if row is None else tuple(row)
            for row in rows
        ]
        ready(TableMatcher(table, forcing=self.forcing, enough=enough))

    def fill(self, matchers: Any, count: int) -> np.ndarray:
        bitmask = np.full((count, (VOCAB + 31) // 32), -1, dtype=np.int32)
        for row, matcher in enumerate(matchers):
            if isinstance(matcher, int):
                matcher = TableMatcher([(matcher,)], forcing=False)
            if isinstance(matcher, np.ndarray):
                bitmask[row], matcher = matcher, None
            if matcher is not None:
                matcher.fill(bitmask, row)
        return bitmask

    def failure(self, matcher: Any) -> str:
        return ""

    def explain(self, constraint: Constraint) -> str:
        return "table: a test"


@dataclass
class Recorder:
    """An outbox that keeps finished requests and can stop one after k tokens."""

    stop_after: dict[str, int] = field(default_factory=dict)
    done: dict[str, Request] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    scheduler: Scheduler | None = None
    begun: list[str] = field(default_factory=list)

    def started(self, request: Request) -> None:
        self.begun.append(request.id)

    def push(self, request: Request) -> bool:
        assert request.id not in self.done
        return request.output_len >= self.stop_after.get(request.id, 1 << 30)

    def quiet(self, request: Request) -> bool:
        return request.id not in self.stop_after

    def finish(self, request: Request) -> None:
        assert request.id not in self.done, "a request ended twice"
        self.done[request.id] = request
        self.order.append(request.id)
        assert self.scheduler is not None
        self.scheduler.forget(request)


class Overlapped(ConstrainedOverlap):
    """Overlaps as a list of answers says, over and over."""

    def __init__(self, answers: Sequence[bool] = (True,)) -> None:
        super().__init__()
        self.answers = itertools.cycle(answers)

    def due(self) -> bool:
        return next(self.answers)


class Bench:
    """Everything that a scheduler test needs."""

    def __init__(
        self,
        *,
        tokens: int = 4096,
        page_size: int = 1,
        rows: int = 32,
        context: int = 512,
        step_tokens: int = 64,
        eos: frozenset[int] = frozenset(),
        lazy: bool = True,
        prefix_cache: bool = True,
        forcing: bool = True,
        fail_steps: frozenset[int] = frozenset(),
        mirror: bool = False,
        grow_ahead: int = 1,
        adapters: Adapters | None = None,
        drafter: Drafter | None = None,
        max_nodes: int = 8,
        max_depth: int = 6,
        pace: bool = False,
        chains: bool = False,
        constrained_overlap: ConstrainedOverlap | None = None,
        **settings: Any,
    ) -> None:
        self.cache = CacheManager(
            tokens // page_size, page_size, rows, context, prefix_cache=prefix_cache
        )
        table = self.cache.slot_table
        if mirror:  # the worker sees the slot table through the plans alone
            table.record_changes()
        self.worker = HashWorker(
            np.zeros_like(table.array) if mirror else table.array,
            tokens + 2 * page_size,
            lazy=lazy,
            fail_steps=fail_steps,
        )
        self.out = Recorder()
        self.grammars = TableGrammars(forcing=forcing)
        section = SchedulerSection(**{"max_running_requests": min(rows, 32), **settings})
        self.scheduler = Scheduler(
            section,
            self.cache,
            self.worker,
            self.out,
            Intake(
                Bounds(VOCAB, min(context, tokens - page_size), step_tokens // 2, HIDDEN),
                seed=1,
                adapters=adapters,
            ),
            max_step_tokens=step_tokens,
            max_running=section.max_running_requests,
            eos_ids=eos,
            grammars=self.grammars,
            call_soon=lambda fn: fn(),
            grow_ahead=grow_ahead,
            constrained_overlap=constrained_overlap,
            adapters=adapters,
            drafts=(
                None
                if drafter is None
                else Drafts(
                    drafter,
                    vocab_size=VOCAB,
                    eos_ids=eos,
                    max_nodes=max_nodes,
                    max_depth=max_depth,
                    pace=Pace(max_nodes, 64) if pace else None,
                    chains=chains,
                )
            ),
        )
        self.out.scheduler = self.scheduler

    def submit(self, name: str, prompt: list[int], max_tokens: int = 8, **kw: Any) -> None:
        keys = ("priority", "deadline", "namespace", "adapter")
        request = {key: kw.pop(key) for key in keys if key in kw}
        kw.setdefault("temperature", 0.0)
        sampling = SamplingParams(max_tokens=max_tokens, **kw)
        self.scheduler.submit(
            GenerateRequest(id=name, prompt_ids=prompt, sampling=sampling, **request)
        )

    def score(
        self, name: str, prompt: list[int], choices: list[list[int]], adapter: str = ""
    ) -> None:
        request = ScoreRequest(id=name, prompt_ids=prompt, choices=choices, adapter=adapter)
        self.scheduler.submit(request)

    def embed(self, name: str, prompt: list[int], **kw: Any) -> None:
        self.scheduler.submit(EmbedRequest(id=name, prompt_ids=prompt, **kw))

    def vector(self, name: str) -> list[float]:
        """The embedding that `name` ended with."""
        result = reading_of(self.out.done[name], "hash")
        assert isinstance(result, EmbedResult)
        return result.embedding

    def run(self, limit: int = 100_000) -> None:
        """Turn the loop until nothing is left; audit memory at the end."""
        for _ in range(limit):
            if not self.scheduler.step() and self.scheduler.num_unfinished == 0:
                break
        else:
            raise AssertionError(f"not done after {limit} steps")
        assert self.cache.audit() == []
        assert self.cache.running_tokens == 0

    def output(self, name: str) -> list[int]:
        return self.out.done[name].output_ids()
