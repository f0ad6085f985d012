"""How many drafted tokens a target accepts: greedy decoding, walked through without decoding.

What the target says is known (its own greedy answers), so a verify step need not run: a drafted
token is accepted exactly if it is the next token of the answer. Drafts are dynamic trees (EAGLE-2,
Li et al., 2024): at each level the `width` nodes most likely by the product of guesses are
expanded; of all candidates the `nodes` best are the tree. Width 1 is a chain.

Invariant: counts are those of a decoder that verifies such trees; the bonus token is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from branchline.runtime.training.batches import sent, spread
from branchline.runtime.training.corpus import Conversation
from branchline.runtime.training.head import EagleHead, Entries, grouped, rotated
from branchline.runtime.training.target import Target
from branchline.runtime.training.vocabulary import DraftVocabulary

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class TreeSize:
    """Of a draft.

    Attributes:
        width: nodes expanded at each level, and guesses taken of each.
        depth: levels.
        nodes: of the tree at most.
    """

    width: int
    depth: int
    nodes: int

    def __str__(self) -> str:
        shape = "chain" if self.width == 1 else f"tree of width {self.width}"
        return f"{shape}, depth {self.depth}, {self.nodes} nodes"


CHAIN = TreeSize(1, 4, 4)
SIZES = (CHAIN, TreeSize(4, 4, 16), TreeSize(8, 5, 32), TreeSize(10, 6, 60))


@dataclass(slots=True)
class Accepted:
    """Counts of verify steps.

    Attributes:
        steps: how many there were.
        tokens: drafted tokens accepted in all.
        at_depth: steps whose accepted tokens reached each depth, from 1.
    """

    steps: int = 0
    tokens: int = 0
    at_depth: list[int] = field(default_factory=list)

    @property
    def length(self) -> float:
        """Accept length: drafted tokens accepted per step."""
        return self.tokens / self.steps if self.steps else 0.0

    def add(self, count: int) -> None:
        """One step that accepted `count` tokens."""
        self.steps += 1
        self.tokens += count
        while len(self.at_depth) < count:
            self.at_depth.append(0)
        for depth in range(count):
            self.at_depth[depth] += 1


@dataclass(slots=True)
class _Tree:
    """Candidates of R rows: int64 or float32 [R, M] each; the root is parent -1."""

    tokens: torch.Tensor
    parents: torch.Tensor
    scores: torch.Tensor


class Measure:
    """A head beside its target.

    Args:
        head: as `read_head` gives it; goes to the target's device, in its dtype.
        target: whose answers are given.
        vocabulary: what the head may guess.
    """

    def __init__(self, head: EagleHead, target: Target, vocabulary: DraftVocabulary) -> None:
        angles = head.rotary
        self._head = head.to(target.device, target.dtype)
        # float32, whatever the weights are
        self._head.rotary = angles.to(target.device)
        self._target = target
        self._ids = vocabulary.ids.to(target.device)
        self._rows = target.head[self._ids].contiguous()

    @torch.no_grad()
    def accepted(self, answers: Sequence[Conversation], size: TreeSize) -> list[Accepted]:
        """Counts of each answer."""
        found: list[Accepted] = []
        for first in range(0, len(answers), _AT_ONCE):
            found += self._group(answers[first : first + _AT_ONCE], size)
        return found

    def _group(self, answers: Sequence[Conversation], size: TreeSize) -> list[Accepted]:
        target, device = self._target, self._target.device
        states = target.run([one.ids for one in answers], self._head.shape.layers)
        longest = max(len(one.ids) for one in answers)
        flat = np.concatenate([one.ids for one in answers]).astype(np.int64)
        places = np.concatenate(
            [np.arange(len(one.ids)) + i * longest for i, one in enumerate(answers)]
        )
        where = sent(places, device)
        inputs = spread(states.layers, where, len(answers), longest)
        ids = spread(sent(flat, device)[:, None], where, len(answers), longest)[:, :, 0]
        feature = self._head.feature(inputs)[:, :-1]
        entries = Entries()
        output = self._head.step(feature, target.embedding[ids[:, 1:]], 1, entries)
        counts = [Accepted() for _ in answers]
        lens = torch.tensor([len(one.ids) for one in answers], device=device)
        # the last token that is known; the target's first token takes no draft
        at = torch.tensor([one.answer for one in answers], device=device)
        while bool((at < lens - 1).any()):
            active = (at < lens - 1).nonzero()[:, 0]
            tree = self._grow(active, at[active], output, entries[0], size)
            took = _walk(tree, size, ids[active], at[active], lens[active])
            for row, count in zip(active.tolist(), took.tolist(), strict=True):
                counts[row].add(count)
            at[active] += took + 1
        return counts

    def _grow(
        self,
        rows: torch.Tensor,
        at: torch.Tensor,
        output: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor],
        size: TreeSize,
    ) -> _Tree:
        """Candidates behind token `at` of each row."""
        head, width = self._head, size.width
        keys, values = known[0][rows], known[1][rows]  # [R, kv_heads, T, head_dim]
        # entry i is of position i + 1
        seen = torch.arange(keys.shape[2], device=at.device) < at[:, None]
        root = output[rows, at - 1]
        scores, tokens = self._guess(root[:, None], width)
        scores, tokens = scores[:, 0], tokens[:, 0]
        tree = _Tree(tokens, torch.full_like(tokens, -1), scores)
        index = torch.arange(width, device=at.device).expand(len(rows), -1)
        feature = root[:, None].expand(-1, width, -1)
        lines = torch.zeros((len(rows), width, 0), dtype=torch.bool, device=at.device)
        for level in range(1, size.depth):
            q, k, v = head.midlayer.heads(feature, self._target.embedding[tokens])
            angles = head.rotary[at + level][:, None, None]
            q, k = rotated(q, angles), rotated(k, angles)
            keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
            itself = torch.eye(width, dtype=torch.bool, device=at.device)
            lines = torch.cat([lines, itself.expand(len(rows), -1, -1)], dim=-1)
            mask = torch.cat([seen[:, None].expand(-1, width, -1), lines], dim=-1)
            hidden = head.midlayer.after(feature, _attended(q, keys, values, mask))
            more, guesses = self._guess(hidden, width)  # [R, width, width]
            more = (more + scores[:, :, None]).flatten(1)
            parents = index[:, :, None].expand(-1, -1, width).flatten(1)
            before = tree.tokens.shape[1]
            tree = _Tree(
                torch.cat([tree.tokens, guesses.flatten(1)], dim=1),
                torch.cat([tree.parents, parents], dim=1),
                torch.cat([tree.scores, more], dim=1),
            )
            scores, best = more.topk(width, dim=1)
            tokens, index = guesses.flatten(1).gather(1, best), best + before
            came = best // width
            feature = hidden.gather(1, came[:, :, None].expand(-1, -1, hidden.shape[-1]))
            lines = lines.gather(1, came[:, :, None].expand(-1, -1, lines.shape[-1]))
        return tree

    def _guess(self, hidden: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and target ids of the most likely next tokens: [.., count] each."""
        logits = (self._head.norm(hidden) @ self._rows.T).float()
        best, found = logits.topk(count, dim=-1)
        return best - logits.logsumexp(-1, keepdim=True), self._ids[found]


