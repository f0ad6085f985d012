"""Trains a head: the unrolled loss, AdamW, a state that can be resumed.

Invariant: which sequences a step sees, and its learning rate, are functions of (seed, step), so a
run that was cut off and resumed does what an uninterrupted one does. The state is one safetensors
file, replaced whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.training.batches import Batches, BatchPlan, BatchSettings, spread
from branchline.runtime.training.corpus import Conversation, Corpus
from branchline.runtime.training.head import EagleHead
from branchline.runtime.training.loss import piece_rows, pieces, soft_cross_entropy
from branchline.runtime.training.target import Target
from branchline.runtime.training.vocabulary import DraftVocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a head is trained.

    Attributes:
        steps: updates of the weights.
        unroll: steps of the head on its own outputs, each with a loss.
        decay: weight of each step's loss, relative to the one before.
        batch_tokens: tokens of one batch at most, padding included.
        max_tokens: of one sequence; longer ones are cut.
        rate, least_rate: learning rate at its peak and at the end, a cosine apart.
        warmup: steps up to the peak.
        clip: norm of the gradient at most.
        seed: of the order, and of the first weights.
    """

    steps: int
    unroll: int = 6
    decay: float = 0.85
    batch_tokens: int = 8192
    max_tokens: int = 1024
    rate: float = 1.5e-3
    least_rate: float = 2e-5
    warmup: int = 100
    clip: float = 0.5
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.least_rate + (self.rate - self.least_rate) * (1 + math.cos(math.pi * done)) / 2


class Measured(NamedTuple):
    """Of one step: mean loss, and share of right guesses for each step of the unrolling."""

    loss: float
    right: list[float]


