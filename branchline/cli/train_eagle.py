"""`branchline train-eagle`: flags to settings of a recipe, and its progress on the terminal."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from branchline.cli.options import engine_settings
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.loading.catalog import DEFAULT_MODEL
from branchline.runtime.training.corpus import CorpusSettings
from branchline.runtime.training.recipe import Recipe, RecipeSettings
from branchline.runtime.training.trainer import TrainSettings

_COUNTS = (
    *("tokens", "max_answer", "draft_vocab", "ffn", "unroll", "epochs", "steps", "batch_tokens"),
    "save_every",
)
LINE_S = 15.0
"""Seconds between two lines where the output is no terminal."""


def train_eagle(arguments: argparse.Namespace) -> int:
    """Run the recipe, then say what came of it."""
    settings = recipe_settings(arguments)
    console = Console(highlight=False)
    out = settings.out
    with _Bars(console) as bars:
        recipe = Recipe(settings, bars.tell)
        corpus = recipe.make_data() if arguments.only_data else None
        report = recipe.run() if corpus is None else {}
    if corpus is not None:
        said = f"{len(corpus)} conversations, {corpus.answer_tokens} tokens of answers"
        console.print(f"data: {out / 'corpus.safetensors'} ({said})")
        return 0
    console.print(f"head: {out / 'head'} ({report['head_bytes'] / 1e6:.1f} MB)")
    for one in report["heldout"].get("trees", ()):
        tree = one["tree"]
        tasks = ", ".join(f"{task} {length:.2f}" for task, length in one["tasks"].items())
        console.print(
            f"held-out, width {tree['width']}, depth {tree['depth']}, {tree['nodes']} nodes: "
            f"accept length {one['accept_length']:.2f} ({tasks})"
        )
    console.print(f"report: {out / 'report.json'}, curves: {out / 'curves.svg'}")
    return 0


def recipe_settings(arguments: argparse.Namespace) -> RecipeSettings:
    """What the flags ask for. Raises InvalidRequest: a value out of range."""
    for name in _COUNTS:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            flag = "--" + name.replace("_", "-")
            raise InvalidRequest(f"{flag} is at least 1", value=value, hint=f"Raise {flag}.")
    for name in ("minutes", "rate"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InvalidRequest(f"--{name} is above 0", value=value, hint=f"Raise --{name}.")
    engine = engine_settings(arguments)
    return RecipeSettings(
        model=engine.pop("model", DEFAULT_MODEL),
        out=Path(arguments.out),
        prompts=_path(arguments.prompts),
        heldout=_path(arguments.heldout),
        data=tuple(Path(path) for path in arguments.data or ()),
        corpus=CorpusSettings(
            tokens=arguments.tokens,
            max_answer=arguments.max_answer,
            seed=arguments.seed,
            shard=_shard(arguments.shard),
        ),
        train=TrainSettings(
            steps=arguments.steps or 0,
            unroll=arguments.unroll,
            batch_tokens=arguments.batch_tokens,
            rate=arguments.rate,
            seed=arguments.seed,
        ),
        minutes=arguments.minutes,
        epochs=arguments.epochs,
        draft_vocab=arguments.draft_vocab,
        ffn=arguments.ffn,
        layers=_layers(arguments.layers),
        save_every=arguments.save_every,
        engine=engine,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _layers(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        low, middle, high = (int(word) for word in text.split(","))
    except ValueError:
        raise InvalidRequest(
            "--layers are three numbers", value=text, hint="For example --layers 1,14,26."
        ) from None
    return low, middle, high


def _shard(text: str | None) -> tuple[int, int]:
    number, slash, count = (text or "1/1").partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InvalidRequest("--shard is one of several", value=text, hint="For example 2/4.")
    return int(number) - 1, int(count)


class _Bars:
    """A bar for each stage on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._said = 0.0
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def tell(self, stage: str, done: int, of: int, note: str) -> None:
        """See `recipe.Tell`."""
        if not self._console.is_terminal:
            if done == of or time.monotonic() - self._said > LINE_S:
                self._said = time.monotonic()
                self._console.print(f"{stage}: {done} of {of}, {note}")
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=of, note=note)
        self._progress.update(self._tasks[stage], completed=done, total=of, note=note)
