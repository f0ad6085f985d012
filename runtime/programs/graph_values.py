"""Which variables the root lane of a graph has at its end, whatever a value is made of.

The names are those that the program's function would have read from its state: values of the root
lane, and for each gathering join the branches' own variables as lists, in branch order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.programs.graph_links import Scopes
from branchline.runtime.programs.graph_types import NodeOp
from branchline.runtime.programs.protocol import (
    Fork,
    Generate,
    Join,
    NodeFailed,
    Select,
    SetVariable,
    ValueReady,
)

T = TypeVar("T")
Definition = Generate | Select | SetVariable


def root_variables(
    ops: Iterable[NodeOp],
    value: Callable[[Definition], T],
    many: Callable[[list[T]], T],
) -> dict[str, T]:
    """Variables of lane 0, in the order in which they are defined.

    Args:
        ops: of the graph, in order.
        value: what a node that defines a variable stands for.
        many: a list of those.
    """
    own: dict[int, dict[str, list[T]]] = {0: {}}
    scopes = Scopes()
    lists: set[tuple[int, str]] = set()
    for op in ops:
        names = own[op.lane]
        if isinstance(op, SetVariable):
            names[op.name] = [value(op)]
            scopes.define(op.lane, op.name, op.node)
        elif isinstance(op, (Generate, Select)):
            names.setdefault(op.name, []).append(value(op))
            scopes.define(op.lane, op.name, op.node)
        elif isinstance(op, Fork):
            for child in op.children:
                own[child] = {}
                scopes.fork(op.lane, child)
        elif isinstance(op, Join):
            for child in op.children:
                for name, found in own[child].items():
                    if not scopes.inherits(child, name):
                        names.setdefault(name, []).append(_one(found, many, (child, name) in lists))
                        scopes.define(op.lane, name, op.node)
                        lists.add((op.lane, name))
    return {name: _one(found, many, (0, name) in lists) for name, found in own[0].items()}


def _one(found: list[T], many: Callable[[list[T]], T], is_list: bool) -> T:
    return many(found) if is_list or len(found) > 1 else found[0]


class Outcome:
    """What the value nodes of a graph came to, as events brought it; plain data for JSON.

    Attributes:
        error: wire form of the first failure.
    """

    def __init__(self) -> None:
        self.error: dict[str, Any] | None = None
        self.values: dict[int, ValueReady] = {}
        self.failures: dict[int, NodeFailed] = {}

    def take(self, event: ValueReady | NodeFailed) -> None:
        """Keep an event."""
        if isinstance(event, ValueReady):
            self.values[event.node] = event
        else:
            self.failures[event.node] = event
            self.error = self.error or event.error

    def variables(self, ops: Iterable[NodeOp]) -> dict[str, Any]:
        """Name to text, or to a list of texts; None where there is none."""
        return root_variables(ops, self._text, list)

    def usage(self) -> dict[str, int]:
        """Token counts of all nodes."""
        metas = [event.meta for event in self.values.values()]
        metas += [e.meta for e in self.failures.values() if e.meta is not None]
        return {name: _sum(metas, name) for name in _COUNTED}

    def _text(self, op: Definition) -> Any:
        if isinstance(op, SetVariable):
            return op.text
        event = self.values.get(op.node)
        if event is None:
            return None
        return event.texts[0] if len(event.texts) == 1 else list(event.texts)


_COUNTED = ("prompt_tokens", "cached_tokens", "output_tokens", "forced_tokens", "forwards")


def _sum(metas: list[RequestMeta], name: str) -> int:
    return sum(getattr(meta, name) for meta in metas)
