"""From a model's name to a trained head: data, vocabulary, training, measure, files.

Invariant: every stage leaves its result in the run's folder and is not done again while that is
there, so a run that was cut off goes on where it was. What a stage is made of (settings, seed) is
written beside it, and other settings in the same folder are refused.
"""

from __future__ import annotations

import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.loading.catalog import resolve_model
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.training.checkpoint import read_head, write_head
from branchline.runtime.training.corpus import Corpus, CorpusSettings, greedy_answers, make_corpus
from branchline.runtime.training.evaluate import CHAIN, SIZES, Accepted, Measure, TreeSize
from branchline.runtime.training.head import EagleHead, HeadShape
from branchline.runtime.training.picture import Curve, Panel, draw
from branchline.runtime.training.prompts import Prompt, endless_prompts, read_prompts
from branchline.runtime.training.target import Target
from branchline.runtime.training.trainer import Trainer, TrainSettings, measured, read_state
from branchline.runtime.training.vocabulary import DraftVocabulary

Tell = Callable[[str, int, int, str], None]
"""Told the stage, how much of how much is done, and a note."""

_KEPT_OUT = 48
"""Conversations of the corpus that a run measures itself by and does not learn from."""
_LOG_EVERY = 20
_TIMED_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSettings:
    """One run.

    Attributes:
        model: the target: name, directory or file.
        out: folder of the run; the head comes to `out/head`.
        prompts: file of prompts in place of those that are made.
        data: what other runs made (their corpus.safetensors), to learn from in place of data of
            this run's own.
        heldout: file of prompts to measure the head by.
        corpus: how answers are made.
        train: how the head is trained; `steps` 0 = by `minutes` or `epochs`.
        minutes: training time; the number of steps is chosen by the first few and kept.
        epochs: how often each conversation is seen, where no time is given.
        draft_vocab: tokens that the head may guess.
        ffn: width of the head's MLP; None = the target's.
        layers: of the target that the feature is made of; None = as EAGLE-3 names them.
        save_every: steps from one state of the training to the next.
        engine: settings of the engine that makes the data.
    """

    model: str
    out: Path
    prompts: Path | None = None
    data: tuple[Path, ...] = ()
    heldout: Path | None = None
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    train: TrainSettings = field(default_factory=lambda: TrainSettings(steps=0))
    minutes: float | None = None
    epochs: int = 6
    draft_vocab: int = 16384
    ffn: int | None = None
    layers: tuple[int, int, int] | None = None
    save_every: int = 500
    engine: dict[str, Any] = field(default_factory=dict)


