"""Values that are not known while a program is traced, and still behave.

Invariant: nothing a program does with a placeholder fails, and nothing it learns from one goes
unnoticed: text made of it is appended as a reference, and every test, number, length or loop taken
from it is reported to the tracer, which notes a dynamic edge. What a test answers is the tracer's
`decide`; a number is 1, a length is 1, a loop runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from branchline.lang.expressions import Expression, Reference


class Watcher(Protocol):
    """The tracer's side."""

    def decide(self, nodes: tuple[int, ...]) -> bool:
        """Python tests something that depends on these nodes: which way to take."""

    def look(self, nodes: tuple[int, ...]) -> None:
        """Python has used the values of these nodes."""


class Placeholder(str):
    """Text of a variable or an argument, or something computed from it.

    As a str it is the marker of its `Reference`, so f-strings, `+`, `join` and `format` keep it.
    """

    reference: Reference
    watcher: Watcher

    def __new__(cls, reference: Reference, watcher: Watcher) -> Placeholder:
        made = super().__new__(cls, Reference.__str__(reference))
        made.reference = reference
        made.watcher = watcher
        return made

    # ---- text

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, spec: str) -> str:
        return str.__str__(self if not spec else self._derived())

    def __repr__(self) -> str:
        return str.__str__(self._derived())

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Expression):
            return NotImplemented  # the expression knows how to stand behind a text
        return str.__add__(self, other) if isinstance(other, str) else self._derived(other)

    def __radd__(self, other: Any) -> Any:
        return str(other) + str.__str__(self) if isinstance(other, str) else self._derived(other)

    def __rmod__(self, other: Any) -> Any:
        return other % str.__str__(self) if isinstance(other, str) else self._derived(other)

    # ---- tests

    def __bool__(self) -> bool:
        return self.watcher.decide(self.reference.nodes)

    def __hash__(self) -> int:
        self.watcher.look(self.reference.nodes)
        return str.__hash__(self)

    def _compare(self, other: object) -> bool:
        return self.watcher.decide(self._nodes_with(other))

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _compare

    def __ne__(self, other: object) -> bool:
        return self.watcher.decide(self._nodes_with(other))

    # ---- numbers and loops

    def _one(self) -> int:
        self.watcher.look(self.reference.nodes)
        return 1

    __int__ = __index__ = __len__ = _one

    def __float__(self) -> float:
        return float(self._one())

    def __iter__(self) -> Iterator[Any]:
        self.watcher.look(self.reference.nodes)
        return iter([self._derived()])

    def __await__(self) -> Generator[None, None, Placeholder]:
        yield from ()
        return self

    # ---- anything else

    def __getattribute__(self, name: str) -> Any:
        if name in _METHODS:
            return object.__getattribute__(self, "_method")(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("items", "keys", "values"):
            return object.__getattribute__(self, "_entries")(name)
        return self._derived()

    def _entries(self, name: str) -> Callable[[], list[Any]]:
        """A dict's method: of one entry."""

        def entries() -> list[Any]:
            self.watcher.look(self.reference.nodes)
            return [(self._derived(), self._derived()) if name == "items" else self._derived()]

        return entries

    def __copy__(self) -> Placeholder:
        return self

    def __deepcopy__(self, memo: object) -> Placeholder:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self._derived(*args, *kwargs.values())

    def __getitem__(self, key: Any) -> Any:
        return self._derived(key)

    def _operate(self, *others: Any) -> Any:
        return self._derived(*others)

    __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operate
    __floordiv__ = __rfloordiv__ = __mod__ = __pow__ = __rpow__ = _operate
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _operate
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __matmul__ = __rmatmul__ = _operate
    __neg__ = __pos__ = __abs__ = __round__ = __invert__ = _operate

    def _divide(self, *others: Any) -> tuple[Any, Any]:
        return self._derived(*others), self._derived(*others)

    __divmod__ = __rdivmod__ = _divide

    def _method(self, name: str) -> Callable[..., Any]:
        kind = _METHODS[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            nodes = self._nodes_with(*args, *kwargs.values())
            if kind is bool:
                return self.watcher.decide(nodes)
            if kind is int:
                self.watcher.look(nodes)
                return 0
            derived = self._derived(*args, *kwargs.values())
            if kind is list:
                self.watcher.look(nodes)
                return [derived]
            if kind is tuple:
                return derived, derived, derived
            if kind is bytes:
                self.watcher.look(nodes)
                return b""
            return derived

        return call

    def _derived(self, *others: Any) -> Placeholder:
        """Something Python computes from this; not a text that a graph can refer to."""
        reference = self.reference
        return Placeholder(
            Reference(
                name=reference.name,
                lane=reference.lane,
                argument=reference.argument,
                nodes=self._nodes_with(*others),
                exact=False,
            ),
            self.watcher,
        )

    def _nodes_with(self, *others: Any) -> tuple[int, ...]:
        nodes = dict.fromkeys(self.reference.nodes)
        for other in others:
            if isinstance(other, Placeholder):
                nodes.update(dict.fromkeys(other.reference.nodes))
        return tuple(nodes)


def _methods() -> dict[str, type]:
    """What each str method returns."""
    kinds: dict[str, type] = {}
    for name in dir(str):
        if name.startswith("__"):
            continue
        if name.startswith("is") or name in ("startswith", "endswith"):
            kinds[name] = bool
        elif name in ("find", "rfind", "index", "rindex", "count"):
            kinds[name] = int
        elif name in ("split", "rsplit", "splitlines"):
            kinds[name] = list
        elif name in ("partition", "rpartition"):
            kinds[name] = tuple
        elif name == "encode":
            kinds[name] = bytes
        else:
            kinds[name] = str
    return kinds


_METHODS = _methods()
