"""Seams between rooms: what each side may rely on, and nothing more. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from branchline.runtime.core.adapters import AdapterInfo, AdapterSource
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.errors import BranchlineError

if TYPE_CHECKING:
    import numpy as np

    from branchline.runtime.core.batch import ForwardOutput, ScheduleBatch
    from branchline.runtime.core.tree import DraftTree
    from branchline.runtime.responses import ToolFormat, ToolSpec
    from branchline.runtime.responses.reasoning import ReasoningFormat

    Bitmask = np.ndarray[tuple[int, int], np.dtype[np.int32]]
    Words = np.ndarray[tuple[int], np.dtype[np.int32]]


class Handle(Protocol):
    """Opaque pointer to a node path of the prefix cache (`memory.CacheHandle`)."""


class Pending(Protocol):
    """A step that was handed to a worker."""

    def result(self) -> ForwardOutput:
        """Wait for the step; raise what it raised."""

    def done(self) -> bool:
        """True when `result` would not wait."""


@runtime_checkable
class DraftingPending(Pending, Protocol):
    """A step whose candidates the worker makes."""

    def trees(self) -> list[DraftTree]:
        """Wait for the candidates, not for the step: one tree for each of the plan's `drafted`, of
        as many places as the plan has; raise what the step raised."""


class Worker(Protocol):
    """Runs steps in the order given. Neither call waits for the device.

    `forward` starts step N as soon as step N - 1 is sampled; `sample` names the mask that must be
    applied to step N's logits. Every `forward` is followed by exactly one `sample`.
    """

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        """awaited: the caller does nothing else until the step is over."""

    def sample(self, pending: Pending, bitmask: Bitmask | None) -> None:
        """bitmask: int32 [s, ceil(V / 32)], one row for each sampled row; bit set = allowed."""

    def close(self) -> None: ...


class Visit(NamedTuple):
    """What a matcher says of the place where it stands.

    Attributes:
        forced: see `TokenMatcher.forced_tokens`; empty where it ends, or where the first of them
            would be refused.
        masked: a mask was written.
    """

    forced: Sequence[int]
    masked: bool


class TokenMatcher(Protocol):
    """One request's place in a compiled grammar."""

    def accept(self, token_id: int) -> bool:
        """Advance; False when the token is not allowed (the matcher is then unchanged)."""

    def fill(self, bitmask: Bitmask, row: int) -> bool:
        """Write the allowed-token bits of `row`; False when everything is allowed (not written)."""

    def rollback(self, num_tokens: int) -> None: ...

    def is_terminated(self) -> bool:
        """True when nothing but the end of sequence may follow."""

    def is_accepting(self) -> bool:
        """True when the output so far is complete as it stands."""

    def forced_tokens(self) -> list[int]:
        """Ids that must follow whatever the model says (canonical tokenization), maybe empty."""

    def accept_forced(self, most: int) -> list[int]:
        """Advance by the `forced_tokens`, `most` of them at most; those that were accepted, none
        where it is terminated."""

    def fork(self) -> TokenMatcher: ...

    def after(self, token_id: int) -> TokenMatcher | None:
        """An independent matcher behind one token more; None when it is not allowed."""

    def visit(self, token_id: int, bitmask: Bitmask, row: int, *, free: bool) -> Visit | None:
        """`accept`, and what is there then; None when it is not allowed (nothing is changed).

        Written is what may follow, unless that is known: nothing where it ends, one id where it is
        forced, everything where everything is allowed or, if it is `free`, it is complete.

        Raises:
            ConstraintError: it gives up there, and can be asked nothing more.
        """


MaskSource: TypeAlias = "TokenMatcher | int | Words | None"
"""Of a row of a step's masks: a matcher whose next id it is for, an id that alone is allowed, or a
mask that is made already, int32 [ceil(V / 32)]; None = everything is allowed."""


