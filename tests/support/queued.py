"""What code queues on a device, seen on a CPU: each operation that is no view is a launch there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Queued(TorchDispatchMode):
    """As a context: names of the operations that are not views, in `names`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not self._inside:
            self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))

    def one_launch(self, replay: Callable[[], Any]) -> Callable[[], Any]:
        """The same call, as one operation "replay" whatever it does."""

        def call() -> Any:
            self.names.append("replay")
            self._inside += 1
            try:
                return replay()
            finally:
                self._inside -= 1

        return call
