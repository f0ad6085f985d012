"""A model without weights whose every output depends on every key-value entry it should read.

The "key-value entry" of a token is (position along its path, rolling hash of the path up to it),
kept by slot as a real pool would. A token's logits come from a sum over all entries that it may
see, read through the slot table, so a wrong slot, a stale entry, a wrong mask or a wrong id changes
the output. `expected_output` computes the same by brute force from ids alone. An adapter is a salt
in every entry of its rows' tokens, so what was computed with one is worth nothing to another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np

from branchline.runtime.core.batch import ForwardOutput, ScheduleBatch, TopLogprobs
from branchline.runtime.core.protocols import Pending

MOD = (1 << 31) - 1
VOCAB = 97
HIDDEN = 3


def entry(previous: int, token: int, salt: int = 0) -> int:
    """Hash of a path from the hash of its parent and its last id."""
    return (previous * 48271 + token * 16807 + 12345 + salt * 7_654_321) % MOD


def score(total: int, token: int) -> float:
    """Log-probability-like value of `token` after a context with this checksum."""
    return -float((total * 31 + token * 7919) % 1009) / 100.0


def best(total: int, allowed: Sequence[int] | None = None) -> int:
    """The greedy next id, of those allowed."""
    if allowed is None or len(allowed) == VOCAB:
        return (total * 65539 + 17) % VOCAB
    return max(allowed, key=lambda token: ((total * 131 + token * 8191) % 65521, token))


def drawn(total: int, seed: int, position: int, allowed: Sequence[int] | None = None) -> int:
    """The id that a seed draws at a position, of those allowed."""
    return best((total + seed % MOD * 40503 + position * 69621) % MOD, allowed)


def allowed_ids(words: np.ndarray) -> list[int]:
    """Ids whose bit is set."""
    return [i for i in range(VOCAB) if int(words[i >> 5]) >> (i & 31) & 1]


def checksum(ids: Sequence[int], salt: int = 0) -> int:
    """Sum over the context's entries, each with its position."""
    total = hash_ = 0
    for position, token in enumerate(ids):
        hash_ = entry(hash_, token, salt)
        total = (total + hash_ * (position + 1)) % MOD
    return total


def expected_output(
    prompt: Sequence[int], count: int, eos: frozenset[int] = frozenset(), salt: int = 0
) -> list[int]:
    """Greedy continuation by brute force."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        token = best(checksum(ids, salt))
        if token in eos:
            break
        ids.append(token)
    return ids[len(prompt) :]


def expected_scores(prompt: Sequence[int], choice: Sequence[int], salt: int = 0) -> list[float]:
    """Values of a choice's tokens by brute force."""
    ids = list(prompt)
    values = []
    for token in choice:
        values.append(score(checksum(ids, salt), token))
        ids.append(token)
    return values


def hidden_state(total: int) -> list[float]:
    """The hidden state of a token whose context (itself included) has this checksum."""
    return [float(np.float32(total % prime / 997.0 - 0.5)) for prime in (1021, 65519, 999_983)]


def expected_states(prompt: Sequence[int]) -> list[list[float]]:
    """Hidden states of all tokens by brute force."""
    return [hidden_state(checksum(prompt[: i + 1])) for i in range(len(prompt))]


class _Step:
    def __init__(self, worker: HashWorker, plan: ScheduleBatch) -> None:
        self.worker = worker
        self.plan = plan
        self.output: ForwardOutput | None = None
        self.error: Exception | None = None
        self.sampled = False
        self.bitmask: np.ndarray | None = None

    def result(self) -> ForwardOutput:
        self.worker.run_until(self)
        if self.error is not None:
            raise self.error
        assert self.output is not None
        return self.output

    def done(self) -> bool:
        return self.output is not None or self.error is not None


