"""Where adapters come from, on the loader's thread: folders, files that were sent, host memory.

Invariant: weights that are given out are those of the files that were inspected, and the same files
are kept in host memory once, however many adapters are made of them; a folder that was
made for an adapter that was sent goes with it, and at the latest with the shelf. Used by the
loader's thread alone, or while it does not run. Knows nothing of names in use or of slots.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from branchline.runtime.core.adapter_spool import AdapterSpool, remove_sent
from branchline.runtime.core.adapters import AdapterFiles, AdapterSource
from branchline.runtime.loading.adapters import adapter_folder
from branchline.runtime.lora.adapter_files import AdapterFolder, Signature, inspect, read
from branchline.runtime.lora.host_tier import HostTier
from branchline.runtime.lora.layout import Packed, SlotLayout


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One adapter that was inspected.

    Attributes:
        sent: its folder was made for it.
    """

    folder: AdapterFolder
    sent: bool

    @property
    def files(self) -> tuple[Path, Signature]:
        """What its weights are read from: the key of them in host memory."""
        return self.folder.path, self.folder.signature


class Shelf:
    """See module.

    Args:
        layout: of the slots.
        host_bytes: of weights that are kept in host memory.
    """

    def __init__(self, layout: SlotLayout, host_bytes: int) -> None:
        self._layout = layout
        self._tier = HostTier(host_bytes)
        self._users: Counter[tuple[Path, Signature]] = Counter()
        self._spool = AdapterSpool()

    @property
    def nbytes(self) -> int:
        """Bytes kept in host memory."""
        return self._tier.nbytes

    def holds(self, volume: Volume) -> bool:
        """Whether its weights are in host memory; a moment's view, from any thread."""
        return volume.files in self._tier

    def add(self, source: AdapterSource, *, sent: bool = False, if_room: bool = False) -> Volume:
        """Inspect an adapter and take its weights into host memory.

        Args:
            sent: the folder was made for it by a spool.
            if_room: take the weights only where nothing has to go for them.

        Raises:
            AdapterError: see `adapter_files.inspect` and `read`.
            BackendError: what was sent cannot be written.
        """
        if isinstance(source, AdapterFiles):
            path, sent = self._spool.put(source), True
        else:
            path = adapter_folder(source)
        try:
            volume = Volume(inspect(path, self._layout), sent)
            if not if_room or self._tier.has_room(self._layout.slot_bytes):
                self.fetch(volume)
        except BaseException:
            self._remove(path, sent)
            raise
        self._users[volume.files] += 1
        return volume

    def fetch(self, volume: Volume) -> Packed:
        """The weights as a slot holds them, from host memory or from the files.

        Raises:
            AdapterDamaged: the files cannot be read, or are others by now.
        """
        found = self._tier.get(volume.files)
        if found is None:
            found = self._layout.pack(read(volume.folder, self._layout))
            self._tier.put(volume.files, found)
        return found

    def drop(self, volume: Volume) -> None:
        """Nobody will ask for it again."""
        self._users[volume.files] -= 1
        if not self._users[volume.files]:
            del self._users[volume.files]
            self._tier.drop(volume.files)
        self._remove(volume.folder.path, volume.sent)

    def close(self) -> None:
        """Remove what was written."""
        self._spool.close()

    @staticmethod
    def _remove(path: Path, sent: bool) -> None:
        if sent:
            remove_sent(path)
