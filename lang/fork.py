"""Branches: states that share every token so far, and how they come together again.

Appending never waits, so branch bodies written one after another run at the same time. A join does
not wait either: the parent's lists fill as the branches finish, and reading one waits for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from branchline.lang.append import append
from branchline.lang.errors import BranchlineError, InvalidRequest, NameInUse, ProgramError
from branchline.lang.expressions import as_expression
from branchline.lang.transcript import Transcript
from branchline.lang.variables import Items, Slot, Variable
from branchline.runtime.programs import protocol

if TYPE_CHECKING:
    from branchline.lang.state import State

MAX_BRANCHES = 4096

JoinMode = Literal["gather", "append", "gather_variable", "concate_and_append"]
_MODES: dict[str, Literal["gather", "append"]] = {
    "gather": "gather",
    "append": "append",
    "gather_variable": "gather",
    "concate_and_append": "append",
}


def fork(state: State, n: int = 1, *, on_error: Literal["cancel", "keep"] = "cancel") -> Forks:
    """`n` states that share all tokens of `state` so far.

    Raises `InvalidRequest` for a wrong `n` or `on_error`.
    """
    from branchline.lang.state import LaneOrigin, State

    n = _branch_count(state, n)
    if on_error not in ("cancel", "keep"):
        raise InvalidRequest("unknown on_error", value=on_error, hint="Use 'cancel' or 'keep'.")
    state._check()
    state._need("fork", "fork")
    run, keep = state._run, on_error == "keep"
    lanes = run.new_lanes(state._lane, n, keep_errors=keep)
    run.emit(protocol.Fork(state._lane, run.next_node(), lanes))
    branches = [
        State(
            run,
            defaults=state._defaults,
            origin=LaneOrigin(
                lane,
                Transcript(state._transcript),
                dict(state._variables),
                state._unnamed,
                keep or state._keeps_errors,
            ),
        )
        for lane in lanes
    ]
    return Forks(state, branches, keep_errors=keep)


def _branch_count(state: State, n: object) -> int:
    if state._run.tracing and isinstance(n, SupportsIndex):
        n = n.__index__()  # a value that is not known yet counts as 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_BRANCHES:
        raise InvalidRequest(
            "fork needs a number of branches", value=n, hint=f"Give 1 to {MAX_BRANCHES}."
        )
    return n


class Forks(Sequence["State"]):
    """Branches of one fork: iterate, index, `forks += expr`, `with`, `join`, `first`."""

    def __init__(self, parent: State, branches: list[State], *, keep_errors: bool) -> None:
        self.parent = parent
        self._branches = branches
        self._keep_errors = keep_errors
        self._joined = False

    def __len__(self) -> int:
        return len(self._branches)

    @overload
    def __getitem__(self, index: int) -> State: ...

    @overload
    def __getitem__(self, index: slice) -> list[State]: ...

    def __getitem__(self, index: int | slice) -> State | list[State]:
        return self._branches[index]

    def __setitem__(self, index: int, value: State) -> None:
        """So that `forks[i] += expr` works; anything else than the branch itself is refused."""
        if self._branches[index] is not value:
            raise ProgramError("a branch cannot be replaced", hint="Append to it: forks[i] += …")

    def __iter__(self) -> Iterator[State]:
        return iter(self._branches)

    def __iadd__(self, value: object) -> Forks:
        """Append to every branch; a function of the branch's number gives each its own."""
        if inspect.isroutine(value):
            expressions = [as_expression(value(index)) for index in range(len(self))]
        else:
            expressions = [as_expression(value)] * len(self)
        for branch in self._branches:
            branch._check()
        with self.parent._run.outbox.batched():
            for branch, expression in zip(self._branches, expressions, strict=True):
                append(branch, expression)
        return self

    # ---- coming together

    def join(self, mode: JoinMode = "gather") -> Joined:
        """Bring the branches back to the parent; they take nothing more.

        "gather" makes each variable of the branches a list on the parent, in branch order, of the
        branches that define it; "append" also appends what each branch has added, in order.
        Does not wait; the result can be awaited until all branches have finished.

        Raises:
            NameInUse: a branch variable is one of the parent's.
            ProgramError: joined before, or turns do not fit together.
        """
        if mode not in _MODES:
            raise InvalidRequest(
                "unknown join mode", value=mode, hint=f"Use one of {', '.join(_MODES)}."
            )
        self.parent._check()
        if self._joined:
            raise ProgramError(
                "the branches have been joined", program=self.parent._run.name, hint="Join once."
            )
        gathered = self._gathered()
        self._joined = True
        if _MODES[mode] == "append":
            self._append_text()
        run = self.parent._run
        live = [branch for branch in self._branches if branch._lane not in run.lanes.cancelled]
        children = tuple(branch._lane for branch in live)
        if children:
            run.emit(
                protocol.Join(self.parent._lane, run.next_node(), children, _MODES[mode]),
                start=True,
            )
        for branch in self._branches:
            branch._joined = True
        self.parent._variables.update(gathered)
        self.parent._unnamed = max(
            self.parent._unnamed, *(branch._unnamed for branch in self._branches)
        )
        run.readers.notify()
        return Joined(self)

    def _gathered(self) -> dict[str, Items]:
        parent = self.parent
        found: dict[str, list[Variable]] = {}
        for branch in self._branches:
            if branch._lane in parent._run.lanes.cancelled:
                continue
            for name, variable in branch._variables.items():
                if name not in branch._inherited:
                    found.setdefault(name, []).append(variable)
        for name in list(found):
            if name in parent._variables:
                if name.startswith("_") and name[1:].isdigit():
                    del found[name]  # nobody has chosen this name
                    continue
                raise NameInUse(
                    f"branch variable {name!r} shadows the parent's",
                    program=parent._run.name,
                    variable=name,
                    hint="Give one of them another name.",
                )
        return {name: Items(vs, keep_errors=self._keep_errors) for name, vs in found.items()}

    def _append_text(self) -> None:
        transcript = self.parent._transcript
        for branch in self._branches:
            if branch._transcript.role != transcript.role:
                raise ProgramError(
                    "a branch and its parent stand in different turns",
                    program=self.parent._run.name,
                    value=f"{branch._transcript.role or 'no turn'} and "
                    f"{transcript.role or 'no turn'}",
                    hint="End the turn before the join.",
                )
        for branch in self._branches:
            transcript.pieces += branch._transcript.pieces

    def cancel(self) -> None:
        """End all branches now; what they have not computed yet becomes `Cancelled`."""
        self.parent._run.cancel_lanes(
            tuple(branch._lane for branch in self._branches), "the branches were cancelled"
        )

    # ---- racing

    def first(self, k: int = 1) -> First:
        """Wait until `k` branches have all their values, cancel the others; a list, fastest first.

        In an async program, await it. Raises the first error when fewer than `k` can succeed.
        """
        if not isinstance(k, int) or not 1 <= k <= len(self._branches):
            raise InvalidRequest(
                "first needs a number of branches", value=k, hint=f"Give 1 to {len(self)}."
            )
        race = First(self, k)
        if not self.parent._run.asynchronous:
            race.finish()
        return race

    # ---- with

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        elif not self._joined:
            self.join()

    async def __aenter__(self) -> Forks:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        elif not self._joined:
            await self.join()


