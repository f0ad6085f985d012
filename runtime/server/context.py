"""What every route family is given: the engine's side, texts, limits, keys.

Invariant: routes reach the engine through `port`, `client` and `executor` alone, so that they
cannot tell an engine in this process from one in another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import BackendError
from branchline.runtime.observability.metrics import Metrics
from branchline.runtime.observability.tracing import Tracer
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.server.adapters import Adapters, Served
from branchline.runtime.server.keys import Keys
from branchline.runtime.server.limits import Limits
from branchline.runtime.server.metered_port import MeteredPort
from branchline.runtime.server.observed_programs import ObservedPrograms
from branchline.runtime.server.quota_port import QuotaPort
from branchline.runtime.server.running import RunningRequests
from branchline.runtime.tokenizer.chat import ChatTemplate
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


def always_ready() -> str:
    """The health of an engine in this process."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """Everything a route may use.

    Attributes:
        client: awaits requests on `port`.
        programs: opens programs on `executor`, which runs them on `port`.
        chat: the model's own chat template.
        model_names: what the model is called here; the first one is its name in answers.
        health: why the server cannot answer right now; "" when it can.
        on_shutdown: run when serving ends, before running requests are waited for; route
            families add to it.
        adapters: which of the engine's adapters a request means, and how they come and go.
        running: what is being generated, by the names clients gave.
    """

    port: EnginePort
    client: EngineClient
    executor: Executor
    programs: ObservedPrograms
    metrics: Metrics
    tokenizer: TokenizerLike
    chat: ChatTemplate
    adapters: Adapters
    model_names: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    program_limits: ProgramLimits = field(default_factory=ProgramLimits)
    keys: Keys = field(default_factory=Keys)
    health: Callable[[], str] = always_ready
    on_shutdown: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    running: RunningRequests = field(default_factory=RunningRequests)

    @property
    def model_name(self) -> str:
        """The model's name in answers."""
        return self.model_names[0]

    def check_ready(self) -> None:
        """Raise `BackendError` with the reason when the server cannot answer right now."""
        reason = self.health()
        if reason:
            raise BackendError(f"not ready: {reason}", retryable=True)

    def choose(self, model: str | None, adapter: str | None = None) -> Served:
        """Who answers a request, by its `model` and `lora_path`; see `Adapters.choose`."""
        return self.adapters.choose(model, adapter)


def make_context(
    port: EnginePort,
    tokenizer: TokenizerLike,
    *,
    chat: ChatTemplate | None = None,
    model_names: tuple[str, ...] = (),
    limits: Limits | None = None,
    program_limits: ProgramLimits | None = None,
    keys: Keys | None = None,
    health: Callable[[], str] = always_ready,
    tracer: Tracer | None = None,
    adapter_dirs: Sequence[str] = (),
) -> ServerContext:
    """A context over `port`, with a client and an executor of its own, both watched.

    Args:
        adapter_dirs: folders from which adapters may be loaded by path.

    Raises:
        InvalidRequest: see `Adapters`.
    """
    model_names = model_names or (port.model_name,)
    limits = limits or Limits()
    metrics = Metrics(model_names[0], port.info)
    quotas = QuotaPort(port, limits.max_adapter_requests, limits.max_adapter_waiting)
    watched = MeteredPort(quotas, metrics, tracer)
    client = EngineClient(watched, prefix="http-")
    executor = Executor(watched)
    return ServerContext(
        port=watched,
        client=client,
        executor=executor,
        programs=ObservedPrograms(executor, metrics, tracer),
        metrics=metrics,
        tokenizer=tokenizer,
        chat=chat or ChatTemplate.of(tokenizer),
        adapters=Adapters(port, client, model_names, limits, adapter_dirs),
        model_names=model_names,
        limits=limits,
        program_limits=program_limits or ProgramLimits(),
        keys=keys or Keys(),
        health=health,
    )
