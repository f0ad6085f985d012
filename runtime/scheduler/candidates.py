"""What a step's plan says of its candidates: who sees whom, what is sampled behind each of them and
which the worker makes itself. Knows no policy and no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from branchline.runtime.core.batch import (
    DraftedRows,
    Int32Array,
    TreeMask,
    TreeSamples,
    UInt64Array,
)
from branchline.runtime.core.tree import DraftTree

if TYPE_CHECKING:
    from branchline.runtime.scheduler.plan_builder import Segment


def tree_mask(segments: list[Segment]) -> TreeMask | None:
    """Who sees whom among the candidates of a step; None where there are none."""
    if all(s.tree is None or len(s.tree) == 0 for s in segments):
        return None
    counts = np.zeros(len(segments), dtype=np.int32)
    offsets = np.zeros(len(segments), dtype=np.int32)
    words = []
    total = 0
    for index, segment in enumerate(segments):
        offsets[index] = total
        if segment.tree is not None and len(segment.tree):
            counts[index] = len(segment.tree)
            words.append(_words(segment, segment.tree))
            total += len(words[-1])
    return TreeMask(
        counts, offsets, np.concatenate(words), _tree_samples(segments), _drafted(segments)
    )


def _words(segment: Segment, tree: DraftTree) -> UInt64Array:
    if segment.draft is not None and segment.draft.levels:  # the worker's business
        return np.zeros(len(tree) * -(-len(tree) // 64), dtype=np.uint64)
    return tree.mask_words()


def _tree_samples(segments: list[Segment]) -> TreeSamples | None:
    if all(s.draft is None for s in segments):
        return None
    positions: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    tails: dict[int, Int32Array] = {}
    total = 0
    for segment in segments:
        if not segment.sample:
            continue
        end = segment.start + segment.count
        places = [end]
        draft = segment.draft
        if draft is not None:
            places += [end + depth + 1 for depth in draft.tree.depths.tolist()]
            if segment.request.sampling.has_penalties:
                for node in range(len(draft)):
                    tails[total + 1 + node] = draft.tree.token_ids[draft.tree.path(node)]
        positions.append(np.array(places, dtype=np.int64))
        total += len(places)
    return TreeSamples(np.concatenate(positions), tails)


def _drafted(segments: list[Segment]) -> DraftedRows | None:
    drafts = [
        (i, s.draft) for i, s in enumerate(segments) if s.draft is not None and s.draft.levels
    ]
    if not drafts:
        return None
    return DraftedRows(
        rows=np.array([index for index, _ in drafts], dtype=np.int32),
        levels=np.array([draft.levels for _, draft in drafts], dtype=np.int32),
        follows=np.array([draft.follows for _, draft in drafts], dtype=np.bool_),
        allowed=[draft.allowed for _, draft in drafts],
        accepts=all(draft.in_place for _, draft in drafts),
        masked=any(segments[index].request.matcher is not None for index, _ in drafts),
    )