class Recipe:
    """Runs the stages; `run` does all.

    Args:
        settings: of the run.
        tell: told how far it is.
    """

    def __init__(self, settings: RecipeSettings, tell: Tell) -> None:
        self._settings, self._tell = settings, tell
        self._out = settings.out
        self._times: dict[str, float] = {}

    def make_data(self) -> Corpus:
        """The first stage alone."""
        self._begin()
        return self._data()[0]

    def run(self) -> dict[str, Any]:
        """All stages; returns the report, which is also in `report.json`."""
        self._begin()
        with self._timed("data"):
            corpus, heldout = self._data()
        target = self._target()
        learned, kept_out = _split(corpus, self._settings.corpus.seed)
        counts = learned.counts(target.spec.vocab_size)
        vocabulary = DraftVocabulary.most_frequent(
            counts, self._settings.draft_vocab, target.spec.eos_ids
        )
        with self._timed("training"):
            log = self._train(target, learned, kept_out, vocabulary)
        with self._timed("measure"):
            measures = self._measure(target, heldout, counts)
        report = {
            "model": self._settings.model,
            "device": _device_name(target.device),
            "conversations": len(corpus),
            "tokens": len(corpus.ids),
            "answer_tokens": corpus.answer_tokens,
            "draft_vocab": len(vocabulary.ids),
            "coverage": vocabulary.coverage(counts),
            "head_bytes": (self._out / "head" / "model.safetensors").stat().st_size,
            "seconds": self._times,
            "training": log,
            "heldout": measures,
        }
        _write_json(self._out / "report.json", report)
        (self._out / "curves.svg").write_text(_picture(log), encoding="utf-8")
        return report

    # -- stages ----------------------------------------------------------------------------------

    def _data(self) -> tuple[Corpus, Corpus | None]:
        """What the target says to training prompts, and to held-out ones."""
        settings = self._settings
        path, held_path = self._out / "corpus.safetensors", self._out / "heldout.safetensors"
        held = None if settings.heldout is None else read_prompts(settings.heldout)
        make_own = not settings.data and not path.exists()
        make_held = held is not None and not held_path.exists()
        if make_own or make_held:
            with Engine(settings.model, **settings.engine) as engine:
                if held is not None and make_held:
                    answers = greedy_answers(engine, held, settings.corpus.max_answer)
                    answers.save(held_path, settings.corpus)
                if make_own:
                    self._corpus(engine, self._prompts()).save(path, settings.corpus)
            gc.collect()  # the engine's memory, before training needs it
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        corpus = Corpus.joined([Corpus.load(one) for one in settings.data or (path,)])
        return corpus, None if held is None else Corpus.load(held_path)

    def _prompts(self) -> Iterator[Prompt]:
        if self._settings.prompts is None:
            return endless_prompts(self._settings.corpus.seed)
        return iter(read_prompts(self._settings.prompts))

    def _corpus(self, engine: Engine, prompts: Iterator[Prompt]) -> Corpus:
        corpus = make_corpus(
            engine,
            prompts,
            self._settings.corpus,
            lambda done, of: self._tell("data", done, of, "tokens of answers"),
        )
        if len(corpus) <= _KEPT_OUT:
            raise InvalidRequest(
                "there are too few conversations to learn from",
                value=len(corpus),
                hint=f"Give more prompts or tokens: {_KEPT_OUT} are kept out for measuring.",
            )
        return corpus

    def _target(self) -> Target:
        cuda = torch.cuda.is_available() and self._settings.engine.get("device") != "cpu"
        dummy = self._settings.engine.get("load_format") == "dummy"
        return Target(
            resolve_model(self._settings.model),
            torch.device("cuda" if cuda else "cpu"),
            load_format="dummy" if dummy else "auto",
        )

    def _train(
        self, target: Target, corpus: Corpus, kept_out: Corpus, vocabulary: DraftVocabulary
    ) -> dict[str, Any]:
        """Train, or go on with it; writes the head and returns the curves."""
        shape = self._shape(target.spec)
        state = self._out / "state.safetensors"
        train = replace(self._settings.train, steps=self._settings.train.steps or 1)
        if state.exists():
            train = replace(train, steps=int(read_state(state)["settings"]["steps"]))
        head = EagleHead(target.spec, shape, target.spec.max_context).to(target.device)
        head.init_weights(train.seed)
        trainer = Trainer(target, vocabulary, corpus, train, head)
        log: dict[str, Any] = {"loss": [], "accept": []}
        if state.exists():
            log = trainer.resume(state)
        else:
            trainer.measure_scale()
            steps = self._steps(trainer, corpus)
            train = replace(train, steps=steps)
            head.init_weights(train.seed)  # what was timed is forgotten
            trainer = Trainer(target, vocabulary, corpus, train, head)
        session = _Session(self._settings, self._tell, train, log)
        session.run(trainer, lambda: self._accept(target, trainer, kept_out, vocabulary))
        write_head(self._out / "head", head, vocabulary)
        return log | {"settings": asdict(train), "steps_per_epoch": trainer.batches_per_epoch()}

    def _steps(self, trainer: Trainer, corpus: Corpus) -> int:
        """How many steps to train for: as told, or by time or passes over the data."""
        settings = self._settings
        if settings.train.steps:
            return settings.train.steps
        if settings.minutes is None:
            return settings.epochs * trainer.batches_per_epoch()
        batches = list(islice(trainer.batches(), 2 * _TIMED_STEPS))
        begin = time.monotonic()
        for number, batch in enumerate(batches):
            if number == len(batches) // 2:  # the first ones warm up
                _wait()
                begin = time.monotonic()
            trainer.train_step(batch)
        _wait()
        each = (time.monotonic() - begin) / (len(batches) - len(batches) // 2)
        return max(1, int(60 * settings.minutes / each))

    def _accept(
        self, target: Target, trainer: Trainer, kept_out: Corpus, vocabulary: DraftVocabulary
    ) -> float:
        """Accept length of a chain on what is kept out."""
        folder = self._out / "head"
        write_head(folder, trainer.head, vocabulary)
        trained = read_head(folder, target.spec, target.spec.max_context)
        measure = Measure(trained.head, target, vocabulary)
        return _total(measure.accepted(list(kept_out), CHAIN)).length

    def _measure(self, target: Target, heldout: Corpus | None, counts: Any) -> dict[str, Any]:
        """Accept lengths on held-out prompts: by size of tree, of vocabulary, and by task."""
        if heldout is None or self._settings.heldout is None:
            return {}
        tasks = [prompt.task for prompt in read_prompts(self._settings.heldout)]
        answers = list(heldout)
        found: dict[str, Any] = {"trees": [], "vocabularies": []}
        for size in SIZES:
            measure = self._measure_with(target, None, counts)
            each = measure.accepted(answers, size)
            by_task = {
                task: _total([one for one, of in zip(each, tasks, strict=True) if of == task])
                for task in dict.fromkeys(tasks)
            }
            whole = _total(each)
            found["trees"].append(
                {
                    "tree": asdict(size),
                    "accept_length": whole.length,
                    "steps": whole.steps,
                    "reached": [count / whole.steps for count in whole.at_depth],
                    "tasks": {task: one.length for task, one in by_task.items()},
                }
            )
            self._tell("measure", len(found["trees"]), len(SIZES), f"{size}: {whole.length:.2f}")
        full = target.spec.vocab_size
        for count in sorted({min(full, n) for n in (4096, 8192, 16384, 24576, 32768, full)}):
            measure = self._measure_with(target, count, counts)
            for size in (CHAIN, SIZES[2]):
                length = _total(measure.accepted(answers, size)).length
                found["vocabularies"].append(
                    {"tokens": count, "tree": asdict(size), "accept_length": length}
                )
        return found

    def _measure_with(self, target: Target, count: int | None, counts: Any) -> Measure:
        """The written head, with its own vocabulary or that of the `count` commonest tokens."""
        trained = read_head(self._out / "head", target.spec, target.spec.max_context)
        vocabulary = trained.vocabulary
        if count is not None:
            vocabulary = DraftVocabulary.most_frequent(counts, count, target.spec.eos_ids)
        return Measure(trained.head, target, vocabulary)

    # -- inside ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Refuse what cannot be done before any of it is. Raises InvalidRequest."""
        for path in self._settings.data:
            if not path.is_file():
                raise InvalidRequest(
                    "there is no such data",
                    value=path,
                    hint="Name the corpus.safetensors of another run.",
                )
        load_format = self._settings.engine.get("load_format", "auto")
        checkpoint = open_checkpoint(resolve_model(self._settings.model), load_format)
        self._shape(checkpoint.spec)
        checkpoint.close()
        self._out.mkdir(parents=True, exist_ok=True)
        self._same_settings()

    def _shape(self, spec: ModelSpec) -> HeadShape:
        usual = HeadShape.usual(spec, self._settings.ffn)
        layers = self._settings.layers
        if layers is None:
            return usual
        if not 0 <= layers[0] <= layers[1] <= layers[2] < spec.num_layers - 1:
            raise InvalidRequest(
                "these layers cannot make a feature",
                value=layers,
                hint=f"Three in ascending order, from 0 to {spec.num_layers - 2}.",
            )
        return replace(usual, layers=layers)

    def _same_settings(self) -> None:
        """Refuse a folder that was begun with other data. Raises InvalidRequest."""
        path = self._out / "run.json"
        corpus = json.loads(json.dumps(asdict(self._settings.corpus)))
        prompts = self._settings.prompts
        mine = {
            "model": self._settings.model,
            "prompts": None if prompts is None else str(prompts),
            "data": [str(path) for path in self._settings.data],
            "corpus": corpus,
            "draft_vocab": self._settings.draft_vocab,
            "ffn": self._settings.ffn,
            "layers": self._settings.layers and list(self._settings.layers),
        }
        if not path.exists():
            _write_json(path, mine)
            return
        there = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(name for name in mine if there.get(name) != mine[name])
        if other:
            raise InvalidRequest(
                f"the run in {self._out} was begun with other settings: {', '.join(other)}",
                value={name: there.get(name) for name in other},
                hint="Use those, or another folder.",
            )

    def _timed(self, stage: str) -> _Clock:
        return _Clock(self._times, stage)


class _Session:
    """The loop of the training: steps, log, states."""

    def __init__(
        self, settings: RecipeSettings, tell: Tell, train: TrainSettings, log: dict[str, Any]
    ) -> None:
        self._settings, self._tell, self._train, self.log = settings, tell, train, log

    def run(self, trainer: Trainer, accept: Callable[[], float]) -> None:
        """Up to the last step; a state is written now and then, and at the end."""
        state = self._settings.out / "state.safetensors"
        sums: list[torch.Tensor] = []
        batches = trainer.batches()
        while trainer.step < self._train.steps:
            losses, counts = trainer.train_step(next(batches))
            if not sums:
                sums = [torch.zeros_like(losses), torch.zeros_like(counts)]
            sums[0] += losses
            sums[1] += counts
            step, last = trainer.step, trainer.step == self._train.steps
            if step % _LOG_EVERY == 0 or last:
                loss, right = measured(sums[0], sums[1])
                self.log["loss"].append({"step": step, "loss": loss, "right": right})
                sums = []
                note = f"loss {loss:.3f}, right {right[0]:.2f}…{right[-1]:.2f}"
                self._tell("training", step, self._train.steps, note)
            if step % self._settings.save_every == 0 or last:
                length = accept()
                self.log["accept"].append({"step": step, "accept_length": length})
                self._tell("training", step, self._train.steps, f"chain of 4 accepts {length:.2f}")
                trainer.save(state, self.log)


class _Clock:
    """Adds the seconds of a block to an entry."""

    def __init__(self, times: dict[str, float], name: str) -> None:
        self._times, self._name = times, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._begin
        self._times[self._name] = round(self._times.get(self._name, 0.0) + took, 1)


def _split(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """(what is learned, what is kept out to measure by)."""
    order = list(range(len(corpus)))
    random.Random(seed).shuffle(order)
    kept = sorted(order[:_KEPT_OUT])
    return (
        Corpus.of([corpus[i] for i in sorted(order[_KEPT_OUT:])]),
        Corpus.of([corpus[i] for i in kept]),
    )


def _total(each: list[Accepted]) -> Accepted:
    whole = Accepted()
    for one in each:
        whole.steps += one.steps
        whole.tokens += one.tokens
        whole.at_depth += [0] * (len(one.at_depth) - len(whole.at_depth))
        for depth, count in enumerate(one.at_depth):
            whole.at_depth[depth] += count
    return whole


def _picture(log: dict[str, Any]) -> str:
    rows = log["loss"]
    unroll = len(rows[0]["right"]) if rows else 0
    right = [
        Curve(f"token {ahead + 1}", [(row["step"], row["right"][ahead]) for row in rows])
        for ahead in range(unroll)
    ]
    loss = Curve("training", [(row["step"], row["loss"]) for row in rows])
    accept = Curve("chain of 4", [(one["step"], one["accept_length"]) for one in log["accept"]])
    return draw(
        [
            Panel("Loss (mean over unrolled steps)", "step", [loss]),
            Panel("Right first guesses, by tokens ahead", "step", right),
            Panel("Accept length, conversations kept out", "step", [accept]),
        ]
    )


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


__all__ = ["CHAIN", "SIZES", "Recipe", "RecipeSettings", "TreeSize"]
