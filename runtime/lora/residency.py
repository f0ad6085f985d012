"""Which version of an adapter is in which slot, and which one goes when another is wanted.

Law: a slot belongs to one version from the moment it is chosen until the version is put out, and a
version with rows is never put out. The least recently used one goes first; pinned ones stay. One
that has just been brought in, for somebody who waits, stays until it was used once, unless the need
is urgent: else two that want the same slot could put each other out for ever. Pure bookkeeping:
knows no memory, no files and no threads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from branchline.runtime.core.adapters import AdapterVersion


@dataclass(slots=True)
class _Place:
    slot: int
    ready: bool = False
    fresh: bool = True


class Residency:
    """`count` slots.

    Attributes:
        evictions: versions that were put out for others.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.evictions = 0
        self._free = list(range(count - 1, -1, -1))
        self._places: OrderedDict[AdapterVersion, _Place] = OrderedDict()
        self._pinned: set[AdapterVersion] = set()

    @property
    def used(self) -> int:
        """Slots that belong to a version."""
        return len(self._places)

    def is_loading(self, version: AdapterVersion) -> bool:
        """Whether it has a slot and is not in it yet."""
        place = self._places.get(version)
        return place is not None and not place.ready

    def is_pinned(self, version: AdapterVersion) -> bool:
        """Whether it stays."""
        return version in self._pinned

    def can_pin(self, replaced: AdapterVersion | None) -> bool:
        """Whether one more may stay, once `replaced` no longer does: one slot is for the others."""
        return len(self._pinned - {replaced}) < self.count - 1

    def pin(self, version: AdapterVersion) -> None:
        """It stays from now on, once it is in."""
        self._pinned.add(version)

    def unpinned_wait(self) -> AdapterVersion | None:
        """A pinned version that is in no slot, if any."""
        return next((v for v in self._pinned if v not in self._places), None)

    def choose(self, version: AdapterVersion, *, urgent: bool) -> int | None:
        """A slot for a version that has none; None when every one is needed.

        It is the version's own from now on, until `arrived` or `remove`.
        """
        if not self._free and not self._put_out(urgent):
            return None
        slot = self._free.pop()
        self._places[version] = _Place(slot)
        return slot

    def _put_out(self, urgent: bool) -> bool:
        for version, place in self._places.items():
            waited_for = place.fresh and version.sequences > 0 and not urgent
            if place.ready and not version.rows and not waited_for and version not in self._pinned:
                self.evictions += 1
                self._remove(version)
                return True
        return False

    def arrived(self, version: AdapterVersion) -> None:
        """It is in its slot."""
        place = self._places[version]
        place.ready = True
        version.slot = place.slot
        self._places.move_to_end(version)

    def enter(self, version: AdapterVersion) -> None:
        """A row uses it."""
        version.rows += 1
        self._places[version].fresh = False
        self._places.move_to_end(version)

    def leave(self, version: AdapterVersion) -> None:
        """The row has ended."""
        version.rows -= 1
        self._places.move_to_end(version)

    def remove(self, version: AdapterVersion) -> None:
        """Nobody will use it again; it may be in no slot."""
        assert not version.rows, "a version in use has its slot"
        self._pinned.discard(version)
        if version in self._places:
            self._remove(version)

    def _remove(self, version: AdapterVersion) -> None:
        self._free.append(self._places.pop(version).slot)
        version.slot = -1
