"""A scheduler over the hash model, and a record of what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.scheduler.intake import Bounds, Intake
from branchline.runtime.scheduler.scheduler import Scheduler
from tests.support.hash_model import VOCAB, HashWorker


class NoGrammars:
    """Grammars of a scheduler whose requests have no constraints."""

    def request(self, constraint: Any, ready: Any) -> None:
        raise AssertionError("a constraint was asked for")

    def fill(self, matchers: Any, count: int) -> None:
        raise AssertionError("a mask was asked for")

    def failure(self, matcher: Any) -> str:
        raise AssertionError("there is no matcher")


@dataclass
class Recorder:
    """An outbox that keeps finished requests and can stop one after k tokens."""

    stop_after: dict[str, int] = field(default_factory=dict)
    done: dict[str, Request] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    scheduler: Scheduler | None = None

    def push(self, request: Request) -> bool:
        assert request.id not in self.done
        return request.output_len >= self.stop_after.get(request.id, 1 << 30)

    def finish(self, request: Request) -> None:
        assert request.id not in self.done, "a request ended twice"
        self.done[request.id] = request
        self.order.append(request.id)
        assert self.scheduler is not None
        self.scheduler.forget(request)


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
        fail_steps: frozenset[int] = frozenset(),
        **settings: Any,
    ) -> None:
        self.cache = CacheManager(
            tokens // page_size, page_size, rows, context, prefix_cache=prefix_cache
        )
        self.worker = HashWorker(
            self.cache.slot_table.array,
            tokens + 2 * page_size,
            lazy=lazy,
            fail_steps=fail_steps,
        )
        self.out = Recorder()
        section = SchedulerSection(**{"max_running_requests": min(rows, 32), **settings})
        self.scheduler = Scheduler(
            section,
            self.cache,
            self.worker,
            self.out,
            Intake(Bounds(VOCAB, min(context, tokens - page_size), step_tokens // 2), seed=1),
            max_step_tokens=step_tokens,
            max_running=section.max_running_requests,
            eos_ids=eos,
            grammars=NoGrammars(),
            call_soon=lambda fn: fn(),
        )
        self.out.scheduler = self.scheduler

    def submit(self, name: str, prompt: list[int], max_tokens: int = 8, **kw: Any) -> None:
        keys = ("priority", "deadline", "namespace")
        request = {key: kw.pop(key) for key in keys if key in kw}
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **kw)
        self.scheduler.submit(
            GenerateRequest(id=name, prompt_ids=prompt, sampling=sampling, **request)
        )

    def score(self, name: str, prompt: list[int], choices: list[list[int]]) -> None:
        self.scheduler.submit(ScoreRequest(id=name, prompt_ids=prompt, choices=choices))

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
