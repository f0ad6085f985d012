"""Trains a LoRA adapter on the default model with PEFT, and writes it as a standard PEFT folder.

Invariant: the same recipe, task and seed give the same items in the same order; what is learned is
the answer alone, never the prompt. Held-out items are only measured, and nothing is chosen by them.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from branchline.examples.adapters.base import HUB_NAME, Encoder, load_base
from branchline.examples.adapters.base import Sequence as TokenSequence
from branchline.examples.adapters.task import Task
from branchline.examples.adapters.words import Split
from branchline.runtime.errors import InvalidRequest, UnsupportedFeature

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        rank: of every adapted projection; 4 on all of them is 2.4 MB in bfloat16.
        alpha: the update is scaled by alpha / rank.
        items: distinct training items, numbered from 0.
        epochs: passes over them.
        batch: sequences a step.
        rate: peak learning rate of AdamW, warmed up over `warmup` steps, then a cosine to zero.
        seed: of the adapter's first weights and of the order.
        measured: items of each split that are measured at the end.
    """

    rank: int = 4
    alpha: int = 16
    items: int = 20_000
    epochs: int = 1
    batch: int = 64
    rate: float = 2e-3
    warmup: int = 50
    seed: int = 0
    measured: int = 200

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * (self.items // self.batch)


@dataclass(frozen=True)
class Learned:
    """What training gave.

    Attributes:
        losses: mean loss of each hundred steps (the last may be of fewer).
        exact: share of answers whose every token is the model's first choice: of new items with
            the sentences and words of training ("train"), and of "held_out" ones.
        seconds: from the first step to the last.
        nbytes: of the weights' file.
    """

    losses: list[float]
    exact: dict[str, float]
    seconds: float
    nbytes: int


def train(
    task: Task,
    model_path: Path,
    folder: Path,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Learned:
    """Train an adapter for `task` and write it to `folder`.

    Args:
        model_path: the base model's GGUF file or directory.
        folder: gets adapter_config.json, adapter_model.safetensors (bfloat16), training.json.
        recipe: default `Recipe()`.
        device: "cpu" (float32) or "cuda" (bfloat16, the adapter's own weights in float32).
        say: told how far it is.

    Raises:
        UnsupportedFeature: PEFT is not installed.
        InvalidRequest: there is not one batch of items.
        ModelLoadError: the base model cannot be trained on, or not read.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UnsupportedFeature(
            f"training needs the package {error.name}, which is not installed",
            hint="Install it: pip install 'branchline[runtime,train]'.",
        ) from error

    recipe = recipe or Recipe()
    if recipe.steps < 1:
        raise InvalidRequest(
            "there is not one batch to learn from",
            value=f"{recipe.items} items in batches of {recipe.batch}, {recipe.epochs} epochs",
            hint="Raise items and epochs, or lower batch.",
        )
    where = torch.device(device)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    base, checkpoint = load_base(model_path, dtype, where)
    encoder = Encoder(checkpoint)
    data = [encoder.encode(task.item("train", number)) for number in range(recipe.items)]
    unseen: dict[Split, range] = {
        "train": range(recipe.items, recipe.items + recipe.measured),
        "held_out": range(recipe.measured),
    }
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    say(f"{task.name}: {recipe.steps} steps of {recipe.batch}, {len(data)} items")
    begin = time.perf_counter()
    losses = list(_hundreds(_steps(base, data, recipe), say))
    seconds = time.perf_counter() - begin
    exact: dict[str, float] = {}
    for split, numbers in unseen.items():
        asked = [encoder.encode(task.item(split, number)) for number in numbers]
        exact[split] = exact_share(base, asked, recipe.batch)
        say(f"{task.name}: {exact[split]:.1%} of {len(asked)} new answers exact ({split})")
    nbytes = save(model, folder)
    learned = Learned(losses, exact, seconds, nbytes)
    _write_json(folder / "training.json", {"recipe": asdict(recipe), "result": asdict(learned)})
    return learned


def save(model: Any, folder: Path) -> int:
    """Write a PEFT folder with bfloat16 weights; returns the bytes of the weights' file."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = HUB_NAME
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # PEFT's empty form
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: in any order
    _write_json(path, settings)
    return (folder / "adapter_model.safetensors").stat().st_size


def exact_share(base: Any, data: Sequence[TokenSequence], batch: int) -> float:
    """Share of sequences whose every answer token is the most likely one: greedy decoding would
    write exactly that answer."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(data), batch):
            part = data[start : start + batch]
            logits, targets, owners = _answer_logits(base, part)
            wrong = owners[logits.argmax(-1) != targets]
            right += len(part) - len(set(wrong.tolist()))
    return right / max(1, len(data))


def _steps(base: Any, data: Sequence[TokenSequence], recipe: Recipe) -> Iterator[torch.Tensor]:
    """Train; yields the loss of each step."""
    learned = [parameter for parameter in base.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=recipe.rate, weight_decay=0.0, fused=base.device.type == "cuda"
    )
    base.train()
    for step, part in enumerate(_batches(data, recipe)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(step, recipe)
        logits, targets, _ = _answer_logits(base, part)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        yield loss.detach()
    base.eval()


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _batches(data: Sequence[TokenSequence], recipe: Recipe) -> Iterator[list[TokenSequence]]:
    """Every sequence once an epoch, beside others of about its length, in a drawn order; the
    longest, where they fill no batch, are left out."""
    rng = random.Random(recipe.seed)
    for _ in range(recipe.epochs):
        order = sorted(data, key=lambda one: len(one.ids) + rng.random() * 32)
        starts = list(range(0, len(order) - recipe.batch + 1, recipe.batch))
        rng.shuffle(starts)
        for start in starts:
            yield order[start : start + recipe.batch]


def _answer_logits(
    base: Any, part: Sequence[TokenSequence]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits [n, V], targets [n], which sequence each belongs to [n]) of all answer tokens.

    Sequences are padded on the right; attention is causal, so no answer sees the padding. What is
    picked is known on the host, so nothing waits for the device.
    """
    longest = max(len(one.ids) for one in part)
    ids, at, targets, owners = [], [], [], []
    for row, one in enumerate(part):
        ids.append(one.ids + [0] * (longest - len(one.ids)))
        at += [row * longest + i - 1 for i in range(one.prompt_len, len(one.ids))]
        targets += one.ids[one.prompt_len :]
        owners += [row] * (len(one.ids) - one.prompt_len)
    device = base.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        states = base.model(input_ids=torch.tensor(ids, device=device), use_cache=False)
        hidden = states.last_hidden_state.flatten(0, 1)
        logits = base.lm_head(hidden[torch.tensor(at, device=device)])
    return logits, torch.tensor(targets, device=device), torch.tensor(owners, device=device)


def _hundreds(losses: Iterator[torch.Tensor], say: Callable[[str], None]) -> Iterator[float]:
    """The mean of each hundred; reading a loss waits for the device, so it is done once each."""
    kept: list[torch.Tensor] = []
    for step, loss in enumerate(losses, 1):
        kept.append(loss)
        if len(kept) == 100:
            mean = float(torch.stack(kept).mean())
            say(f"step {step}: loss {mean:.4f}")
            kept.clear()
            yield mean
    if kept:
        yield float(torch.stack(kept).mean())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