class Joined:
    """Awaiting it waits until all branches have finished, and raises the first error."""

    __slots__ = ("_forks",)

    def __init__(self, forks: Forks) -> None:
        self._forks = forks

    def __await__(self) -> Generator[Any, None, None]:
        forks = self._forks
        slots = [slot for branch in forks for slot in _own_slots(branch)]
        yield from forks.parent._run.arrival(lambda: all(s.done for s in slots)).__await__()
        if not forks._keep_errors:
            forks.parent._check()


class First(list["State"]):
    """The fastest branches, in the order in which they finished; fills when it is waited for."""

    def __init__(self, forks: Forks, k: int) -> None:
        super().__init__()
        self._forks = forks
        self._k = k
        self._order: list[State] = []
        self._slots = [(branch, _own_slots(branch)) for branch in forks]

    def _settled(self) -> bool:
        """Enough branches have finished, or too many have failed. Called as events come."""
        failed = 0
        for branch, slots in self._slots:
            if any(slot.failure is not None for slot in slots):
                failed += 1
            elif branch not in self._order and all(slot.done for slot in slots):
                self._order.append(branch)
        return len(self._order) >= self._k or failed > len(self._slots) - self._k

    def finish(self) -> None:
        """Wait, then cancel the others."""
        self._forks.parent._run.wait_until(self._settled)
        self._take()

    def __await__(self) -> Generator[Any, None, First]:
        yield from self._forks.parent._run.arrival(self._settled).__await__()
        self._take()
        return self

    def _take(self) -> None:
        if len(self._order) < self._k:
            raise self._first_error()
        self[:] = self._order[: self._k]
        others = tuple(branch._lane for branch in self._forks if branch not in self)
        run = self._forks.parent._run
        run.cancel_lanes(others, f"{self._k} other branches were faster")

    def _first_error(self) -> BranchlineError:
        errors = [s.failure for _, slots in self._slots for s in slots if s.failure is not None]
        run = self._forks.parent._run
        return run.failure or errors[0]


def _own_slots(branch: State) -> list[Slot]:
    return [piece for piece in branch._transcript.pieces if isinstance(piece, Slot)]
