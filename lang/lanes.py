"""Which branch forked from which, and how far a failure reaches.

A branch that fails cancels its siblings and fails the lane it forked from, and so on up to the
program, unless a fork keeps errors: then it stays in its branch. Lanes that were cancelled on
purpose fail nobody. Pure bookkeeping; the run holds the lock.
"""

from __future__ import annotations

from typing import NamedTuple

from branchline.lang.errors import BranchlineError


class Group:
    """Lanes made by one fork."""

    __slots__ = ("keep_errors", "members", "parent")

    def __init__(self, parent: int, members: tuple[int, ...], keep_errors: bool) -> None:
        self.parent = parent
        self.members = members
        self.keep_errors = keep_errors


class Verdict(NamedTuple):
    """What follows from a failure: lanes to cancel, and whether the whole program has failed."""

    cancel: tuple[int, ...]
    fatal: bool


class Lanes:
    """The lane tree of one run. Lane 0 is its root."""

    def __init__(self) -> None:
        self.any_failed = False
        self._next = 1
        self.errors: dict[int, BranchlineError] = {}
        self.cancelled: set[int] = set()
        self._groups: dict[int, Group] = {}
        self._children: dict[int, list[int]] = {}

    def add(self, parent: int, size: int, *, keep_errors: bool) -> tuple[int, ...]:
        """Numbers of `size` new lanes forked from `parent`; they share the fate of one that has
        ended.
        """
        members = tuple(range(self._next, self._next + size))
        self.adopt(parent, members, keep_errors=keep_errors)
        return members

    def adopt(self, parent: int, members: tuple[int, ...], *, keep_errors: bool) -> None:
        """Like `add`, with numbers that are given."""
        self._next = max(self._next, *(lane + 1 for lane in members))
        group = Group(parent, members, keep_errors)
        for lane in members:
            self._groups[lane] = group
            if parent in self.cancelled:
                self.cancelled.add(lane)
            if parent in self.errors:
                self.errors[lane] = self.errors[parent]
        self._children.setdefault(parent, []).extend(members)

    def fail(self, lane: int, error: BranchlineError) -> Verdict:
        """`lane` has failed with `error`."""
        if lane in self.cancelled:
            self.errors.setdefault(lane, error)
            return Verdict((), False)
        self.any_failed = True
        if lane in self.errors:
            return Verdict((), False)
        cancel: list[int] = []
        while True:
            self.errors.setdefault(lane, error)
            group = self._groups.get(lane)
            if group is None or group.keep_errors:
                return Verdict(tuple(cancel), group is None)
            cancel += self.cancel(tuple(other for other in group.members if other != lane))
            lane = group.parent
            if lane in self.cancelled:
                return Verdict(tuple(cancel), False)

    def cancel(self, lanes: tuple[int, ...]) -> tuple[int, ...]:
        """Mark lanes and everything forked from them; those not cancelled before."""
        found: list[int] = []
        todo = list(lanes)
        while todo:
            lane = todo.pop()
            if lane not in self.cancelled:
                self.cancelled.add(lane)
                found.append(lane)
            todo += self._children.get(lane, ())
        return tuple(found)
