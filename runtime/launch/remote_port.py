"""An engine in other processes, as programs and routes see one: `EnginePort` over sockets.

Invariant: exactly one final output for every sequence that was taken, whatever dies. When the
scheduler dies, requests that no step had taken are kept and sent to the next one; when the
detokenizer dies, those of which nothing was delivered; the rest end with a retryable error. Each
time it is sent a request has an id on the wire that nothing else ever had, so nothing that is said
of an earlier one, or to it, meets the present one. All but `call_soon` and `info` runs on the loop
thread. Imports no torch; knows no processes, only what is sent to them.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.adapters import AdapterInfo
from branchline.runtime.core.bounds import Bounds, check_queue, remaining
from branchline.runtime.core.messages import EngineRequest, GenerateRequest
from branchline.runtime.core.outputs import FinishReason, GenerateDelta, Output
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import ChatTurns, TextTokenizer
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.core.sequence import deadline_passed, names_of, never_run
from branchline.runtime.errors import BackendError, BranchlineError, InvalidRequest, from_wire
from branchline.runtime.ipc.messages import (
    Abort,
    Answer,
    Ask,
    Hold,
    Question,
    Release,
    Started,
    Submit,
    ToScheduler,
)
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Outlet
from branchline.runtime.launch.remote_adapters import OnAnswer, RemoteAdapterPort
from branchline.runtime.responses.reasoning import ReasoningFormat
from branchline.runtime.tokenizer.stop_regex import compile_stop_regex

logger = logging.getLogger(__name__)

MAX_SENDS = 4
"""A request that is lost so often before it began is ended: it may be what kills the scheduler."""

_UNSENDABLE = (OverflowError, TypeError, ValueError)
"""What encoding raises."""

OnOutput = Callable[[Output], None]


@dataclass(slots=True, eq=False)
class _Entry:
    """A request that has not ended.

    Attributes:
        left: its sequences without a final output, by name.
        wire_id: what the scheduler calls it; "" while it waits to be sent.
        started: a step has taken it.
        seen: something of it was delivered.
        sends: how often it has been sent.
        kept: it waits here when nothing is ready (the probe of readiness does not).
    """

    request: EngineRequest
    on_output: OnOutput
    left: dict[str, None]
    wire_id: str = ""
    started: bool = False
    seen: bool = False
    sends: int = 0
    kept: bool = True


class RemotePort(RemoteAdapterPort):
    """See module.

    Args:
        loop: reads the sockets; its turns end with sending what they gathered.
        settings: of the scheduler at the other end.

    Attributes:
        facts, counters: last word of the scheduler, for `info`.
        describe: further facts for `info`.
    """

    heals = True

    def __init__(
        self,
        tokenizer: TextTokenizer,
        turns: ChatTurns,
        model_name: str,
        loop: SocketLoop,
        settings: SchedulerSection,
        reasoning: ReasoningFormat | None = None,
    ) -> None:
        super().__init__(self._ask, loop.call_soon)
        self.reasoning = reasoning
        self.tokenizer = tokenizer
        self.turns = turns
        self.model_name = model_name
        self.max_context = 0
        self.facts: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self.describe: Callable[[], dict[str, Any]] = dict
        self._loop = loop
        self._settings = settings
        self._bounds: Bounds | None = None
        self._outlet: Outlet[ToScheduler] | None = None
        self._open = False
        self._failure: BranchlineError | None = None
        self._entries: dict[str, _Entry] = {}
        self._sequences = 0
        self._on_wire: dict[str, tuple[_Entry, str]] = {}
        self._questions: dict[int, OnAnswer] = {}
        self._numbers = itertools.count()
        self._out: list[ToScheduler] = []
        loop.after_turn = self._send_out
        loop.every(0.1, self._expire)

    # ---- EnginePort

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `EnginePort.call_soon`."""
        self._loop.call_soon(fn)

    def submit(self, request: EngineRequest, on_output: OnOutput) -> None:
        """See `EnginePort.submit`. While no scheduler is ready the request is kept."""
        if self._failure is not None:
            raise self._failure
        if self._bounds is None:
            raise BackendError("the engine is starting", retryable=True, hint="Try again soon.")
        if request.id in self._entries:
            raise BackendError("a request with this id is running", value=request.id)
        check_queue(self._sequences, self._settings.max_queued_requests)
        self._bounds.check(request)
        self._adapters.check(request.adapter)
        if isinstance(request, GenerateRequest) and request.sampling.stop_regex:
            compile_stop_regex(request.sampling.stop_regex)
        # Here, since a request that is sent again has only what is left of its time.
        deadline = remaining(request.deadline, self._settings.default_deadline_s)
        if deadline != request.deadline:
            request = msgspec.structs.replace(request, deadline=deadline)
        self._take(_Entry(request, on_output, dict.fromkeys(names_of(request))))

    def abort(self, request_id: str) -> None:
        """See `EnginePort.abort`."""
        base, _, index = request_id.rpartition("#")
        entry = self._entries.get(request_id)
        names = [] if entry is None else list(entry.left)
        if entry is None and index.isdigit():
            entry = self._entries.get(base)
            names = [request_id] if entry is not None and request_id in entry.left else []
        if entry is None:
            return
        if entry.wire_id:
            self._abort(entry, names)
            return
        for name in names:
            self._end(entry, name, "abort", None)

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """See `EnginePort.hold`. A lease ends with the scheduler that keeps it."""
        if self._outlet is not None:
            self._out.append(Hold(lane_id, list(ids), namespace, adapter))

    def release(self, lane_id: str) -> None:
        """See `EnginePort.release`."""
        if self._outlet is not None:
            self._out.append(Release(lane_id))

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        """See `EnginePort.flush`."""
        self.ask("flush", on_done)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """See `EnginePort.prefixes`."""

        def read(value: Any) -> None:
            plain = not isinstance(value, BranchlineError)
            on_done(msgspec.convert(value, list[CachedPrefix]) if plain else value)

        self.ask("prefixes", read)

    def info(self) -> dict[str, Any]:
        """See `EnginePort.info`; counters are those of the last heartbeat. Any thread."""
        return {**self.facts, **self.counters, **self.describe()}

    # ---- more, for routes

    @property
    def unfinished(self) -> int:
        """Sequences that wait or run. Any thread."""
        return self._sequences

    def ask(self, what: Question, done: OnAnswer) -> None:
        """Ask the scheduler; `done` gets the answer, or the error, on the loop thread."""
        self._ask(lambda number: Ask(number, what), done)

    def _ask(
        self, made: Callable[[int], ToScheduler], done: OnAnswer, *, now: bool = False
    ) -> None:
        """Send a message that is answered.

        Args:
            now: even while the scheduler is not ready yet.
        """
        if not self._open and not (now and self._outlet is not None):
            done(BackendError("no scheduler is ready", retryable=True, hint="Try again soon."))
            return
        number = next(self._numbers)
        self._questions[number] = done
        self._out.append(made(number))

    # ---- the supervisor's side

    def connect(
        self,
        outlet: Outlet[ToScheduler],
        bounds: Bounds,
        facts: dict[str, Any],
        adapters: list[AdapterInfo] | None = None,
    ) -> None:
        """A scheduler has loaded, with the adapters that its settings name. Nothing but adapters
        and `probe` is sent to it before `resume`."""
        self._outlet = outlet
        self._bounds = bounds
        self.max_context = bounds.max_context
        self.facts = facts
        self._adapters.connected(adapters or [])

    def send(self, message: ToScheduler) -> None:
        """Send something that is no request."""
        self._out.append(message)

    def probe(self, done: OnOutput) -> None:
        """Have one token generated, whatever else waits; `done` gets the result."""
        request = GenerateRequest(
            id=f"probe~{next(self._numbers)}",
            prompt_ids=[0],
            sampling=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
            namespace="branchline-probe",
        )
        entry = _Entry(request, done, dict.fromkeys(names_of(request)), kept=False)
        self._entries[request.id] = entry
        self._sequences += 1
        self._send(entry)

    def resume(self) -> None:
        """Everything is ready: send what waits, and what comes from now on."""
        self._open = True
        for entry in list(self._entries.values()):
            if not entry.wire_id:
                self._send(entry)

    def scheduler_lost(self, error: BranchlineError) -> None:
        """The scheduler is gone: what had started, and may be why, ends with `error`; the rest
        waits for the next one."""
        self._open = False
        self._outlet = None
        self._out.clear()
        for entry in list(self._entries.values()):
            self._lose(entry, error, keep=not (entry.started or entry.seen))
        self._drop_questions(error)

    def detokenizer_lost(self, error: BranchlineError) -> None:
        """The detokenizer is gone: what nobody has seen anything of is run again; what has no
        text, such as scores, goes on."""
        self._open = False
        for entry in list(self._entries.values()):
            if isinstance(entry.request, GenerateRequest):
                if entry.wire_id:
                    self._abort(entry, entry.left)
                self._lose(entry, error, keep=not entry.seen)

    def fail_all(self, error: BranchlineError) -> None:
        """Nothing will ever be ready again: end every request, take no more."""
        self._failure = error
        self._open = False
        for entry in list(self._entries.values()):
            for name in list(entry.left):
                self._end(entry, name, "error", error)
        self._drop_questions(error)

    def output(self, output: Output) -> None:
        """A reader's or the scheduler's word about one sequence."""
        found = self._on_wire.get(output.request_id)
        if found is None:
            return
        entry, name = found
        output.request_id = name
        entry.seen = True
        if not isinstance(output, GenerateDelta):
            self._forget(entry, name)
        self._deliver(entry, output)

    def started(self, message: Started) -> None:
        """Sequences run."""
        for wire_name in message.request_ids:
            found = self._on_wire.get(wire_name)
            if found is not None:
                found[0].started = True

    def answer(self, message: Answer) -> None:
        """What was asked for."""
        done = self._questions.pop(message.number, None)
        if done is not None:
            done(message.value if message.error is None else from_wire(message.error))

    # ---- inside

    def _send_out(self) -> None:
        """Send what this turn of the loop has gathered."""
        if self._out and self._outlet is not None:
            out, self._out = self._out, []
            unsent = dict(_send(self._outlet, out))
            for entry in [one for one in self._entries.values() if one.wire_id in unsent]:
                self._lose(entry, unsent[entry.wire_id], keep=False)

    def _take(self, entry: _Entry) -> None:
        self._entries[entry.request.id] = entry
        self._sequences += len(entry.left)
        if self._open:
            self._send(entry)

    def _send(self, entry: _Entry) -> None:
        request = entry.request
        entry.wire_id = f"{request.id}~{next(self._numbers)}"
        entry.sends += 1
        for name in entry.left:
            self._on_wire[_wire_name(entry, name)] = (entry, name)
        self._out.append(Submit(msgspec.structs.replace(request, id=entry.wire_id)))
        # What ended while it waited.
        self._abort(entry, [name for name in names_of(entry.request) if name not in entry.left])

    def _abort(self, entry: _Entry, names: Iterable[str]) -> None:
        self._out += [Abort(_wire_name(entry, name)) for name in names]

    def _lose(self, entry: _Entry, error: BranchlineError, *, keep: bool) -> None:
        for name in entry.left:
            self._on_wire.pop(_wire_name(entry, name), None)
        entry.wire_id, entry.started = "", False
        if not (keep and entry.kept) or entry.sends >= MAX_SENDS:
            for name in list(entry.left):
                self._end(entry, name, "error", error)

    def _end(
        self, entry: _Entry, name: str, reason: FinishReason, error: BranchlineError | None
    ) -> None:
        self._forget(entry, name)
        self._deliver(entry, never_run(entry.request, name, reason, error))

    def _forget(self, entry: _Entry, name: str) -> None:
        self._on_wire.pop(_wire_name(entry, name), None)
        if name in entry.left:
            del entry.left[name]
            self._sequences -= 1
        if not entry.left:
            self._entries.pop(entry.request.id, None)

    @staticmethod
    def _deliver(entry: _Entry, output: Output) -> None:
        try:
            entry.on_output(output)
        except Exception:
            logger.exception("a reader of request %s failed", output.request_id)

    def _expire(self) -> None:
        """While no scheduler looks at the deadlines of those that wait, do."""
        if self._open:
            return
        now = time.monotonic()
        for entry in list(self._entries.values()):
            deadline = entry.request.deadline
            if not entry.wire_id and deadline is not None and deadline <= now:
                for name in list(entry.left):
                    self._end(entry, name, "deadline", deadline_passed())

    def _drop_questions(self, error: BranchlineError) -> None:
        questions, self._questions = self._questions, {}
        for done in questions.values():
            done(error)


def _wire_name(entry: _Entry, name: str) -> str:
    return entry.wire_id + name[len(entry.request.id) :]


def _send(outlet: Outlet[ToScheduler], out: list[ToScheduler]) -> list[tuple[str, InvalidRequest]]:
    """Send `out`; ids of requests that no message can hold, and why: msgpack has no form for one of
    their numbers or texts. All others are sent, in their order."""
    try:
        outlet.send(out)
    except _UNSENDABLE as error:
        if len(out) > 1:
            return [found for message in out for found in _send(outlet, [message])]
        logger.error("a %s cannot be sent: %s", type(out[0]).__name__, error)
        if isinstance(out[0], Submit):
            hint = "Use text without lone surrogates, and numbers of 64 bits."
            why = InvalidRequest(f"the request cannot be sent: {error}", hint=hint)
            return [(out[0].request.id, why)]
    return []
