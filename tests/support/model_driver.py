"""Drives a `ModelRunner` by hand: tiny checkpoints, scattered slots, plans of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import ForwardMode, ScheduleBatch, TreeMask
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.executor.build import RunnerSettings, build_runner, load_model
from branchline.runtime.executor.model_runner import ModelRunner
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel

CONTEXT = 96


def tiny_llama(folder: Path, **changes: Any) -> Path:
    """A random Llama saved by transformers; `changes` go to its configuration."""
    settings: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**(settings | changes))
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):  # so that a forgotten one shows
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    return folder


def reference_model(folder: Path) -> Any:
    """The same checkpoint in transformers: float32, attention written out."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def reference_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities after each token: float32 [n, V]."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0], dim=-1)


def load_tiny(folder: Path, ops: Ops, dtype: WeightDtype = "float32") -> Model:
    """The checkpoint as our model."""
    return load_model(SafetensorsCheckpoint(folder), ops, dtype=dtype)


@dataclass
class Part:
    """One row's share of a step.

    Attributes:
        row: row of the tables.
        ids: tokens that follow what the row has.
        tree: candidates after them.
        every: logits of all tokens, not of the last one alone.
        sample: the id after the last token of `ids` is sampled.
    """

    row: int
    ids: Sequence[int]
    tree: DraftTree | None = None
    every: bool = False
    sample: bool = False


class Driver:
    """Rows with randomly placed slots, and the plans that extend them."""

    def __init__(
        self,
        model: Model,
        ops: Ops,
        *,
        max_rows: int = 8,
        graph: bool = True,
        attention: str = "auto",
        page_size: int = 1,
        kv_dtype: torch.dtype = torch.float32,
        max_step_tokens: int = 256,
        seed: int = 0,
        draft_model: DraftModel | None = None,
        draft_scratch: int = 0,
        adapter_slots: int = 0,
    ) -> None:
        pages_each = -(-model.max_context // page_size)
        pages = np.random.default_rng(seed).permutation(max_rows * pages_each) + 1
        slots = pages[:, None] * page_size + np.arange(page_size)
        self.slots = np.ascontiguousarray(slots.reshape(max_rows, -1).astype(np.int32))
        self.lengths = [0] * max_rows
        self.runner: ModelRunner = build_runner(
            model,
            ops,
            RunnerSettings(
                num_pages=max_rows * pages_each,
                page_size=page_size,
                max_step_tokens=max_step_tokens,
                max_step_rows=max_rows,
                kv_dtype=kv_dtype,
                attention=attention,
                graph=graph,
                draft_scratch=draft_scratch,
                adapter_slots=adapter_slots,
            ),
            self.slots,
            draft_model,
        )

    def plan(self, parts: Sequence[Part]) -> ScheduleBatch:
        """A plan that extends the rows; candidates are not counted as part of their row."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[np.ndarray[Any, Any]] = []
        wanted: list[int] = []
        sampled: list[int] = []
        lens: list[int] = []
        previous: list[np.ndarray[Any, Any]] = []
        for part in parts:
            start, count = self.lengths[part.row], len(part.ids)
            nodes = 0 if part.tree is None else len(part.tree)
            base = len(ids)
            ids += part.ids
            positions += range(start, start + count)
            if part.tree is not None:
                ids += part.tree.token_ids.tolist()
                positions += (part.tree.depths + start + count).tolist()
            mine = self.slots[part.row]
            slots.append(mine[start : start + count + nodes])
            before = np.arange(start - 1, start + count - 1)
            if part.tree is not None:
                parents = part.tree.parents.astype(np.int64)
                before = np.concatenate([before, start + count + parents])
            previous.append(np.where(before < 0, 0, mine[before]))
            if part.every or part.tree is not None:
                wanted += range(base, base + count + nodes)
            else:
                wanted.append(base + count - 1)
            if part.sample:
                sampled.append(len(wanted) - 1 - nodes)
            lens.append(count + nodes)
        plan = ScheduleBatch(
            mode=ForwardMode.EXTEND,
            rows=np.array([part.row for part in parts], dtype=np.int32),
            seq_lens=np.array(
                [self.lengths[part.row] + n for part, n in zip(parts, lens, strict=True)],
                dtype=np.int32,
            ),
            extend_lens=np.array(lens, dtype=np.int32),
            input_ids=np.array(ids, dtype=np.int32),
            positions=np.array(positions, dtype=np.int64),
            out_slots=np.concatenate(slots),
            logit_idx=np.array(wanted, dtype=np.int32),
            sample_idx=np.array(sampled, dtype=np.int32),
            sample_rows=np.array(
                [i for i, part in enumerate(parts) if part.sample], dtype=np.int32
            ),
            tree=_tree_mask(parts),
            previous=np.concatenate(previous).astype(np.int32),
        )
        for part in parts:
            self.lengths[part.row] += len(part.ids)
        return plan

    def run(self, *parts: Part) -> torch.Tensor:
        """Run one step; logits [l, V] of the tokens that were asked for."""
        with torch.inference_mode():
            return self.runner.logits(self.runner.run(self.plan(parts)).clone())

    def logprobs(self, *parts: Part) -> torch.Tensor:
        """The same as log-probabilities."""
        return torch.log_softmax(self.run(*parts), dim=-1)


def _tree_mask(parts: Sequence[Part]) -> TreeMask | None:
    if all(part.tree is None for part in parts):
        return None
    words = [part.tree.mask_words() for part in parts if part.tree is not None]
    sizes = [0 if part.tree is None else len(part.tree.mask_words()) for part in parts]
    counts = [0 if part.tree is None else len(part.tree) for part in parts]
    return TreeMask(
        np.array(counts, dtype=np.int32),
        np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32),
        np.concatenate(words),
    )
