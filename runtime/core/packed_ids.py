"""Token ids of a lane, as a list and as 32-bit numbers, so that neither is made of the other anew.

A prompt of a thousand ids is handed over at every node of its lane; turning a list into numbers
costs tens of microseconds each time, and copying numbers next to nothing. Needs no numpy.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class PackedIds(list[int]):
    """A list of ids that changes at its end alone: it grows, and `pop()` takes the last one."""

    __slots__ = ("_packed",)

    def __init__(self, ids: Sequence[int] = ()) -> None:
        super().__init__(ids)
        self._packed = array("i")

    def packed(self) -> array[int]:
        """All of them, 32-bit; not to be changed, and gone out of date when the list changes.

        Raises:
            OverflowError, TypeError: one of them is no 32-bit id.
        """
        packed = self._packed
        if len(packed) < len(self):
            packed.extend(array("i", self[len(packed) :]))  # three times as fast as from a list
        return packed

    def copy(self) -> PackedIds:
        """Another list, with what is packed of this one."""
        twin = PackedIds(self)
        twin._packed = self._packed[:]
        return twin

    def pop(self, index: int = -1, /) -> int:  # type: ignore[override]
        """Take the last id. `ValueError` for any other."""
        if index != -1:
            raise ValueError("only the last id can be taken")
        value = super().pop()
        del self._packed[len(self) :]
        return value
