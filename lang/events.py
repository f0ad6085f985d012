"""What iterating over a running program yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from branchline.lang.errors import BranchlineError

if TYPE_CHECKING:
    from branchline.lang.state import State
    from branchline.lang.tools import Call


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New generated text of variable `name`.

    Attributes:
        lane: which branch; 0 is the program's own sequence.
    """

    name: str
    text: str
    lane: int = 0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """New text of what the model thinks before the answer of variable `name`.

    Attributes:
        lane: which branch; 0 is the program's own sequence.
    """

    name: str
    text: str
    lane: int = 0


@dataclass(frozen=True, slots=True)
class VariableReady:
    """Variable `name` has its value, or a part of it.

    While JSON is streamed, every field and item has an event of its own as soon as it ends
    (`person.name`, `items[0]`, `table["any key"]`), before what it is part of.

    Attributes:
        value: the typed value; None when the text cannot be read as the type (then `error` says
            why; the program itself decides whether that ends it).
    """

    name: str
    value: Any
    error: BranchlineError | None = None
    lane: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model has written a whole call, which variable `name` will hold; it can be run already.

    Attributes:
        call: with `.name`, `.arguments` and `.run()`.
    """

    name: str
    call: Call
    lane: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The program has ended; `state` is what `run` would have returned."""

    state: State


StreamEvent = TextDelta | ReasoningDelta | VariableReady | ToolCall | Done
