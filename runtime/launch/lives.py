"""Lives of processes: how one is started, with sockets of its own, and what is wrong with one.

Invariant: every life has endpoints that no other life had, in a folder that only this user can
look into, so nothing stale can arrive. Knows nothing of what follows from a death.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zmq

from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.ipc.child import Child
from branchline.runtime.ipc.messages import Beat, ToPort, ToScheduler
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Inbox, Outlet
from branchline.runtime.launch.starts import ProcessStart, port_codec, scheduler_codec

Role = Literal["scheduler", "detokenizer"]

MODULES: dict[Role, str] = {
    "scheduler": "branchline.runtime.launch.scheduler_process",
    "detokenizer": "branchline.runtime.launch.detokenizer_process",
}
MAX_SOCKET_PATH = 80
"""Paths of sockets have to fit into 107 bytes."""


@dataclass(slots=True, eq=False)
class Life:
    """One process from its start to its end.

    Attributes:
        endpoint: where it listens.
        inbox: what it says to this process.
        loaded: it has said that it works.
        turns: of its loop, by its last heartbeat.
        alive_at, moved_at: when it last said anything, and when it last was idle or got on.
        why: what it said about its failure to start.
        corrupt_there: frames that it could not read.
    """

    role: Role
    child: Child
    endpoint: str
    inbox: Inbox[ToPort]
    loaded: bool = False
    turns: int = -1
    alive_at: float = field(default_factory=time.monotonic)
    moved_at: float = field(default_factory=time.monotonic)
    why: BranchlineError | None = None
    corrupt_there: int = 0

    @property
    def corrupt(self) -> int:
        """Frames that could not be read, by it or of it."""
        return self.inbox.corrupt + self.corrupt_there

    def heard(self, message: ToPort) -> None:
        """It said something."""
        self.alive_at = time.monotonic()
        if isinstance(message, Beat):
            self.corrupt_there = message.corrupt
            if message.turns == self.turns and message.busy:
                return  # alive, but where it was
            self.turns = message.turns
        self.moved_at = self.alive_at

    def begins(self) -> None:
        """It has loaded; from now on it must move."""
        self.loaded = True
        self.excuse()

    def excuse(self) -> None:
        """Silence until now does not count."""
        self.alive_at = self.moved_at = time.monotonic()

    def problem(self, hang_timeout_s: float) -> BranchlineError | None:
        """What is wrong with it; None while nothing is."""
        if self.child.ended:
            return self.why or BackendError(
                f"the {self.role} process ended ({self.child.how_it_ended})"
            )
        if self.why is not None:
            return self.why
        now, limit = time.monotonic(), f"{hang_timeout_s:g} s"
        if self.loaded and now - self.alive_at > hang_timeout_s:
            return BackendError(f"the {self.role} process gave no sign of life for {limit}")
        if self.loaded and now - self.moved_at > hang_timeout_s:
            return BackendError(f"the {self.role} process finished no step within {limit}")
        return None


class Births:
    """Starts processes that are heard on one loop. Loop thread only, but for `close`.

    Args:
        settings: of the engine.
        hear: given every message with the life that said it.

    Raises:
        BackendError: no folder for the sockets can be made.
    """

    def __init__(
        self,
        loop: SocketLoop,
        settings: dict[str, Any],
        server: ServerSection,
        hear: Callable[[Life, ToPort], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._server = server
        self._hear = hear
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._folder = _private_folder()
        self._count = 0

    def endpoint(self, role: Role) -> str:
        """A fresh place to listen at."""
        self._count += 1
        return f"ipc://{self._folder}/{role[0]}{self._count}"

    def start(self, role: Role, endpoint: str, peer: str) -> Life:
        """Start a process that listens at `endpoint`, beside one that listens at `peer`."""
        inbox: Inbox[ToPort] = Inbox(self._context, f"{endpoint}-port", port_codec())
        start = ProcessStart(
            settings=self._settings,
            inbox=endpoint,
            port=inbox.endpoint,
            peer=peer,
            log_level=self._server.log_level,
            log_format="json" if self._server.log_format == "json" else "text",
        )
        life = Life(role, Child(MODULES[role], start), endpoint, inbox)
        self._loop.watch(inbox, lambda message: self._hear(life, message))
        return life

    def outlet(self, scheduler: Life) -> Outlet[ToScheduler]:
        """A way to say something to a scheduler."""
        return Outlet(self._context, scheduler.endpoint, scheduler_codec())

    def end(self, life: Life) -> None:
        """Have it end, whatever state it is in, and hear no more of it; does not wait."""
        life.child.kill()
        self._loop.unwatch(life.inbox)

    def close(self) -> None:
        """Remove sockets and folder, when all lives have ended."""
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder of this user alone, with a path short enough for sockets."""
    for base in (None, "/tmp"):
        try:
            folder = Path(tempfile.mkdtemp(prefix="branchline-", dir=base))
        except OSError as error:
            raise BackendError(
                f"no folder for sockets can be made: {error}", hint="Set TMPDIR to a short path."
            ) from error
        if len(str(folder)) <= MAX_SOCKET_PATH:
            return folder
        folder.rmdir()
    raise BackendError("temporary paths are too long", hint="Set TMPDIR to a short path.")
