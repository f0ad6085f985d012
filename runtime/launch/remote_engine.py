"""An engine in processes of its own: what `assemble` is for one in this process.

Invariant: when `start` has returned, a token has been generated; when `close` has returned, every
request has ended and no process is left. Imports no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.config.server import ServerSection
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.ipc.messages import Question
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.launch.remote_port import RemotePort
from branchline.runtime.launch.supervisor import State, Supervisor
from branchline.runtime.launch.text_parts import TextParts, load_text


class RemoteEngine:
    """Processes, the port to them, and the text side in this one.

    Args:
        settings: flat settings of the engine, as `Engine` takes them.
        server: how the processes are watched.
        on_failed: called on the loop thread when a working engine is given up.

    Attributes:
        port: the engine, for programs and routes.
        text: tokenizer and chat template.

    Raises:
        InvalidRequest, CatalogError, ModelLoadError: the settings, or the model's tokenizer.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        server: ServerSection | None = None,
        on_failed: Callable[[BranchlineError], None] = lambda error: None,
    ) -> None:
        config = EngineConfig.from_settings(settings)
        self.text: TextParts = load_text(config)
        self._on_failed = on_failed
        self._loop = SocketLoop("branchline-port")
        self.port = RemotePort(
            self.text.tokenizer,
            self.text.turns,
            self.text.model_name,
            self._loop,
            config.scheduler,
            self.text.reasoning,
        )
        self._first = threading.Event()
        self._supervisor = Supervisor(
            self.port, self._loop, settings, server or ServerSection(), self._settled
        )
        self.port.describe = self._supervisor.describe
        self._closed = False

    def start(self) -> None:
        """Start the processes and wait for the first token.

        Raises:
            BranchlineError: what kept them from starting; nothing is left of them.
        """
        self._loop.start()
        try:
            self._first.wait()
        except BaseException:  # Ctrl-C while a model loads
            self.close()
            raise
        failure = self._supervisor.failure
        if failure is not None:
            self.close()
            raise failure

    def health(self) -> str:
        """Why requests cannot run right now; "" when they can. Any thread."""
        supervisor = self._supervisor
        if supervisor.state is State.READY:
            return ""
        if supervisor.failure is not None:
            return str(supervisor.failure)
        return f"the engine is {supervisor.state.name.lower()}"

    def ask(self, what: Question, timeout_s: float = 30.0) -> Any:
        """Ask the scheduler and wait for its answer. Not on the loop thread.

        Raises:
            BackendError: no scheduler is ready, or it did not answer in time.
        """
        done = threading.Event()
        box: list[Any] = []

        def answered(value: Any) -> None:
            box.append(value)
            done.set()

        self._loop.call_soon(lambda: self.port.ask(what, answered))
        if not done.wait(timeout_s):
            raise BackendError(
                f"the scheduler gave no answer within {timeout_s:g} s", retryable=True
            )
        if isinstance(box[0], BranchlineError):
            raise box[0]
        return box[0]

    def close(self) -> None:
        """End every request with an error, then the processes. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon(self._supervisor.stop)
        if not self._loop.started:
            self._loop.start()
        self._loop.close()
        self._supervisor.close()

    def __enter__(self) -> RemoteEngine:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _settled(self, error: BranchlineError | None) -> None:
        if error is not None and self._first.is_set():
            self._on_failed(error)
        self._first.set()