def _attended(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """q [R, heads, w, d] over [R, kv_heads, e, d] where mask [R, w, e]: [R, w, heads * d]."""
    q = grouped(q, keys.shape[1])
    scores = (q @ keys[:, :, None].transpose(-1, -2)).float()
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    result = weights.to(values.dtype) @ values[:, :, None]
    return result.flatten(1, 2).transpose(1, 2).flatten(2)


def _walk(
    tree: _Tree, size: TreeSize, ids: torch.Tensor, at: torch.Tensor, lens: torch.Tensor
) -> torch.Tensor:
    """Tokens accepted of each row's best `nodes` candidates: int64 [R]."""
    kept = torch.zeros_like(tree.tokens, dtype=torch.bool)
    best = tree.scores.topk(min(size.nodes, tree.scores.shape[1]), dim=1).indices
    kept.scatter_(1, best, True)
    took = torch.zeros_like(at)
    node = torch.full_like(at, -1)
    going = torch.ones_like(at, dtype=torch.bool)
    for depth in range(1, size.depth + 1):
        there = at + depth
        truth = ids.gather(1, there.clamp_max(ids.shape[1] - 1)[:, None])
        found = kept & (tree.parents == node[:, None]) & (tree.tokens == truth)
        going = going & found.any(1) & (there < lens)
        node = torch.where(going, found.int().argmax(1), node)
        took += going
    return took
