"""What an n-gram drafter proposes has followed the row's last ids before."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.speculative import ngram
from branchline.runtime.speculative.ngram import NgramDrafter
from tests.scheduler.harness import Bench
from tests.support.hash_model import expected_output

NO_SLOTS = np.zeros(0, dtype=np.int32)


def row(
    ids: Sequence[int],
    prompt_len: int,
    *,
    name: str = "a",
    program: str = "",
    nodes: int = 16,
    depth: int = 16,
) -> DraftRow:
    return DraftRow(
        row=0,
        ids=np.array(ids, dtype=np.int32),
        prompt_len=prompt_len,
        computed_len=len(ids) - 1,
        max_nodes=nodes,
        max_depth=depth,
        slots=NO_SLOTS,
        request_id=name,
        program_id=program,
    )


def paths(tree: DraftTree | None) -> list[list[int]]:
    """The ids along every path to a leaf."""
    if tree is None:
        return []
    leaves = set(range(len(tree))) - set(tree.parents.tolist())
    return [tree.token_ids[tree.path(leaf)].tolist() for leaf in sorted(leaves)]


def guess(drafter: NgramDrafter, one: DraftRow) -> list[list[int]]:
    return paths(drafter.propose([one])[0])


def test_a_quotation_is_followed() -> None:
    prompt = list(range(100, 160))
    drafter = NgramDrafter()
    assert guess(drafter, row(prompt, 60)) == []
    ids = [*prompt, 110, 111]
    assert guess(drafter, row(ids, 60)) == [[112, 113]], "short matches make short guesses"
    assert not drafter.promising(row(ids, 60))
    ids.append(112)
    assert drafter.promising(row(ids, 60))
    for at in range(113, 135):
        ids.append(at)
        assert drafter.promising(row(ids, 60))
    assert guess(drafter, row(ids, 60)) == [list(range(135, 151))]
    assert guess(drafter, row(ids, 60, nodes=3)) == [[135, 136, 137]]
    assert guess(drafter, row(ids, 60, depth=2)) == [[135, 136]]
    ids += [7, 9]
    assert guess(drafter, row(ids, 60)) == []


def test_the_longest_match_wins_and_the_next_best_branches_off() -> None:
    prompt = [1, 5, 6, 70, 71, 72, 2, 5, 6, 80, 81, 82, 0]
    assert guess(NgramDrafter(), row([*prompt, 1, 5, 6], 13)) == [[70, 71, 72, 2]]
    assert guess(NgramDrafter(), row([*prompt, 2, 5, 6], 13)) == [[80, 81, 82, 0]]
    assert guess(NgramDrafter(), row([*prompt, 9, 5, 6], 13)) == [[80, 81], [70, 71]]


def test_a_loop_is_gone_round() -> None:
    ids = [1, 2, 3] * 5
    assert guess(NgramDrafter(), row(ids, 4)) == [[*([1, 2, 3] * 5), 1]]


def test_lanes_of_a_program_learn_from_each_other() -> None:
    said = list(range(200, 230))
    drafter, apart = NgramDrafter(), NgramDrafter(across_lanes=False)
    for one in (drafter, apart):
        one.propose([row([1, 2, 3, *said], 3, name="first", program="p")])
        one.finished("first")
    second = row([1, 2, 4, *said[:4]], 3, name="second", program="p")
    assert guess(drafter, second) == [said[4:10]]
    assert guess(apart, second) == []
    other = row([1, 2, 4, *said[:4]], 3, name="third", program="q")
    assert guess(drafter, other) == []


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    letters=st.integers(2, 6),
    prompt_len=st.integers(1, 80),
    count=st.integers(1, 60),
)
def test_every_guess_followed_the_same_ids_before(
    seed: int, letters: int, prompt_len: int, count: int
) -> None:
    r = random.Random(seed)
    ids = [r.randrange(letters) for _ in range(prompt_len + count)]
    drafter = NgramDrafter()
    shown = prompt_len
    while shown <= len(ids):
        now = ids[:shown]
        for path in guess(drafter, row(now, prompt_len, nodes=12)):
            places = [
                at
                for at in range(2, len(now))
                if (now[at - 2 : at] == now[-2:] or near(now[:at], now))
                and (now[at:] + path)[: len(path)] == path
            ]
            assert places, f"{path} never followed {now[-2:]}"
        shown += r.randint(1, 4)


def near(ids: list[int], others: list[int]) -> bool:
    """Whether both end with the same ids but for the last one."""
    return ids[-1 - ngram.LONG : -1] == others[-1 - ngram.LONG : -1]


def test_a_quotation_with_a_change_goes_on_behind_it() -> None:
    prompt = list(range(100, 160))
    drafter = NgramDrafter()
    ids = [*prompt, *range(110, 125), 7]
    assert guess(drafter, row(ids[:-1], 60)) == [list(range(125, 141))]
    assert guess(drafter, row(ids, 60)) == [[126, 127, 128, 129]]
    assert drafter.promising(row(ids, 60))
    assert guess(drafter, row([*ids, 126], 60)) == [list(range(127, 133))]
    assert guess(drafter, row([*ids, 126, 8, 9], 60)) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "MAX_TOKENS", 300)
    drafter = NgramDrafter()
    for i in range(40):
        said = [i] * 50
        drafter.propose([row([1, 2, *said], 2, name=str(i), program=f"p{i % 20}")])
        assert drafter.kept_tokens <= 300
        drafter.finished(str(i))
    kept = drafter.kept_tokens
    drafter.propose([row([1, 2, *range(50)], 2, name="alone")])
    assert drafter.kept_tokens == kept, "nobody else asks for it"
    drafter.finished("alone")
    drafter.finished("unknown")


def test_a_quoting_output_takes_fewer_steps_and_is_the_same() -> None:
    first = expected_output([1, 2, 3], 30)
    prompt = [1, 2, 3, *first[:20]]
    bench = Bench(drafter=NgramDrafter(), max_nodes=8, max_depth=8)
    bench.submit("a", [1, 2, 3], 30)
    bench.submit("b", [*prompt, 1, 2, 3], 30)
    bench.run()
    assert bench.output("a") == first
    assert bench.output("b") == expected_output([*prompt, 1, 2, 3], 30)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(seed=st.integers(0, 9999), letters=st.integers(2, 5), count=st.integers(3, 60))
def test_the_match_is_the_longest_there_is(seed: int, letters: int, count: int) -> None:
    """Beside a search through every place."""
    r = random.Random(seed)
    ids = [r.randrange(letters) for _ in range(count)]
    longest = 0
    for at in range(1, count):
        pairs = zip(ids[at - 1 :: -1], reversed(ids), strict=False)
        longest = max(longest, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
    drafter = NgramDrafter()
    assert (drafter.promising(row(ids, count)) > 0) == (longest >= ngram.ENTER)
    found = guess(drafter, row(ids, count, depth=64, nodes=64))
    if min(longest, ngram.LONG) < ngram.LEAST:
        assert found == []
    elif longest <= ngram.LONG:
        assert max(map(len, found)) == 2 * longest - 2


def test_ids_that_come_while_nobody_asks_cost_nothing() -> None:
    """Asked once after very many ids, a drafter takes about as long as after one."""
    r = random.Random(2)
    ids = np.array([r.randrange(400) for _ in range(9000)], dtype=np.int32)
    took = {}
    for skipped in (1, 4000):
        drafter, best = NgramDrafter(), math.inf
        for name in map(str, range(30)):
            one = row(ids, 5000, name=name)
            one.ids = ids[:-skipped]
            drafter.promising(one)
            one.ids = ids
            begin = time.thread_time()
            drafter.promising(one)
            best = min(best, time.thread_time() - begin)
        took[skipped] = best
    assert took[4000] < 5.0 * took[1] + 20e-6, "a token of 4,000 costs less than 0.1 us"
