"""What a variable name stands for: a value in flight, a constant, a list, or a stretch of text.

Invariant: once `ready()` is true it stays true, and `value()` and `meta()` then return or raise at
once. Filled in by the run under its lock; read by any thread. Knows nothing of how to wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from branchline.lang.errors import BranchlineError, Cancelled, ConstraintError, TruncatedError
from branchline.lang.partials import Watch
from branchline.lang.tools import ToolBox
from branchline.lang.types import TEXT, ValueType
from branchline.runtime.core.outputs import RequestMeta, TokenLogprob
from branchline.runtime.programs.protocol import ChoiceScore, ToolReply


class VariableMeta(RequestMeta, kw_only=True):
    """Counts, times and raw text of one variable; see `RequestMeta` for the counts.

    Attributes:
        text: the raw text, also where the typed value cannot be read.
        texts: all n texts.
        logprobs: one entry for each generated token, when asked for.
        choices: scores of a select, in the order given.
        reasoning: what the model thought first; no part of `text`.
        reasonings: the same of all n texts; empty where it did not think.
        error: what went wrong, if it did.
    """

    text: str = ""
    texts: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: tuple[ChoiceScore, ...] = ()
    reasoning: str = ""
    reasonings: tuple[str, ...] = ()
    error: BranchlineError | None = None


class Variable(Protocol):
    """One entry of a state's variables."""

    def ready(self) -> bool:
        """True when nothing has to be waited for."""

    def error(self) -> BranchlineError | None:
        """Why there is no value, if it failed."""

    def value(self) -> Any:
        """The typed value; raises what went wrong."""

    def text(self) -> str:
        """The raw text; raises what went wrong."""

    def meta(self) -> VariableMeta | list[VariableMeta]:
        """Counts and texts; does not raise where the variable failed."""


class Slot:
    """The value of a generate or select node.

    Attributes:
        partial: pieces of streamed text so far.
        branches: how each choice of a select is read, where some are types; `taken`: which it was.
        watch: follows the parts of a JSON value that is streamed.
        tools: whose calls the text may hold; then `replies` are what the texts say.
        failure: what went wrong; also set when the program ended without the value.
    """

    __slots__ = (
        "_found",
        "branches",
        "choices",
        "done",
        "failure",
        "lane",
        "logprobs",
        "name",
        "node",
        "partial",
        "program",
        "reasoning",
        "replies",
        "request",
        "taken",
        "texts",
        "tools",
        "type",
        "watch",
    )

    def __init__(self, name: str, lane: int, node: int, kind: ValueType, program: str) -> None:
        self.name = name
        self.lane = lane
        self.node = node
        self.type = kind
        self.program = program
        self.done = False
        self.texts: tuple[str, ...] = ()
        self.partial: list[str] = []
        self.request: RequestMeta | None = None
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self.choices: tuple[ChoiceScore, ...] = ()
        self.reasoning: tuple[str, ...] = ()
        self.branches: tuple[ValueType, ...] = ()
        self.taken = -1
        self.failure: BranchlineError | None = None
        self.watch: Watch | None = None
        self.tools: ToolBox | None = None
        self.replies: tuple[ToolReply, ...] = ()
        self._found: dict[str, dict[str, Any]] = {}

    def fail(self, error: BranchlineError) -> None:
        """End without a value; the first outcome stays."""
        if not self.done:
            self.failure = error
            self.done = True

    def ready(self) -> bool:
        return self.done

    def error(self) -> BranchlineError | None:
        return self.failure

    def text(self) -> str:
        self._raise()
        return self.texts[0]

    def value(self) -> Any:
        self._raise()
        if self.tools is not None:
            return self._read_replies(self.tools)
        kind = self.branches[self.taken] if self.branches else self.type
        if kind is TEXT and len(self.texts) == 1:
            return self.texts[0]
        return self._each(kind.value)

    def said(self) -> str:
        """The text without calls; raises what went wrong."""
        return self.replies[0].text if self.tools is not None and self.replies else self.text()

    def _read_replies(self, box: ToolBox) -> Any:
        found = iter(self.replies)
        return self._each(lambda _, *, truncated: box.reply(next(found), truncated=truncated))

    def captured(self, name: str) -> Any:
        """The value of a capture inside; raises as `value`."""
        self._raise()
        return self._each(lambda text, *, truncated: self._captures(text, truncated)[name])

    def _captures(self, text: str, truncated: bool) -> dict[str, Any]:
        if text not in self._found:
            self._found[text] = self.type.captured(text, truncated=truncated)
        return self._found[text]

    def _each(self, read: Callable[..., Any]) -> Any:
        """What `read` makes of the text, or of each of n texts."""
        cut = self.request is not None and self.request.finish_reason not in ("stop", "constraint")
        try:
            values = [read(text, truncated=cut) for text in self.texts]
        except BranchlineError as error:
            found = self._by_a_stop(error)
            raise found.located(program=self.program, variable=self.name) from None
        return values[0] if len(values) == 1 else values

    def _by_a_stop(self, error: BranchlineError) -> BranchlineError:
        """What to say of a text that cannot be read: a stop may have cut it."""
        stop = None if self.request is None else self.request.matched
        if stop is None or type(error) is not ConstraintError:
            return error
        return TruncatedError(
            f"the output was cut by the stop {stop!r} before it could be read",
            value=error.value,
            hint="Ask without that stop; the text is in meta(...).text.",
        )

    def _raise(self) -> None:
        if self.failure is not None:
            raise self.failure.with_traceback(None)  # else it grows with every reader

    def meta(self) -> VariableMeta:
        counts = msgspec.structs.asdict(self.request) if self.request is not None else {}
        texts = self.texts or ("".join(self.partial),)
        if self.failure is not None and self.request is None:
            counts["finish_reason"] = "error"
        return VariableMeta(
            **counts,
            text=texts[0],
            texts=texts,
            logprobs=self.logprobs,
            choices=self.choices,
            reasoning=self.reasoning[0] if self.reasoning else "",
            reasonings=self.reasoning,
            error=self.failure,
        )


