"""What the pieces of a schema are made of while they are expanded.

Invariant: a `Factor` is one keyword (or a family that belongs together) at one place, as the set
of values of one type that fulfil it and the set of those that do not. Knows no keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from branchline.runtime.grammar.json_schema.document import Document, Node, malformed
from branchline.runtime.grammar.json_schema.languages import Language, Languages
from branchline.runtime.grammar.json_schema.sets import Kind, State, Values

Union = Sequence[Values]
"""Values in at least one of the sets, all of one type."""


class Factor(NamedTuple):
    """A keyword at a place: who fulfils it, who does not (found only when asked).

    `within`, where there is one, says who of a union fulfils it, for less than `yes` alone takes.
    """

    keyword: str
    yes: Callable[[], Union]
    no: Callable[[], Union]
    within: Callable[[Union], Union] | None = None


class Context(Protocol):
    """What keywords ask of the one that expands schemas."""

    document: Document
    languages: Languages

    def state(self, node: Node, holds: bool = True) -> State:
        """The state in which a schema holds, or does not."""

    def nothing(self) -> State:
        """The state no value is in."""

    def sets(self, node: Node, holds: bool, kind: Kind) -> Union:
        """Values of a type for which a schema holds, or does not."""

    def factors(self, node: Node, kind: Kind) -> list[Factor]:
        """All that must hold for a schema to hold, those of `allOf` and `$ref` among them."""

    def both(self, left: Union, right: Union, keyword: str, path: str) -> Union:
        """Values in both unions."""

    def overlap(self, left: Union, right: Union, keyword: str, path: str) -> bool:
        """Whether there are any, which takes less."""

    def either(self, unions: Sequence[Union]) -> Union:
        """Values in one of the unions."""

    def text_language(self, state: State) -> Language:
        """Strings of a state."""


def whole(value: object, node: Node, keyword: str) -> int:
    """A count: a non-negative integer.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise malformed(f"{node.path}/{keyword}", "no count where one belongs")
    return value


def listing(value: object, node: Node, keyword: str) -> list[Any]:
    """A JSON array.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, list):
        raise malformed(f"{node.path}/{keyword}", "no array where one belongs")
    return value


def names(value: object, node: Node, keyword: str) -> list[str]:
    """A JSON array of strings, each once.

    Raises:
        InvalidRequest: it is none.
    """
    found = listing(value, node, keyword)
    if not all(isinstance(name, str) for name in found):
        raise malformed(f"{node.path}/{keyword}", "no text where a name belongs")
    return list(dict.fromkeys(found))


def mapping(value: object, node: Node, keyword: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, dict):
        raise malformed(f"{node.path}/{keyword}", "no object where one belongs")
    return value
