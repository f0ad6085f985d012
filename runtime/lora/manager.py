"""The adapters of one engine: names, versions, who uses them, and where they are.

Law: a sequence keeps the version that it began with. Loading under a name that is taken makes a
new version; the old one serves those that have it and is forgotten with the last of them. Whatever
is wrong with one adapter, its error goes to whoever loads it or waits for it, and nothing else
changes. All calls but `infos`, `named` and `counters` are made on the loop thread, which reads no
file and waits for no copy: that is the loader's work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from branchline.runtime.core.adapters import (
    AdapterInfo,
    AdapterSource,
    AdapterState,
    AdapterVersion,
    adapter_not_found,
    check_adapter_name,
)
from branchline.runtime.errors import (
    AdapterInUse,
    AdapterTooLarge,
    BackendError,
    BranchlineError,
)
from branchline.runtime.lora.loader import Loader, Start, nothing, start_thread
from branchline.runtime.lora.residency import Residency
from branchline.runtime.lora.shelf import Shelf, Volume
from branchline.runtime.lora.slots import Slots

logger = logging.getLogger(__name__)

OnInfo = Callable[[AdapterInfo | BranchlineError], None]


@dataclass(slots=True, eq=False)
class _Adapter:
    """One version that is not forgotten.

    Attributes:
        retired: no request gets it any more.
        waiting: who is told once it is forgotten.
    """

    version: AdapterVersion
    volume: Volume
    retired: bool = False
    waiting: list[OnInfo] = field(default_factory=list)


class AdapterManager:
    """See module; `scheduler.adapters.Adapters` is its other face.

    Args:
        slots: of the device.
        host_bytes: of weights that are kept in host memory.
        call_soon: posts to the loop thread.
        start: makes the loader's thread.
    """

    def __init__(
        self,
        slots: Slots,
        host_bytes: int,
        call_soon: Callable[[Callable[[], None]], None],
        start: Start = start_thread,
    ) -> None:
        self._slots = slots
        self._layout = slots.layout
        self._residency = Residency(slots.count)
        self._shelf = Shelf(slots.layout, host_bytes)
        self._loader = Loader(call_soon, start)
        self._names: dict[str, _Adapter] = {}
        self._known: dict[AdapterVersion, _Adapter] = {}
        self._numbers: dict[str, int] = {}
        self._failed: Callable[[AdapterVersion, BranchlineError], None] = _nobody
        self._asked: dict[object, OnInfo] = {}
        self._loads = 0
        self._load_s = 0.0

    # -- the scheduler's side --------------------------------------------------------------------

    def connect(self, failed: Callable[[AdapterVersion, BranchlineError], None]) -> None:
        """See `Adapters.connect`."""
        self._failed = failed

    def find(self, name: str) -> AdapterVersion:
        """See `Adapters.find`."""
        found = self._names.get(name)
        if found is None:
            raise adapter_not_found(name, self._names)
        return found.version

    def open(self, version: AdapterVersion) -> None:
        """See `Adapters.open`."""
        version.sequences += 1

    def close(self, version: AdapterVersion) -> None:
        """See `Adapters.close`."""
        version.sequences -= 1
        self._settle(self._known[version])

    def ready(self, version: AdapterVersion, *, urgent: bool) -> bool:
        """See `Adapters.ready`."""
        if version.slot >= 0:
            return True
        if not self._residency.is_loading(version):
            self._bring(self._known[version], urgent=urgent)
        return False

    def enter(self, version: AdapterVersion) -> None:
        """See `Adapters.enter`."""
        self._residency.enter(version)

    def leave(self, version: AdapterVersion) -> None:
        """See `Adapters.leave`."""
        self._residency.leave(version)
        self._settle(self._known[version])
        self._bring_pinned()

    # -- the operator's side ---------------------------------------------------------------------

    def load(
        self,
        name: str,
        source: AdapterSource,
        on_done: OnInfo,
        *,
        pin: bool = False,
        sent: bool = False,
    ) -> None:
        """See `AdapterPort.load_adapter`.

        Args:
            sent: the folder is a spool's, and goes with the version.
        """
        try:
            check_adapter_name(name)
        except BranchlineError as error:
            on_done(error)
            return

        ticket = object()

        def done(found: Volume | BranchlineError) -> None:
            del self._asked[ticket]
            if isinstance(found, BranchlineError):
                on_done(found)
                return
            try:
                info = self._install(name, found, pin=pin)
            except BranchlineError as error:
                self._discard(found)
                on_done(error)
            else:
                on_done(info)

        self._asked[ticket] = on_done
        self._loader.put(lambda: self._shelf.add(source, sent=sent), done)

    def load_now(
        self,
        name: str,
        path: str,
        *,
        pin: bool = False,
        number: int | None = None,
        sent: bool = False,
    ) -> AdapterInfo:
        """Load at once and wait for it, while nothing runs yet. The weights are read as long as
        the host tier has room, those of later adapters when they are wanted.

        Args:
            number: of the version; None = the next one.
            sent: see `load`.

        Raises:
            AdapterError, InvalidRequest: it cannot be loaded.
        """
        check_adapter_name(name)
        # a pinned one that was loaded before may be on its way to a slot already
        volume = self._loader.wait_for(lambda: self._shelf.add(path, sent=sent, if_room=True))
        if number is not None:
            self._numbers[name] = number - 1
        return self._install(name, volume, pin=pin)

    def unload(self, name: str, on_done: OnInfo, *, drain: bool = False) -> None:
        """See `AdapterPort.unload_adapter`."""
        found = self._names.get(name)
        if found is None:
            on_done(adapter_not_found(name, self._names))
            return
        version = found.version
        if not version.idle and not drain:
            on_done(
                AdapterInUse(
                    f"the adapter {name!r} is in use by {version.sequences} of the sequences",
                    value=name,
                    hint="Wait for them, abort them, or unload with drain=True.",
                )
            )
            return
        del self._names[name]
        found.waiting.append(on_done)
        self._retire(found)

    def infos(self) -> list[AdapterInfo]:
        """See `AdapterPort.adapters`."""
        return [self._info(adapter) for adapter in list(self._names.values())]

    def named(self, name: str) -> AdapterInfo | None:
        """See `AdapterPort.adapter`."""
        found = self._names.get(name)
        return None if found is None else self._info(found)

    def counters(self) -> dict[str, Any]:
        """See `Adapters.counters`."""
        return {
            "loaded": len(self._names),
            "slots": self._slots.count,
            "slots_used": self._residency.used,
            "slot_bytes": self._layout.slot_bytes,
            "device_bytes": self._slots.nbytes,
            "host_bytes": self._shelf.nbytes,
            "max_rank": self._layout.max_rank,
            "loads": self._loads,
            "load_s": self._load_s,
            "evictions": self._residency.evictions,
        }

    def shut(self) -> None:
        """End the loader, once the loop has ended; who still waits for an answer gets it."""
        self._loader.close()
        waiting = [told for adapter in self._known.values() for told in adapter.waiting]
        for told in [*self._asked.values(), *waiting]:
            told(BackendError("the engine was closed", retryable=True, hint="Make a new Engine."))
        self._asked.clear()
        self._layout.detach()
        self._shelf.close()

    # -- names and versions ----------------------------------------------------------------------

    def _install(self, name: str, volume: Volume, *, pin: bool) -> AdapterInfo:
        """Requests get this version of a name from now on."""
        made, old = _Adapter(AdapterVersion(name, 0), volume), self._names.get(name)
        version = made.version
        if pin and not self._residency.can_pin(None if old is None else old.version):
            raise AdapterTooLarge(
                "no more adapters can be pinned: one slot must stay for the others",
                value=name,
                hint=f"There are {self._slots.count} slots; raise adapter_slots.",
            )
        version.number = self._numbers[name] = self._numbers.get(name, 0) + 1
        self._names[name] = made
        self._known[version] = made
        if old is not None:
            self._retire(old)
        if pin:
            self._residency.pin(version)
            self._bring_pinned()
        return self._info(made)

    def _retire(self, adapter: _Adapter) -> None:
        adapter.retired = True
        self._settle(adapter)

    def _settle(self, adapter: _Adapter) -> None:
        """Forget a version that nobody gets and nothing uses any more."""
        version = adapter.version
        if adapter.retired and version.idle and not self._residency.is_loading(version):
            info = self._info(adapter)
            self._residency.remove(version)
            del self._known[version]
            self._discard(adapter.volume)
            for told in adapter.waiting:
                told(info)

    def _discard(self, volume: Volume) -> None:
        """Drop what the loader's thread keeps of it."""
        self._loader.put(lambda: self._shelf.drop(volume), nothing)

    def _info(self, adapter: _Adapter) -> AdapterInfo:
        version, folder = adapter.version, adapter.volume.folder
        return AdapterInfo(
            name=version.name,
            version=version.number,
            path="" if adapter.volume.sent else str(folder.path),
            rank=folder.rank,
            targets=folder.targets,
            base=folder.base,
            nbytes=folder.nbytes,
            state=self._state(adapter),
            pinned=self._residency.is_pinned(version),
            running=version.sequences,
        )

    def _state(self, adapter: _Adapter) -> AdapterState:
        if adapter.version.slot >= 0:
            return "device"
        if self._residency.is_loading(adapter.version):
            return "loading"
        return "host" if self._shelf.holds(adapter.volume) else "disk"

    # -- into a slot -----------------------------------------------------------------------------

    def _bring_pinned(self) -> None:
        version = self._residency.unpinned_wait()
        if version is not None:
            self._bring(self._known[version], urgent=True)

    def _bring(self, adapter: _Adapter, *, urgent: bool) -> None:
        """Have the loader put a version into a slot, if there is one for it."""
        slot = self._residency.choose(adapter.version, urgent=urgent)
        if slot is None:
            return

        def bring() -> float:
            start = time.perf_counter()
            self._slots.write(slot, self._shelf.fetch(adapter.volume))
            return time.perf_counter() - start

        self._loader.put(bring, lambda result: self._brought(adapter, result))

    def _brought(self, adapter: _Adapter, result: float | BranchlineError) -> None:
        version = adapter.version
        if isinstance(result, BranchlineError):
            logger.error("the adapter %s cannot be used: %s", version.name, result)
            self._residency.remove(version)
            self._settle(adapter)
            self._failed(version, result)
        else:
            self._loads += 1
            self._load_s += result
            self._residency.arrived(version)
            self._settle(adapter)
        self._bring_pinned()


def _nobody(version: AdapterVersion, error: BranchlineError) -> None:
    """Without a scheduler nobody waits for an adapter."""
