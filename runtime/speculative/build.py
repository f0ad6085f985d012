"""The drafter that an operator chose. Invariant: what was left open is decided here, with a reason.

Knows nothing of how a drafter guesses, nor of who asks it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from branchline.runtime.config.sections import SpeculativeSection
from branchline.runtime.core.drafting import Drafter, StepDrafter
from branchline.runtime.executor.drafting import DraftExecutor
from branchline.runtime.speculative.model_drafter import ModelDrafter

NGRAM_TOKENS = {"cpu": 16, "cuda": 15}
"""Guesses along a quotation: more would be right, too, but a wrong end costs as much. On a device
a step of one more token than these takes as long as one of twice as many."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafter and what is asked of it.

    Attributes:
        max_nodes, max_depth: guesses of a row, and one behind the other, at most.
        adapts: fewer of them, or none, where that is faster; else always as many as there can be.
        why: in words.
    """

    drafter: Drafter | StepDrafter
    max_nodes: int
    max_depth: int
    adapts: bool
    why: str


def model_drafting(
    section: SpeculativeSection,
    executor: DraftExecutor | StepDrafter,
    vocab_size: int,
    *,
    max_nodes: int,
    max_depth: int,
    least: float = 0.0,
    quotes: bool = False,
) -> Drafting:
    """A draft model as drafter.

    Args:
        executor: runs it, or says that the worker does.
        vocab_size: of the target.
        max_nodes, max_depth: what it was made for.
        least: chance below which no guess is made, unless the operator gave their number.
        quotes: quotations are looked up instead, unless the operator gave it.
    """
    if isinstance(executor, StepDrafter):
        return _drafting(section, executor, max_nodes, max_depth)
    if section.speculative_tokens is not None:
        return _drafting(section, ModelDrafter(executor, vocab_size), max_nodes, max_depth)
    drafter = ModelDrafter(executor, vocab_size, least)
    if not quotes:
        return _drafting(section, drafter, max_nodes, max_depth)
    # Imported here: an engine without it does not load it.
    from branchline.runtime.speculative.quoting import QuotingDrafter

    found = _drafting(section, QuotingDrafter(drafter), max_nodes, max_nodes)
    return replace(found, why=f"{found.why}; {max_depth} in a row where nothing is quoted")


def ngram_tokens(section: SpeculativeSection, device: str) -> int:
    """Guesses of a row at most that are looked up on such a device ("cpu" or "cuda"); 0 = none."""
    if section.speculative != "ngram":
        return 0
    return section.speculative_tokens or NGRAM_TOKENS[device]


def make_drafting(section: SpeculativeSection, device: str) -> Drafting | None:
    """The drafter that was chosen, if it needs no model; None where nobody is to guess."""
    nodes = ngram_tokens(section, device)
    if nodes == 0:
        return None
    # Imported here: an engine without it does not load it.
    from branchline.runtime.speculative.ngram import NgramDrafter

    return _drafting(section, NgramDrafter(), nodes, min(section.speculative_steps or nodes, nodes))


def _drafting(
    section: SpeculativeSection, drafter: Drafter | StepDrafter, nodes: int, depth: int
) -> Drafting:
    adapts = section.speculative_tokens is None
    as_measured = ", as many as pay" if adapts else ""
    why = f"up to {nodes} tokens a step, {depth} in a row{as_measured}"
    return Drafting(drafter, nodes, depth, adapts, why)
