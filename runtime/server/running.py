"""What is being generated, by the name its client knows, so that it can be ended by name.

Invariant: a name belongs to the caller who gave it; nobody else can end it or take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from branchline.runtime.server.errors import Refused
from branchline.runtime.server.keys import Caller


class RunningRequests:
    """Names of running requests to the engine's ids."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], Sequence[str]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @contextmanager
    def named(self, name: str, caller: Caller, ids: Sequence[str]) -> Iterator[None]:
        """`name` stands for these engine requests while the block runs.

        Raises:
            Refused: the caller has a running request of that name.
        """
        key = (caller.tenant, name)
        if key in self._ids:
            raise Refused(
                400, "a request with this id is running", value=name, hint="Use another id."
            )
        self._ids[key] = ids
        try:
            yield
        finally:
            del self._ids[key]

    def ids(self, name: str, caller: Caller) -> Sequence[str]:
        """Engine ids of the caller's request of exactly this name; none where it has none."""
        return self._ids.get((caller.tenant, name), ())

    def find(self, name: str, caller: Caller) -> list[str]:
        """Engine ids of the caller's requests whose name begins with `name`."""
        return [
            engine_id
            for (tenant, known), ids in self._ids.items()
            if tenant == caller.tenant and known.startswith(name)
            for engine_id in ids
        ]

    def all(self) -> list[str]:
        """Engine ids of everybody's requests."""
        return [engine_id for ids in self._ids.values() for engine_id in ids]
