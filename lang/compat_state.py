"""Names that states have in SGLang's language, on top of this one's. Adds no behaviour."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from branchline.lang.errors import BranchlineError
    from branchline.lang.run import Run
    from branchline.lang.state import State
    from branchline.lang.variables import Variable, VariableMeta


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
        def _read(self, name: str, use: Callable[[Variable], str]) -> str: ...

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
        """`s.meta(name)` as a dict (or a list of them); see `meta_info`."""
        meta = self.meta(name)
        return [meta_info(item) for item in meta] if isinstance(meta, list) else meta_info(meta)

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text of a variable, or of everything, in one piece."""
        yield self.text() if var_name is None else self.meta_text(var_name)

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Like `text_iter`."""
        for piece in self.text_iter(var_name):
            yield (piece, self.get_meta_info(var_name or "")) if return_meta_data else piece

    def meta_text(self, name: str) -> str:
        """Raw text of a variable; raises what went wrong."""
        return self._read(name, lambda variable: variable.text())

    def error(self) -> BranchlineError | None:
        """What has gone wrong so far. `run` raises it, so a returned state has none."""
        return self._run.failure

    def sync(self) -> None:
        """Wait until everything appended so far has run; raises what went wrong."""
        self.text()


def meta_info(meta: VariableMeta) -> dict[str, Any]:
    """All fields of `meta`, and SGLang's names of some: `completion_tokens`; for log-probabilities
    that were asked for `output_token_logprobs` and `output_top_logprobs`, entries of (natural
    logarithm, token id, None); for the choices of a `select` `input_token_logprobs`, a list of
    such entries each, without ids, and `normalized_prompt_logprobs`, their means.
    """
    found = msgspec.structs.asdict(meta)
    found["completion_tokens"] = meta.output_tokens
    if meta.logprobs:
        found["output_token_logprobs"] = [(t.logprob, t.token_id, None) for t in meta.logprobs]
        found["output_top_logprobs"] = [
            [(logprob, token_id, None) for token_id, logprob in token.top]
            for token in meta.logprobs
        ]
    if meta.choices:
        rows = [choice.token_logprobs for choice in meta.choices]
        found["input_token_logprobs"] = [[(value, None, None) for value in row] for row in rows]
        found["normalized_prompt_logprobs"] = [math.fsum(row) / max(len(row), 1) for row in rows]
    return found
