"""The request graph of a run: the ops it sent, and what each of them did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.runtime.programs.graph import GraphBuilder, RequestGraph
from branchline.runtime.programs.protocol import SetVariable

if TYPE_CHECKING:
    from branchline.lang.run import Run


def graph_of(run: Run) -> RequestGraph:
    """Nodes with values, errors and stats as far as they are known now."""
    builder = GraphBuilder(run.name)
    with run.lock:
        ops, stats, slots = list(run.ops), list(run.stats), list(run.slots.values())
    known = set()
    for op in ops:
        builder.add(op)
        known.add(getattr(op, "node", -1))
        if isinstance(op, SetVariable):
            builder.values(op.node, op.text)
    for slot in slots:
        if slot.node not in known:
            continue
        if slot.texts:
            builder.values(slot.node, slot.texts)
        if slot.failure is not None:
            builder.error(slot.node, str(slot.failure))
    for item in stats:
        builder.stats(item)
    return builder.build()
