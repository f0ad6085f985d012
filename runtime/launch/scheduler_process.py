"""The scheduler's process: model, memory, scheduler, worker. Run as a module by the supervisor.

The main thread reads messages and posts them to the loop thread, which owns everything else; a
third thread says once in a while that the process lives and how far the loop has come. Nobody else
reads or writes the key-value cache, so when this process dies only what it ran is lost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.sequence import names_of, never_run
from branchline.runtime.engine_core import counters, hold_lease, no_slots
from branchline.runtime.errors import BranchlineError, wrap
from branchline.runtime.ipc.messages import (
    Abort,
    Answer,
    Ask,
    Attach,
    Beat,
    Hold,
    LoadAdapter,
    Release,
    RestoreAdapters,
    SchedulerLoaded,
    StartFailed,
    Stop,
    Submit,
    ToDetokenizer,
    ToPort,
    ToScheduler,
    UnloadAdapter,
)
from branchline.runtime.ipc.short_turns import ordinary_turns
from branchline.runtime.ipc.sockets import Inbox, Outlet
from branchline.runtime.launch.adapters import restore
from branchline.runtime.launch.remote_outbox import RemoteOutbox
from branchline.runtime.launch.scheduler_parts import build_scheduler
from branchline.runtime.launch.starts import (
    BEAT_PERIOD_S,
    LINGER_S,
    ProcessStart,
    detokenizer_codec,
    live,
    port_codec,
    scheduler_codec,
)
from branchline.runtime.launch.text_parts import open_model, text_parts
from branchline.runtime.lora.manager import AdapterManager
from branchline.runtime.scheduler.loop import Loop
from branchline.runtime.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)


class SendingSteps:
    """A scheduler's steps, each followed by sending what it said."""

    def __init__(self, scheduler: Scheduler, flush: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._flush = flush

    @property
    def next_deadline(self) -> float | None:
        """See `Steps`."""
        return self._scheduler.next_deadline

    def step(self) -> bool:
        """See `Steps`."""
        busy = self._scheduler.step()
        self._flush()
        return busy

    def audit(self) -> int:
        """See `Steps`."""
        return self._scheduler.audit()

    def fail_all(self, error: BranchlineError) -> None:
        """See `Steps`."""
        self._scheduler.fail_all(error)
        self._flush()


class Host:
    """Does what messages say. Loop thread only.

    Args:
        attach: makes an outlet to a detokenizer that listens at an endpoint.
        adapters: of the scheduler; None where none can be loaded.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        outbox: RemoteOutbox,
        attach: Callable[[str], Outlet[ToDetokenizer]],
        adapters: AdapterManager | None = None,
    ) -> None:
        self._adapters = adapters
        self._scheduler = scheduler
        self._outbox = outbox
        self._attach = attach

    def handle(self, message: ToScheduler) -> None:
        """Do what one message says; `Stop` is the main thread's."""
        scheduler = self._scheduler
        if isinstance(message, Submit):
            self._submit(message.request)
        elif isinstance(message, Abort):
            scheduler.end_one(message.request_id, message.reason)
        elif isinstance(message, Hold):
            m = message
            hold_lease(scheduler, m.lane_id, m.ids, m.namespace, m.adapter)
        elif isinstance(message, Release):
            scheduler.cache.release_lease(message.lane_id)
        elif isinstance(message, Ask):
            self._answer(message)
        elif isinstance(message, LoadAdapter | UnloadAdapter | RestoreAdapters):
            self._adapt(message)
        elif isinstance(message, Attach):
            self._outbox.attach(self._attach(message.endpoint))

    def _submit(self, request: EngineRequest) -> None:
        try:
            self._scheduler.submit(request)
        except Exception as error:  # checked by the sender, so this is rare; it ends one request
            for name in names_of(request):
                self._outbox.tell(never_run(request, name, "error", wrap(error)))
        else:
            self._outbox.open(request)

    def _adapt(self, message: LoadAdapter | UnloadAdapter | RestoreAdapters) -> None:
        def done(value: Any) -> None:
            failed = isinstance(value, BranchlineError)
            error = value.to_wire() if failed else None
            self._outbox.tell(Answer(message.number, None if failed else value, error))

        adapters, m = self._adapters, message
        if adapters is None:
            done([] if isinstance(m, RestoreAdapters) else no_slots())
        elif isinstance(m, LoadAdapter):
            adapters.load(m.name, m.path, done, pin=m.pin, sent=m.sent)
        elif isinstance(m, UnloadAdapter):
            adapters.unload(m.name, done, drain=m.drain)
        else:
            done(restore(adapters, m.adapters))

    def _answer(self, ask: Ask) -> None:
        value: Any
        try:
            if ask.what == "info":
                value = counters(self._scheduler)
            elif ask.what == "flush":
                value = self._scheduler.cache.flush()
            elif ask.what == "prefixes":
                value = self._scheduler.cache.most_used()
            elif ask.what == "adapters":
                value = [] if self._adapters is None else self._adapters.infos()
            else:
                value = self._scheduler.audit()
        except Exception as error:
            self._outbox.tell(Answer(ask.number, error=wrap(error).to_wire()))
        else:
            self._outbox.tell(Answer(ask.number, value))


def run(start: ProcessStart, context: zmq.Context[zmq.Socket[bytes]]) -> int:
    """Load, say so, and serve until told to stop; the exit status."""
    main_port: Outlet[ToPort] = Outlet(context, start.port, port_codec(), LINGER_S)
    inbox: Inbox[ToScheduler] = Inbox(context, start.inbox, scheduler_codec())
    try:
        config = EngineConfig.from_settings(start.settings)
        path, checkpoint = open_model(config)
        text = text_parts(config, path, checkpoint.tokenizer_source)

        def attach(endpoint: str) -> Outlet[ToDetokenizer]:
            return Outlet(context, endpoint, detokenizer_codec(), LINGER_S)

        port: Outlet[ToPort] = Outlet(context, start.port, port_codec(), LINGER_S)
        outbox = RemoteOutbox(text.model_name, port, attach(start.peer))
        with ordinary_turns():  # threads that compute
            parts = build_scheduler(config, text, checkpoint, outbox, lambda fn: loop.call_soon(fn))
        outbox.connect(parts.scheduler.forget)
        loop = Loop(SendingSteps(parts.scheduler, outbox.flush))
    except Exception as error:
        logger.debug("the scheduler cannot start", exc_info=error)
        main_port.send([StartFailed(wrap(error).to_wire())])
        return 1
    host = Host(parts.scheduler, outbox, attach, parts.adapters)
    loop.start()
    facts = {**parts.facts.describe(), **counters(parts.scheduler)}
    adapters = [] if parts.adapters is None else parts.adapters.infos()
    main_port.send([SchedulerLoaded(parts.bounds, facts, adapters)])

    def beat() -> Beat:
        return Beat(loop.turns, loop.busy, inbox.corrupt, counters(parts.scheduler))

    with _beating(Outlet(context, start.port, port_codec()), beat):
        _serve(inbox, loop, host)
    loop.close()
    parts.close()
    return 0


def _serve(inbox: Inbox[ToScheduler], loop: Loop, host: Host) -> None:
    def post(messages: list[ToScheduler]) -> None:
        def handle() -> None:
            for message in messages:
                try:
                    host.handle(message)
                except Exception:
                    logger.exception("a message of kind %s failed", type(message).__name__)

        loop.call_soon(handle)

    while True:
        inbox.wait()
        messages = inbox.receive()
        if messages:
            post(messages)
        if any(isinstance(message, Stop) for message in messages):
            return


@contextlib.contextmanager
def _beating(outlet: Outlet[ToPort], beat: Callable[[], Beat]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.wait(BEAT_PERIOD_S):
            outlet.send([beat()])
        outlet.close()

    thread = threading.Thread(target=run, name="branchline-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    live("scheduler", run)