class ChatTurns(Protocol):
    """The model's own chat template, turn by turn. Asking for the same turn again costs next to
    nothing.

    Attributes:
        tool_format: how the model writes tool calls.
    """

    tool_format: ToolFormat

    def begin(self, history: Sequence[tuple[str, str]], role: str) -> str:
        """Text between what has been emitted and the content of the next turn of `role`.

        history: (role, content) of the finished turns.
        """

    def end(self, history: Sequence[tuple[str, str]], role: str) -> str:
        """Text after the content of the open turn of `role`, up to where the next turn begins."""

    def with_tools(self, tools: Sequence[ToolSpec]) -> ChatTurns:
        """The same with `tools` declared in the first turn, for formats that are `native`."""


class TextTokenizer(Protocol):
    """Text to ids and back."""

    eos_ids: frozenset[int]
    bos_id: int | None
    vocab_size: int

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """special: special-token strings in the text become their ids; else they are plain text."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...


@runtime_checkable
class PartedTokenizer(Protocol):
    """A `TextTokenizer` that can say where a text may be cut."""

    def parts(self, text: str) -> list[str]:
        """Parts whose ids, joined, are the text's; texts that begin alike begin with the same."""

    def encode_each(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """`TextTokenizer.encode` of each text."""


class EnginePort(Protocol):
    """What the executor of programs needs of an engine. `MockEngine` and `Engine` both give it.

    All calls except `call_soon` are made on the engine's loop thread; so are all callbacks.

    Attributes:
        heals: constrained outputs may begin with text taken back from the prompt (token healing);
            False where answers are scripted.
        reasoning: how the model marks what it thinks; None where it does not think.
    """

    tokenizer: TextTokenizer
    turns: ChatTurns
    model_name: str
    max_context: int
    heals: bool
    reasoning: ReasoningFormat | None

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread, soon, in order; callable from any thread, never blocks."""

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        """Queue a request. Raises `InvalidRequest`/`QueueFull`/… at once when it cannot be run;
        after that exactly one final output (`GenerateResult`, or n of them with ids `id`, `id#1`,
        …, `id#n-1`; or `ScoreResult`, `EmbedResult`) arrives, errors included."""

    def abort(self, request_id: str) -> None:
        """End a request; its final output says "abort". Unknown ids are ignored."""

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """Keep the longest cached prefix of `ids` until `release(lane_id)`.

        ids: the lane's own, which grow later: read them at once.
        adapter: of the lane's requests, so that what they have computed is what is kept.
        """

    def release(self, lane_id: str) -> None:
        """Drop the lane's lease; unknown lanes are ignored."""

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        """Drop every cached prefix that nothing holds; `on_done` gets the tokens freed, or why
        they could not be."""

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """Tell the cached prefixes used most, each behind its parent; or why it cannot be told."""

    def info(self) -> dict[str, Any]: ...


@runtime_checkable
class AdapterPort(Protocol):
    """What an engine port can do besides if its engine takes adapters. Answers come on the loop
    thread; the calls are made there, too, except `adapters` and `adapter`."""

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name, in the order in which they were first loaded. A
        moment's view, from any thread: where an adapter is and who uses it may have changed."""

    def adapter(self, name: str) -> AdapterInfo | None:
        """One of `adapters` by its name, from any thread; None = there is none."""

    def load_adapter(
        self,
        name: str,
        source: AdapterSource,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        pin: bool = False,
    ) -> None:
        """Load an adapter, or another version of one: requests that come after the answer use it,
        those that came before keep the version they have.

        Args:
            source: a folder in PEFT's format, a name (`loading.adapters`), or the files themselves.
            on_done: gets what was loaded, or why it was not (`AdapterError`, `InvalidRequest`);
                then nothing has changed.
            pin: keep it in a slot of the device whatever else is wanted there.
        """

    def unload_adapter(
        self,
        name: str,
        on_done: Callable[[AdapterInfo | BranchlineError], None],
        *,
        drain: bool = False,
    ) -> None:
        """Forget an adapter.

        Args:
            on_done: gets the adapter as it was, once nothing uses it any more, or why it stays:
                `AdapterNotFound`, or `AdapterInUse` where something does and `drain` is False.
            drain: take no more requests for it, and let those that there are end.
        """

    def list_adapters(self, on_done: Callable[[list[AdapterInfo] | BranchlineError], None]) -> None:
        """As `adapters`, asked of the engine itself."""
