"""Adapters of an engine in another process: what is loaded there, and loaded again after a restart.

Invariant: what this side lists is what the scheduler has answered; a scheduler that replaces one
that died is told all of it before it gets a request. Adapters that are sent are written to folders
of this process, on a thread of their own, so that they outlive the scheduler. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from branchline.runtime.core.adapter_spool import AdapterSpool
from branchline.runtime.core.adapters import (
    AdapterFiles,
    AdapterInfo,
    AdapterSource,
    adapter_not_found,
    check_adapter_name,
)
from branchline.runtime.errors import BranchlineError, wrap
from branchline.runtime.ipc.messages import (
    Ask,
    KeptAdapter,
    LoadAdapter,
    RestoreAdapters,
    ToScheduler,
    UnloadAdapter,
)
from branchline.runtime.tokenizer.side_thread import SideThread

OnInfo = Callable[[AdapterInfo | BranchlineError], None]
OnAnswer = Callable[[Any], None]


class AskNumbered(Protocol):
    """Sends the message that is made for a number, and calls back with its answer, or an error."""

    def __call__(
        self, made: Callable[[int], ToScheduler], done: OnAnswer, *, now: bool = False
    ) -> None:
        """now: even while the scheduler is not ready for requests."""


@dataclass(slots=True)
class _Known:
    info: AdapterInfo
    path: str
    pin: bool
    sent: bool


class RemoteAdapters:
    """See module. All calls but `infos` and `check` are made on the port's loop thread.

    Args:
        ask: of the port.
        call_soon: posts to the port's loop thread.
    """

    def __init__(self, ask: AskNumbered, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._ask = ask
        self._call_soon = call_soon
        self._known: dict[str, _Known] = {}
        self._spool = AdapterSpool()
        self._writer = SideThread("branchline-adapter-files")
        self._connected = False

    def infos(self) -> list[AdapterInfo]:
        """See `AdapterPort.adapters`."""
        return [_shown(known) for known in list(self._known.values())]

    def named(self, name: str) -> AdapterInfo | None:
        """See `AdapterPort.adapter`."""
        known = self._known.get(name)
        return None if known is None else _shown(known)

    def check(self, name: str) -> None:
        """Raise `AdapterNotFound` for a name that is not loaded."""
        if name and name not in self._known:
            raise adapter_not_found(name, self._known)

    def connected(self, found: list[AdapterInfo]) -> None:
        """A scheduler has loaded, with these adapters; a later one is given what there was."""
        if not self._connected:
            self._connected = True
            self._known = {
                info.name: _Known(info, info.path, info.pinned, sent=False) for info in found
            }
            return
        kept = [
            KeptAdapter(k.info.name, k.path, k.info.version, k.pin, k.sent)
            for k in self._known.values()
        ]
        self._ask(lambda number: RestoreAdapters(number, kept), self._restored, now=True)

    def load(self, name: str, source: AdapterSource, on_done: OnInfo, *, pin: bool = False) -> None:
        """See `AdapterPort.load_adapter`."""
        try:
            check_adapter_name(name)
        except BranchlineError as error:
            on_done(error)
            return
        if isinstance(source, str):
            self._load(name, source, on_done, pin=pin, sent=False)
            return
        self._writer.put(lambda: self._write(name, source, on_done, pin))

    def unload(self, name: str, on_done: OnInfo, *, drain: bool = False) -> None:
        """See `AdapterPort.unload_adapter`."""
        # No more requests at once; where it must stay it is listed again.
        known = self._known.pop(name, None) if drain else self._known.get(name)

        def answered(value: Any) -> None:
            if isinstance(value, BranchlineError):
                if known is not None and drain:
                    self._known.setdefault(name, known)
                on_done(value)
                return
            if self._known.get(name) is known:
                self._known.pop(name, None)
            info = msgspec.convert(value, AdapterInfo)
            on_done(info if known is None else _shown(known, info))

        self._ask(lambda number: UnloadAdapter(number, name, drain), answered)

    def ask_all(self, on_done: Callable[[list[AdapterInfo] | BranchlineError], None]) -> None:
        """See `AdapterPort.list_adapters`."""

        def answered(value: Any) -> None:
            if isinstance(value, BranchlineError):
                on_done(value)
                return
            self._update(msgspec.convert(value, list[AdapterInfo]))
            on_done(self.infos())

        self._ask(lambda number: Ask(number, "adapters"), answered)

    def close(self) -> None:
        """Remove what was sent, once no scheduler can read it any more."""
        self._writer.close()
        self._spool.close()

    def _write(self, name: str, files: AdapterFiles, on_done: OnInfo, pin: bool) -> None:
        """On the writer's thread."""
        try:
            path = str(self._spool.put(files))
        except BranchlineError as error:
            failure = wrap(error)
            self._call_soon(lambda: on_done(failure))
            return
        self._call_soon(lambda: self._load(name, path, on_done, pin=pin, sent=True))

    def _load(self, name: str, path: str, on_done: OnInfo, *, pin: bool, sent: bool) -> None:
        def answered(value: Any) -> None:
            if isinstance(value, BranchlineError):
                on_done(value)
                return
            info = msgspec.convert(value, AdapterInfo)
            self._known[name] = known = _Known(info, path, pin, sent)
            on_done(_shown(known))

        self._ask(lambda number: LoadAdapter(number, name, path, pin, sent), answered)

    def _restored(self, value: Any) -> None:
        if not isinstance(value, BranchlineError):
            self._update(msgspec.convert(value, list[AdapterInfo]))

    def _update(self, found: list[AdapterInfo]) -> None:
        """What the scheduler has is what there is."""
        infos = {info.name: info for info in found}
        for name in [name for name in self._known if name not in infos]:
            del self._known[name]
        for name, known in self._known.items():
            known.info = infos[name]


class RemoteAdapterPort:
    """The part of a port that is `AdapterPort`.

    Args:
        ask, call_soon: see `RemoteAdapters`.
    """

    def __init__(self, ask: AskNumbered, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._adapters = RemoteAdapters(ask, call_soon)

    def adapters(self) -> list[AdapterInfo]:
        """See `AdapterPort.adapters`."""
        return self._adapters.infos()

    def adapter(self, name: str) -> AdapterInfo | None:
        """See `AdapterPort.adapter`."""
        return self._adapters.named(name)

    def load_adapter(
        self,
        name: str,
        source: AdapterSource,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        pin: bool = False,
    ) -> None:
        """See `AdapterPort.load_adapter`."""
        self._adapters.load(name, source, on_done, pin=pin)

    def unload_adapter(
        self,
        name: str,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        drain: bool = False,
    ) -> None:
        """See `AdapterPort.unload_adapter`."""
        self._adapters.unload(name, on_done, drain=drain)

    def list_adapters(self, on_done: Callable[[list[AdapterInfo] | BranchlineError], None]) -> None:
        """See `AdapterPort.list_adapters`."""
        self._adapters.ask_all(on_done)

    def close(self) -> None:
        """Remove what was written for the scheduler, once there is none any more."""
        self._adapters.close()


def _shown(known: _Known, info: AdapterInfo | None = None) -> AdapterInfo:
    """As callers see it: the folder of one that was sent is nobody's business."""
    found = known.info if info is None else info
    return msgspec.structs.replace(found, path="") if known.sent else found
