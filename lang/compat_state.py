"""Names that states have in SGLang's language, on top of this one's. Adds no behaviour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from branchline.lang.errors import BranchlineError
    from branchline.lang.run import Run
    from branchline.lang.state import State


class OldNames:
    """Base of `State`."""

    if TYPE_CHECKING:
        result: Any
        _run: Run

        def __getitem__(self, name: str) -> Any: ...
        def set(self, name: str, value: object) -> None: ...
        def scope(self, name: str) -> AbstractContextManager[State]: ...
        def meta(self, name: str) -> Any: ...
        def text(self) -> str: ...

    @property
    def ret_value(self) -> Any:
        """`result`."""
        return self.result

    def get_var(self, name: str) -> Any:
        """`s[name]`."""
        return self[name]

    def set_var(self, name: str, value: object) -> None:
        """`s.set(name, value)`."""
        self.set(name, value)

    def var_scope(self, name: str) -> AbstractContextManager[State]:
        """`s.scope(name)`."""
        return self.scope(name)

    def get_meta_info(self, name: str) -> Any:
        """`s.meta(name)` as a dict (or a list of them)."""
        meta = self.meta(name)
        if isinstance(meta, list):
            return [msgspec.structs.asdict(item) for item in meta]
        return msgspec.structs.asdict(meta)

    def text_iter(self, name: str | None = None) -> Iterator[str]:
        """The text of variable `name`, or of everything, in one piece."""
        yield self.text() if name is None else self.meta_text(name)

    async def text_async_iter(
        self, name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Like `text_iter`."""
        for piece in self.text_iter(name):
            yield (piece, self.get_meta_info(name or "")) if return_meta_data else piece

    def meta_text(self, name: str) -> str:
        """Raw text of a variable; raises what went wrong."""
        value = self[name]
        return value if isinstance(value, str) else str(self.meta(name).text)

    def error(self) -> BranchlineError | None:
        """What has gone wrong so far. `run` raises it, so a returned state has none."""
        return self._run.failure

    def sync(self) -> None:
        """Wait until everything appended so far has run; raises what went wrong."""
        self.text()