class Trainer:
    """A head on its way.

    Args:
        target: whose guesses it learns.
        vocabulary: what it may guess.
        corpus: what it learns from.
        settings: how.
        head: with its first weights; on the target's device, float32.

    Attributes:
        step: updates done.
    """

    def __init__(
        self,
        target: Target,
        vocabulary: DraftVocabulary,
        corpus: Corpus,
        settings: TrainSettings,
        head: EagleHead,
    ) -> None:
        self._target, self._corpus, self._settings = target, corpus, settings
        self._batches = Batches(
            corpus, BatchSettings(settings.batch_tokens, settings.max_tokens, settings.seed)
        )
        self.head = head
        self.step = 0
        self._ids = vocabulary.ids.to(target.device)
        self._rows = target.head[self._ids].contiguous()
        self._members = vocabulary.members().to(target.device)
        self._optimizer = torch.optim.AdamW(
            head.parameters(),
            lr=settings.rate,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            fused=target.device.type == "cuda",
        )

    def measure_scale(self, sequences: int = 64) -> None:
        """Set the head's input scale: root mean square of each input over some answers."""
        some = [
            self._batches.cut(self._corpus[i]) for i in range(min(sequences, len(self._corpus)))
        ]
        states = self._target.run([one.ids for one in some], self.head.shape.layers).layers
        # the first token of a sequence has states like no other's
        first = np.cumsum([0, *[len(one.ids) for one in some[:-1]]])
        keep = torch.ones(states.shape[0], dtype=torch.bool, device=states.device)
        keep[torch.from_numpy(first).to(states.device)] = False
        mean = states[keep].float().square().mean(0)
        self.head.input_scale.copy_(mean.sqrt().clamp_min(1e-6))

    def batches(self) -> Iterator[list[Conversation]]:
        """From the next step on."""
        return self._batches.start(self.step)

    def batches_per_epoch(self) -> int:
        """Steps that see every sequence once."""
        return len(self._batches.epoch(0))

    def train_step(self, batch: Sequence[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
        """One update.

        Returns:
            Loss summed over rows by step of the unrolling, and (right guesses, rows) likewise:
            float32 [unroll] and [2, unroll], on the device (see `measured`).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate_at(self.step)
        losses, counts = self._losses(batch)
        decay = self._settings.decay ** torch.arange(len(losses), device=losses.device)
        loss = (losses / counts[1].clamp_min(1) * decay).sum() / decay.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self._settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses.detach(), counts

    def _losses(self, batch: Sequence[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
        target, settings = self._target, self._settings
        plan = BatchPlan.of(batch, settings.unroll, target.device)
        states = target.run([one.ids for one in batch], self.head.shape.layers)
        rows, padded = len(batch), plan.padded
        inputs = spread(states.layers.float(), plan.places, rows, padded)
        embedded = spread(target.embedding[plan.ids].float(), plan.places, rows, padded)
        wanted, inside = self._wanted(states.final[plan.words])
        with torch.autocast(target.device.type, torch.bfloat16, target.dtype == torch.bfloat16):
            outputs = self.head.unroll(inputs, embedded, settings.unroll)
            losses, counts = [], []
            for output, learned in zip(outputs, plan.learned, strict=True):
                hidden = self.head.norm(output.flatten(0, 1)[learned.outputs])
                weights = inside[learned.said] * inside[learned.begun]
                part = soft_cross_entropy(hidden, self._rows, wanted, learned.said, weights)
                losses.append(part.total)
                counts.append(torch.stack([part.hits, weights.sum()]))
        return torch.stack(losses), torch.stack(counts, dim=1)

    @torch.no_grad()
    def _wanted(self, final: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's distributions over the draft vocabulary, from its final states [r, H].

        Returns:
            [r, n], and float32 [r]: 1 where what it finds most likely is a draft token, else 0.
        """
        wanted = final.new_empty((len(final), self._rows.shape[0]))
        inside = torch.empty(len(final), device=final.device)
        whole = self._target.head
        count = piece_rows(whole.shape[0])
        for first in pieces(len(final), whole.shape[0]):
            rows = slice(first, first + count)
            logits = final[rows] @ whole.T
            inside[rows] = self._members[logits.argmax(-1)].float()
            wanted[rows] = logits[:, self._ids].float().softmax(-1).to(wanted.dtype)
        return wanted, inside

    # -- state -----------------------------------------------------------------------------------

    def save(self, path: Path, log: dict[str, Any]) -> None:
        """Write the state; `log` is what is wanted back beside it, as JSON."""
        tensors = {"input_scale": self.head.input_scale.cpu()}
        for name, parameter in self.head.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach().cpu()
            for moment in ("exp_avg", "exp_avg_sq"):
                kept = self._optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
                tensors[f"{moment}.{name}"] = kept.cpu()
        told = {"step": self.step, "settings": asdict(self._settings), "log": log}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"state": json.dumps(told)})
        os.replace(part, path)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns its log.

        Raises:
            InvalidRequest: it was made with other settings; names them.
            ModelLoadError: damaged.
        """
        told = read_state(path)
        mine = asdict(self._settings)
        other = {name for name in mine if told["settings"].get(name) != mine[name]}
        if other:
            named = ", ".join(sorted(other))
            raise InvalidRequest(
                f"the run in {path.parent} was begun with other settings: {named}",
                value={name: told["settings"].get(name) for name in sorted(other)},
                hint="Use those, or another folder.",
            )
        with safe_open(path, "pt") as file:
            self.head.input_scale.copy_(file.get_tensor("input_scale"))
            for name, parameter in self.head.named_parameters():
                parameter.data.copy_(file.get_tensor(f"weight.{name}"))
                state: dict[str, Any] = {
                    moment: file.get_tensor(f"{moment}.{name}").to(parameter.device)
                    for moment in ("exp_avg", "exp_avg_sq")
                }
                where = parameter.device if parameter.device.type == "cuda" else None
                state["step"] = torch.tensor(float(told["step"]), device=where)
                self._optimizer.state[parameter] = state
        self.step = int(told["step"])
        log: dict[str, Any] = told["log"]
        return log


def read_state(path: Path) -> dict[str, Any]:
    """Step, settings and log of a state. Raises ModelLoadError: damaged."""
    try:
        with safe_open(path, "pt") as file:
            told: dict[str, Any] = json.loads(file.metadata()["state"])
            return told
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelLoadError(
            f"{path} is damaged: {error}.", hint="Delete it; training begins again."
        ) from error


def measured(losses: torch.Tensor, counts: torch.Tensor) -> Measured:
    """Means of what `train_step` returned, maybe summed over steps; waits for the device."""
    hits, rows = counts.double().cpu()
    rows = rows.clamp_min(1)
    loss = (losses.double().cpu() / rows).mean()
    return Measured(float(loss), (hits / rows).tolist())
