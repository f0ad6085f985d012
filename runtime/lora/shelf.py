"""Where adapters come from, on the loader's thread: folders, files that were sent, host memory.

Invariant: weights that are given out are those of the files that were inspected; a folder that was
made for an adapter that was sent goes with it, and at the latest with the shelf. Used by the
loader's thread alone, or while it does not run. Knows nothing of names in use or of slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from branchline.runtime.core.adapter_spool import AdapterSpool, remove_sent
from branchline.runtime.core.adapters import AdapterFiles, AdapterSource
from branchline.runtime.loading.adapters import adapter_folder
from branchline.runtime.lora.adapter_files import AdapterFolder, inspect, read
from branchline.runtime.lora.host_tier import HostTier
from branchline.runtime.lora.layout import Packed, SlotLayout


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One adapter that was inspected; the key of its weights in host memory.

    Attributes:
        sent: its folder was made for it.
    """

    folder: AdapterFolder
    sent: bool


class Shelf:
    """See module.

    Args:
        layout: of the slots.
        host_bytes: of weights that are kept in host memory.
    """

    def __init__(self, layout: SlotLayout, host_bytes: int) -> None:
        self._layout = layout
        self._tier = HostTier(host_bytes)
        self._spool = AdapterSpool()

    @property
    def nbytes(self) -> int:
        """Bytes kept in host memory."""
        return self._tier.nbytes

    def holds(self, volume: Volume) -> bool:
        """Whether its weights are in host memory; a moment's view, from any thread."""
        return volume in self._tier

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
        return volume

    def fetch(self, volume: Volume) -> Packed:
        """The weights as a slot holds them, from host memory or from the files.

        Raises:
            AdapterDamaged: the files cannot be read, or are others by now.
        """
        found = self._tier.get(volume)
        if found is None:
            found = self._layout.pack(read(volume.folder, self._layout))
            self._tier.put(volume, found)
        return found

    def drop(self, volume: Volume) -> None:
        """Nobody will ask for it again."""
        self._tier.drop(volume)
        self._remove(volume.folder.path, volume.sent)

    def close(self) -> None:
        """Remove what was written."""
        self._spool.close()

    @staticmethod
    def _remove(path: Path, sent: bool) -> None:
        if sent:
            remove_sent(path)
