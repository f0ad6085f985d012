"""The draft model that an operator chose, loaded beside its target.

Invariant: what was left open about it is decided here, once, with a reason; what it keeps of each
token is known before the cache is sized.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from branchline.kernels.ops import Ops
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.executor.draft_load import load_head, load_standalone
from branchline.runtime.executor.host_draft import scratch_slots
from branchline.runtime.launch.decisions import Decision
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.catalog import resolve_model
from branchline.runtime.loading.checkpoint import Checkpoint, TokenizerSource
from branchline.runtime.loading.eagle_checkpoint import EagleCheckpoint
from branchline.runtime.loading.heads import head_path
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel

NODES = {"cpu": 12, "cuda": 63}
"""Guesses of a row at most, unless the operator says otherwise."""

DEPTH = 6
"""Guesses one behind the other at most, unless the operator says otherwise; where few are likely,
fewer levels are run."""

CPU_WIDTHS = ((16, 4), (32, 8), (1 << 30, 10))
CUDA_WIDTH = 8
"""Guesses looked into at each level: on a CPU, where each costs time, for trees of up to so many
guesses; on a GPU they cost hardly any. A tree that is wide enough for its guesses keeps more of
them than one whose guesses had to be found among few."""

LEAST = {"cpu": 0.08, "cuda": 0.0}
"""Chance below which a guess is not made: on a CPU to check it costs about so much of a step."""

PENDING = 4
"""Levels on top: ids that a constraint forces come before guesses, a level each."""


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft model and how it is used.

    Attributes:
        width: guesses looked into at each level.
        levels: of one turn, pending ids included.
        nodes, depth: guesses of a row, and one behind the other, at most.
        least: chance below which no guess is made, unless their number was given.
    """

    model: DraftModel
    width: int
    levels: int
    nodes: int
    depth: int
    least: float = 0.0

    @property
    def scratch(self) -> int:
        """Slots of the draft's pool that guesses lie in."""
        return scratch_slots(self.width, self.levels)

    def bytes_per_token(self, kv_dtype: torch.dtype, dtype: torch.dtype) -> int:
        """Bytes that it keeps of each token."""
        sizes = self.model.sizes
        entries = KVPool.bytes_per_token(sizes.num_layers, sizes.kv_heads, sizes.head_dim, kv_dtype)
        return entries + sizes.feature_width * dtype.itemsize


def load_draft(
    config: EngineConfig,
    checkpoint: Checkpoint,
    target: Model,
    ops: Ops,
    *,
    dtype: WeightDtype,
    device: torch.device,
    decisions: list[Decision],
) -> DraftChoice | None:
    """The draft model, if the operator chose one.

    Args:
        checkpoint: the target's files, still open.
        target: with its weights.
        dtype: how the target's matrices are kept.

    Raises:
        CatalogError, ModelLoadError: there is none, or it is another model's.
    """
    section = config.speculative
    if section.speculative not in ("eagle", "draft"):
        return None
    if section.speculative == "eagle":
        path = head_path(config.model.model, section.speculative_draft)
        head = EagleCheckpoint(path)
        model = load_head(head, target, ops, dtype=dtype, device=device)
        head.close()
    else:
        path, model = _standalone(config, checkpoint, target, ops, dtype=dtype, device=device)
    nodes = section.speculative_tokens or NODES[device.type]
    depth = min(section.speculative_steps or DEPTH, nodes)
    wide = width(device.type, nodes)
    if guesses_in_chains(config, device):
        nodes, wide = depth, 1
    decisions.append(
        Decision("speculative_draft", str(path), f"takes {model.memory() / 1e6:.0f} MB")
    )
    return DraftChoice(model, wide, depth + PENDING, nodes, depth, LEAST[device.type])


def guesses_in_chains(config: EngineConfig, device: torch.device) -> bool:
    """Whether guesses must stand one behind the other.

    Where results are not to depend on the rest of a step, a device sums over keys in blocks. A
    candidate behind another branch of a tree has its keys in other places than in plain decoding,
    so that its sums end in other bits; on a CPU each path is summed by itself.
    """
    return config.device.deterministic and device.type != "cpu"


def width(kind: str, nodes: int) -> int:
    """Guesses looked into at each level of a tree of `nodes` guesses."""
    usual = CUDA_WIDTH
    if kind == "cpu":
        usual = next(found for most, found in CPU_WIDTHS if nodes <= most)
    return min(usual, nodes)


def _standalone(
    config: EngineConfig,
    checkpoint: Checkpoint,
    target: Model,
    ops: Ops,
    *,
    dtype: WeightDtype,
    device: torch.device,
) -> tuple[Path, DraftModel]:
    name = config.speculative.speculative_draft
    assert name is not None, "the section refuses to be without"
    path = resolve_model(name)
    dummy = config.model.load_format == "dummy"
    draft = open_checkpoint(path, "dummy" if dummy else "auto", seed=1)
    _check_same_ids(checkpoint.tokenizer_source, draft.tokenizer_source)
    model = load_standalone(draft, target, ops, dtype=dtype, device=device)
    draft.close()
    return path, model


def _check_same_ids(ours: TokenizerSource | None, theirs: TokenizerSource | None) -> None:
    """Raise `ModelLoadError` unless every id is the same piece of text in both."""
    if ours is None or theirs is None or ours.json_text == theirs.json_text:
        return
    mine, other = vocabulary(ours), vocabulary(theirs)
    if mine != other:
        differing = sum(other.get(piece) != token for piece, token in mine.items())
        raise ModelLoadError(
            "The draft model has another tokenizer than the model.",
            value=f"{differing} of {len(mine)} tokens differ",
            hint="Use a smaller model of the same family.",
        )


def vocabulary(source: TokenizerSource) -> dict[str, int]:
    """Piece of text -> id, added tokens included."""
    try:
        told = msgspec.json.decode(source.json_text, type=_TokenizerFile)
    except msgspec.MsgspecError as error:
        raise ModelLoadError(f"A tokenizer cannot be read: {error}.") from error
    pieces = told.model.vocab
    if not isinstance(pieces, dict):  # unigram models list (piece, score) in the order of ids
        pieces = {piece: index for index, (piece, _) in enumerate(pieces)}
    return pieces | {token.content: token.id for token in told.added_tokens}


class _Added(msgspec.Struct):
    id: int
    content: str


class _Pieces(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _TokenizerFile(msgspec.Struct):
    model: _Pieces
    added_tokens: list[_Added] = []
