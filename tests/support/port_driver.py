"""Drives any `EnginePort` from a test's thread: submit, collect, wait."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.outputs import (
    EmbedResult,
    GenerateDelta,
    GenerateResult,
    Output,
    ScoreResult,
)
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.sequence import names_of
from branchline.runtime.errors import BranchlineError

T = TypeVar("T")
WAIT_S = 60.0


@dataclass
class Call:
    """A request that was taken, and everything that was said about it."""

    request: EngineRequest
    outputs: list[Output] = field(default_factory=list)
    finals: dict[str, GenerateResult | ScoreResult | EmbedResult] = field(default_factory=dict)
    seen: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    at_first: Callable[[], None] = lambda: None

    def on_output(self, output: Output) -> None:
        if not self.outputs:
            self.at_first()
        self.outputs.append(output)
        if not isinstance(output, GenerateDelta):
            assert output.request_id not in self.finals, "a sequence ended twice"
            self.finals[output.request_id] = output
            if len(self.finals) == len(names_of(self.request)):
                self.done.set()
        self.seen.set()

    def wait(self) -> Call:
        assert self.done.wait(WAIT_S), f"{self.request.id} has no final output"
        assert set(self.finals) == set(names_of(self.request))
        return self

    @property
    def result(self) -> GenerateResult:
        result = self.wait().finals[self.request.id]
        assert isinstance(result, GenerateResult)
        return result

    @property
    def scores(self) -> ScoreResult:
        result = self.wait().finals[self.request.id]
        assert isinstance(result, ScoreResult)
        return result

    @property
    def vector(self) -> list[float]:
        result = self.wait().finals[self.request.id]
        assert isinstance(result, EmbedResult)
        return result.embedding

    @property
    def deltas(self) -> list[GenerateDelta]:
        return [output for output in self.outputs if isinstance(output, GenerateDelta)]


class PortDriver:
    """A test's hand on a port."""

    def __init__(self, port: EnginePort) -> None:
        self.port = port
        self._ids = itertools.count()

    def on_loop(self, fn: Callable[[], T]) -> T:
        """Run `fn` on the loop thread; its result, or what it raised."""
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.append((fn(), None))
            except Exception as error:
                box.append((None, error))
            done.set()

        self.port.call_soon(run)
        assert done.wait(WAIT_S)
        value, error = box[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def submit(
        self, *requests: EngineRequest, at_first: Callable[[], None] = lambda: None
    ) -> list[Call]:
        """Submit in one turn of the loop; `at_first` is called with the first output of the
        first request, on the loop thread."""
        calls = [Call(request) for request in requests]
        calls[0].at_first = at_first

        def run() -> None:
            for call in calls:
                self.port.submit(call.request, call.on_output)

        self.on_loop(run)
        return calls

    def new_id(self) -> str:
        return f"t{next(self._ids)}"

    def request(
        self, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 8, **fields: Any
    ) -> GenerateRequest:
        """Greedy, without an end of its own, unless told otherwise."""
        own = ("stream", "namespace", "priority", "deadline", "id")
        outer = {key: fields.pop(key) for key in own if key in fields}
        sampling: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, **fields}
        return GenerateRequest(
            id=outer.pop("id", None) or self.new_id(),
            prompt_ids=list(prompt),
            sampling=SamplingParams(max_tokens=max_tokens, **sampling),
            **outer,
        )

    def generate(self, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 8, **more: Any) -> Call:
        return self.submit(self.request(prompt, max_tokens, **more))[0]

    def score(self, prompt: Sequence[int], choices: list[list[int]]) -> Call:
        request = ScoreRequest(id=self.new_id(), prompt_ids=list(prompt), choices=choices)
        return self.submit(request)[0]

    def embed(self, prompt: Sequence[int], **more: Any) -> Call:
        return self.submit(EmbedRequest(id=self.new_id(), prompt_ids=list(prompt), **more))[0]

    def abort(self, name: str) -> None:
        self.on_loop(lambda: self.port.abort(name))

    def flush(self) -> int:
        """Tokens freed by dropping what is cached."""
        return self.ask(self.port.flush)

    def prefixes(self) -> list[CachedPrefix]:
        """What is cached, as far as it is told."""
        return self.ask(self.port.prefixes)

    def ask(self, call: Callable[[Callable[[T | BranchlineError], None]], None]) -> T:
        """The answer of a call that answers through a callback."""
        done = threading.Event()
        box: list[T | BranchlineError] = []

        def answered(value: T | BranchlineError) -> None:
            box.append(value)
            done.set()

        self.on_loop(lambda: call(answered))
        assert done.wait(WAIT_S)
        value = box[0]
        assert not isinstance(value, BranchlineError)
        return value
