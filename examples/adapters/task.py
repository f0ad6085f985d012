"""What a task is to training and to evaluation: items with a prompt and an answer, and a judge.

Invariant: an item is a function of its split and its number. The prompt is the same whether the
model is adapted or not, and whether a constraint holds or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from branchline.examples.adapters.words import Split


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: the user's turn.
        answer: the right assistant's turn, as the adapter learns to write it.
        facts: what the task's judge and constraint need to know.
    """

    prompt: str
    answer: str
    facts: Any


@dataclass(frozen=True)
class Score:
    """How right one output is: `parts` of `out_of` (fields of a record; 1 of 1 for a query)."""

    parts: int
    out_of: int

    @property
    def whole(self) -> bool:
        """Everything is right."""
        return self.parts == self.out_of


class Task(Protocol):
    """A task with a generator and a judge."""

    name: str
    max_tokens: int

    def item(self, split: Split, number: int) -> Item:
        """The item of that number; the same every time."""

    def constraint(self, item: Item) -> object:
        """What `gen` takes as a type so that only well-formed answers can be written."""

    def score(self, item: Item, text: str) -> Score:
        """How right an output's text is; never raises for any text."""