class Captured:
    """A part of a generated text that a `capture` names."""

    __slots__ = ("_name", "_slot")

    def __init__(self, slot: Slot, name: str) -> None:
        self._slot = slot
        self._name = name

    def ready(self) -> bool:
        return self._slot.ready()

    def error(self) -> BranchlineError | None:
        return self._slot.error()

    def value(self) -> Any:
        return self._slot.captured(self._name)

    def text(self) -> str:
        return str(self.value())

    def meta(self) -> VariableMeta:
        return self._slot.meta()


class Thought:
    """What the model thought before the answer of a slot; "" where it did not."""

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def ready(self) -> bool:
        return self._slot.ready()

    def error(self) -> BranchlineError | None:
        return self._slot.error()

    def value(self) -> Any:
        self._slot.text()  # raises what went wrong
        thoughts = list(self._slot.reasoning)
        return thoughts if len(thoughts) > 1 else "".join(thoughts)

    def text(self) -> str:
        self._slot.text()
        return self._slot.reasoning[0] if self._slot.reasoning else ""

    def meta(self) -> VariableMeta:
        return self._slot.meta()


class Constant:
    """A value the program set."""

    __slots__ = ("item",)

    def __init__(self, item: object) -> None:
        self.item = item

    def ready(self) -> bool:
        return True

    def error(self) -> BranchlineError | None:
        return None

    def value(self) -> Any:
        return self.item

    def text(self) -> str:
        return str(self.item)

    def meta(self) -> VariableMeta:
        return VariableMeta(text=self.text(), texts=(self.text(),))


class Items:
    """A list: of one name's appended values, or of the branches' values after a join.

    With `keep_errors`, a failed item's place holds its exception.
    """

    __slots__ = ("items", "keep_errors")

    def __init__(self, items: list[Variable], *, keep_errors: bool = False) -> None:
        self.items = items
        self.keep_errors = keep_errors

    def ready(self) -> bool:
        return all(item.ready() for item in self.items)

    def error(self) -> BranchlineError | None:
        if self.keep_errors:
            return None
        errors = [error for item in self.items if (error := item.error()) is not None]
        # A branch that failed cancels its siblings: theirs is not the reason.
        return min(errors, key=lambda error: isinstance(error, Cancelled), default=None)

    def value(self) -> Any:
        if self.keep_errors:
            return [item.error() or item.value() for item in self.items]
        self._raise()
        return [item.value() for item in self.items]

    def text(self) -> str:
        self._raise()
        return "".join(item.text() for item in self.items)

    def _raise(self) -> None:
        if (error := self.error()) is not None:
            raise error.with_traceback(None)  # else it grows with every reader

    def meta(self) -> list[VariableMeta]:
        metas: list[VariableMeta] = []
        for item in self.items:
            found = item.meta()
            metas += found if isinstance(found, list) else [found]
        return metas


class Span:
    """The text appended inside a scope.

    Args:
        texts: gives the literal texts and the variables of the scope, in order, or None while the
            scope is open.
    """

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Callable[[], list[str | Variable] | None]) -> None:
        self._pieces = pieces

    def ready(self) -> bool:
        pieces = self._pieces()
        return pieces is not None and all(isinstance(p, str) or p.ready() for p in pieces)

    def error(self) -> BranchlineError | None:
        for piece in self._pieces() or []:
            if not isinstance(piece, str) and (error := piece.error()) is not None:
                return error
        return None

    def value(self) -> str:
        return self.text()

    def text(self) -> str:
        return "".join(p if isinstance(p, str) else p.text() for p in self._pieces() or [])

    def meta(self) -> VariableMeta:
        return VariableMeta(text=self.text(), texts=(self.text(),))


class Usage(msgspec.Struct, frozen=True):
    """Sums over all values a program has so far; the fields are those of `RequestMeta`."""

    generations: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forwards: int = 0


def usage_of(slots: list[Slot]) -> Usage:
    """Sum the finished ones."""
    metas = [slot.request for slot in slots if slot.request is not None]
    names = Usage.__struct_fields__[1:]
    return Usage(len(metas), *(sum(getattr(meta, name) for meta in metas) for name in names))