class HashWorker:
    """Runs steps in order, as late as possible (`lazy`) or at once.

    Args:
        slot_table: the cache manager's array, shared; or a copy of it that the plans' writes keep
            up to date.
        num_slots: of the pool.
        lazy: run a step only when its result is asked for, so that it sees the latest tables.
        fail_steps: numbers of steps that raise.

    Attributes:
        salts: of the adapters, by slot; read when a step runs.
    """

    def __init__(
        self,
        slot_table: np.ndarray[tuple[int, int], np.dtype[np.int32]],
        num_slots: int,
        *,
        lazy: bool = True,
        fail_steps: frozenset[int] = frozenset(),
        delay_s: float = 0.0,
    ) -> None:
        self.slots = slot_table
        self.tokens = np.full((slot_table.shape[0], slot_table.shape[1] + 1), 3, dtype=np.int32)
        self.depth = np.full(num_slots, -1, dtype=np.int64)
        self.hash = np.zeros(num_slots, dtype=np.int64)
        self.salts: dict[int, int] = {}
        self.lazy = lazy
        self.fail_steps = fail_steps
        self.steps = 0
        self.forwarded_tokens = 0
        self.max_rows = 0
        self._queue: deque[_Step] = deque()
        self._delay = threading.Event()
        self._delay_s = delay_s

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        step = _Step(self, plan)
        self._queue.append(step)
        return step

    def sample(self, pending: Pending, bitmask: np.ndarray | None) -> None:
        assert isinstance(pending, _Step)
        pending.sampled = True
        pending.bitmask = bitmask
        if not self.lazy:
            self.run_until(pending)

    def close(self) -> None:
        self._queue.clear()

    def run_until(self, last: _Step) -> None:
        """Run queued steps up to and including `last`."""
        while not last.done():
            step = self._queue.popleft()
            assert step.sampled, "a step ran before its sample call"
            if self._delay_s:
                self._delay.wait(self._delay_s)
            number, self.steps = self.steps, self.steps + 1
            self._prepare(step.plan)
            if number in self.fail_steps:
                step.error = RuntimeError(f"injected failure of step {number}")
                continue
            step.output = self._run(step.plan, step.bitmask)

    def _prepare(self, plan: ScheduleBatch) -> None:
        if plan.slot_writes is not None:
            self.slots.reshape(-1)[plan.slot_writes.index] = plan.slot_writes.slots
        for init in plan.inits:
            self.tokens[init.row, init.start : init.start + len(init.ids)] = init.ids
        if plan.copies is not None:
            src, dst = plan.copies
            self.depth[dst], self.hash[dst] = self.depth[src], self.hash[src]

    def _choose(
        self, plan: ScheduleBatch, place: int, total: int, bitmask: np.ndarray | None
    ) -> int:
        allowed = None if bitmask is None else allowed_ids(bitmask[place])
        assert plan.sampling is not None
        if place in plan.sampling.greedy_rows:
            return best(total, allowed)
        seed = int(plan.sampling.mixed_seeds[place])
        return drawn(total, seed, int(plan.sample_positions[place]), allowed)

    def _run(self, plan: ScheduleBatch, bitmask: np.ndarray | None) -> ForwardOutput:
        self.forwarded_tokens += plan.num_tokens
        self.max_rows = max(self.max_rows, len(plan.rows))
        totals = np.zeros(plan.num_tokens, dtype=np.int64)
        for i, row in enumerate(plan.rows.tolist()):
            self._run_row(plan, i, row, totals)
        wanted = totals[plan.logit_idx]
        chosen = [
            self._choose(plan, i, int(wanted[j]), bitmask) for i, j in enumerate(plan.sample_idx)
        ]
        ids = np.array(chosen, dtype=np.int32)
        self.tokens[plan.rows[plan.sample_rows], plan.sample_positions] = ids
        return ForwardOutput(
            token_ids=ids.reshape(-1, 1),
            num_new=np.ones(len(ids), dtype=np.int32),
            logprobs=_read(wanted[plan.sample_idx], ids),
            scores=(
                None
                if plan.score is None
                else _read(wanted[plan.score.logit_rows], plan.score.token_ids)
            ),
            hidden=(
                None
                if plan.hidden_rows is None
                else np.array(
                    [hidden_state(int(t)) for t in wanted[plan.hidden_rows]], dtype=np.float32
                )
            ),
        )

    def _run_row(self, plan: ScheduleBatch, i: int, row: int, totals: np.ndarray) -> None:
        lo, hi = int(plan.extend_start[i]), int(plan.extend_start[i + 1])
        end = int(plan.seq_lens[i])
        adapter = -1 if plan.adapter_slots is None else int(plan.adapter_slots[i])
        salt = 0 if adapter < 0 else self.salts[adapter]
        first = end - (hi - lo)
        tree = 0 if plan.tree is None else int(plan.tree.counts[i])
        plain = hi - lo - tree
        for k in range(hi - lo):
            index, position = first + k, int(plan.positions[lo + k])
            token = int(plan.input_ids[lo + k])
            if token < 0:
                token = int(self.tokens[row, position])
            elif k < plain:
                assert token == self.tokens[row, position], "an id is missing in the token table"
            seen = list(range(first + min(k, plain)))
            if k >= plain:
                seen += self._tree_seen(plan, i, tree, k - plain, first + plain)
            slots = self.slots[row, seen]
            assert (self.depth[slots] == np.arange(len(slots))).all(), "a stale or foreign entry"
            assert len(slots) == position, "a token does not see exactly the tokens before it"
            previous = int(self.hash[slots[-1]]) if len(slots) else 0
            if plan.previous is not None:
                # Or a duplicate of it: the row may have been given the cache's own since the plan.
                named = int(plan.previous[lo + k])
                found = (int(self.depth[named]), int(self.hash[named])) if named else (-1, 0)
                assert found == (len(slots) - 1, previous), "not an entry of the token before"
            slot = int(plan.out_slots[lo + k])
            assert slot > 0 and int(self.slots[row, index]) == slot, "slot table and plan disagree"
            self.depth[slot], self.hash[slot] = position, entry(previous, token, salt)
            path = np.append(self.hash[slots], self.hash[slot])
            weights = np.arange(1, len(path) + 1, dtype=object)
            totals[lo + k] = int(
                sum(int(h) * int(w) for h, w in zip(path, weights, strict=True)) % MOD
            )

    @staticmethod
    def _tree_seen(plan: ScheduleBatch, i: int, n: int, j: int, base: int) -> list[int]:
        assert plan.tree is not None
        width = (n + 63) // 64
        start = int(plan.tree.offsets[i]) + j * width
        words = [int(word) for word in plan.tree.words[start : start + width]]
        return [base + x for x in range(n) if x != j and words[x >> 6] >> (x & 63) & 1]


def _read(totals: np.ndarray, tokens: np.ndarray) -> TopLogprobs:
    values = [score(int(t), int(token)) for t, token in zip(totals, tokens, strict=True)]
    none = np.zeros((len(values), 0))
    return TopLogprobs(
        np.array(values, dtype=np.float32), none.astype(np.int32), none.astype(np.float32)
    )
