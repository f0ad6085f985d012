"""Quotations are looked up, and a model is asked about everything else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from branchline.runtime.config.sections import SpeculativeSection
from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree, GrowingTree
from branchline.runtime.executor.drafting import DraftSeed, Guesses
from branchline.runtime.scheduler.proposed import check_tree
from branchline.runtime.speculative.build import model_drafting
from branchline.runtime.speculative.ngram import NgramDrafter
from branchline.runtime.speculative.quoting import LONG_MATCH, QuotingDrafter
from tests.speculative.test_ngram import guess, row

PROMPT = list(range(100, 160))


class Model:
    """Always guesses 7."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone: list[str] = []

    def promising(self, row: DraftRow) -> bool:
        return not row.request_id.startswith("hopeless")

    def propose(self, rows: Sequence[DraftRow]) -> list[DraftTree | None]:
        self.asked += [row.request_id for row in rows]
        tree = GrowingTree()
        tree.add(7, -1)
        return [tree.build()] * len(rows)

    def finished(self, request_id: str) -> None:
        self.gone.append(request_id)


def test_a_long_match_is_quoted_and_a_short_one_left_to_the_model() -> None:
    model = Model()
    drafter = QuotingDrafter(model)
    quoting = [*PROMPT, 5, *PROMPT[10 : 10 + LONG_MATCH]]
    assert guess(NgramDrafter(), row(quoting[:-1], 60)) != [], "by itself it would be followed"
    assert guess(drafter, row(quoting[:-1], 60)) == [[7]] and model.asked == ["a"]
    length = 2 * LONG_MATCH - 2
    assert guess(drafter, row(quoting, 60)) == [PROMPT[18 : 18 + length]]
    assert model.asked == ["a"]


def test_each_row_has_the_proposal_of_one_of_the_two() -> None:
    model = Model()
    drafter = QuotingDrafter(model)
    quoting = [*PROMPT, *PROMPT[:9]]
    rows = [row([1, 2, 3], 3, name="x"), row(quoting, 60, name="y"), row([4, 5], 2, name="z")]
    trees = drafter.propose(rows)
    assert [tree and tree.token_ids[0] for tree in trees] == [7, PROMPT[9], 7]
    for one, tree in zip(rows, trees, strict=True):
        assert tree is not None
        check_tree(tree, one.max_nodes, 200)
    assert model.asked == ["x", "z"]


def test_rows_are_promising_to_either_and_gone_for_both() -> None:
    model = Model()
    drafter = QuotingDrafter(model)
    assert drafter.promising(row([1, 2, 3], 3))
    assert not drafter.promising(row([1, 2, 3], 3, name="hopeless"))
    assert drafter.promising(row([*PROMPT, *PROMPT[:9]], 60, name="hopeless too"))
    drafter.finished("hopeless too")
    assert model.gone == ["hopeless too"] and "hopeless too" not in drafter._quotes._running


class Executor:
    max_depth = 3

    def guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        raise NotImplementedError


@pytest.mark.parametrize(("tokens", "quotes"), [(None, True), (None, False), (5, True)])
def test_quotations_are_looked_up_unless_the_number_of_guesses_was_given(
    tokens: int | None, quotes: bool
) -> None:
    section = SpeculativeSection(speculative="eagle", speculative_tokens=tokens)
    made = model_drafting(section, Executor(), 40, max_nodes=12, max_depth=3, quotes=quotes)
    looks_up = quotes and tokens is None
    assert isinstance(made.drafter, QuotingDrafter) == looks_up
    assert (made.max_nodes, made.max_depth) == (12, 12 if looks_up else 3)
    assert made.adapts == (tokens is None)
