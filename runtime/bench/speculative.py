"""`branchline bench speculative`: the same outputs with and without guessing ahead.

For each task, temperature and number of outputs at once: tokens a second of plain decoding and of
each drafter, how many guesses were kept in a step that checked some (accept length), and how many
outputs were the same ids. Seeds are fixed, so they are all the same where a row's logits do not
depend on the step's shape (CPU; deterministic mode elsewhere). Prompts are in the cache from the
run that warms up, so that decoding alone is timed. Two tasks are made of the others' prompts:
"quote" repeats a text before it is summed up, "schema" is "json" under a JSON Schema.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import Column, table
from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest

HELD_OUT = Path(__file__).resolve().parents[2] / "assets" / "speculative" / "heldout.jsonl"
AGAIN = "again"
"""In place of a drafter: a second engine without one. What lies between two engines that do the
same, whose threads run on other cores, no ratio of the run can tell from nothing."""

OUTPUTS = 4
"""Outputs of a run at least, one after the other where fewer are made at once."""

Key = tuple[str, float, int]
"""Task, temperature, outputs at once."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request.

    Attributes:
        ids: by the chat template.
        constraint: on the answer.
    """

    ids: list[int]
    constraint: Constraint | None = None


@dataclass(slots=True)
class Cell:
    """What one engine did with one kind of work.

    Attributes:
        rates: tokens a second of each run.
        cpu_rates: tokens a CPU second of the process, which other programs slow down less.
        outputs: ids of the last one.
        accept: guesses kept in a step of a row that checked some; None = there was none.
    """

    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    accept: float | None = None

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


class _Line(msgspec.Struct):
    task: str
    text: str


def read_texts(path: Path | None) -> dict[str, list[str]]:
    """Texts by task, the two made ones included.

    Raises:
        InvalidRequest: no such file, or a line of it has no task or no text.
    """
    path = HELD_OUT if path is None else path
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        read = [msgspec.json.decode(line, type=_Line) for line in lines]
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidRequest(
            f"the prompts cannot be read: {error}",
            value=str(path),
            hint='Give --prompts a file of lines such as {"task": "chat", "text": "Hello"}.',
        ) from error
    texts: dict[str, list[str]] = {}
    for one in read:
        texts.setdefault(one.task, []).append(one.text)
    if "summarise" in texts:
        bodies = [text.partition("\n\n")[2] or text for text in texts["summarise"]]
        ask = "Repeat the text below word for word, then sum it up in one sentence.\n\n"
        texts["quote"] = [ask + body for body in bodies]
    if "json" in texts:
        texts["schema"] = texts["json"]
    return texts


def constraint_of(text: str) -> Constraint:
    """An object with the keys that a prompt names, or two others; values are texts or numbers."""
    named = re.search(r"the keys ([^.:\n]*)", text)
    keys = re.findall(r"\w+", named.group(1)) if named else []
    names = [key for key in dict.fromkeys(keys) if key != "and"]
    names = names if len(names) > 1 else ["subject", "details"]
    schema = {
        "type": "object",
        "properties": {name: {"type": ["string", "number"]} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    return Constraint(kind="json_schema", text=msgspec.json.encode(schema).decode())


def prompts_of(engine: Engine, task: str, texts: Sequence[str]) -> list[Prompt]:
    """The texts as the first turn of a chat."""
    turns, tokenizer = engine.core.turns, engine.core.tokenizer
    made = []
    for text in texts:
        asked = [("user", text)]
        whole = turns.begin([], "user") + text + turns.end([], "user")
        whole += turns.begin(asked, "assistant")
        constraint = constraint_of(text) if task == "schema" else None
        made.append(Prompt(tokenizer.encode(whole, special=True), constraint))
    return made


class Measure:
    """One kind of work on one engine, run by run; the first run warms up and does not count.

    Args:
        prompts: of the task; taken from the start again where more outputs are wanted.
        tokens: of an output at most.
        outputs: of a run at least.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        key: Key,
        tokens: int,
        *,
        outputs: int = OUTPUTS,
    ) -> None:
        self.cell = Cell()
        self._engine, self._tokens = engine, tokens
        _, self._temperature, self._at_once = key
        self._prompts = list(islice(cycle(prompts), max(self._at_once, outputs)))
        self._before: tuple[int, int] | None = None  # counts ahead of what counts
        engine.flush_cache()

    def run(self) -> None:
        """Once through all prompts."""
        start, cpu_start, outputs = time.perf_counter(), time.process_time(), []
        for first in range(0, len(self._prompts), self._at_once):
            some = self._prompts[first : first + self._at_once]
            outputs += _run(self._engine, some, self._temperature, self._tokens)
        took, cpu_took = time.perf_counter() - start, time.process_time() - cpu_start
        drafts, accepted = _counts(self._engine)
        if self._before is None:
            self._before = drafts, accepted
            return
        tokens = sum(map(len, outputs))
        self.cell.rates.append(tokens / took)
        self.cell.cpu_rates.append(tokens / cpu_took)
        self.cell.outputs = outputs
        if drafts > self._before[0]:
            self.cell.accept = (accepted - self._before[1]) / (drafts - self._before[0])


def _run(
    engine: Engine, prompts: Sequence[Prompt], temperature: float, tokens: int
) -> list[list[int]]:
    sampling = [
        SamplingParams(
            temperature=temperature, seed=seed, max_tokens=tokens, constraint=prompt.constraint
        )
        for seed, prompt in enumerate(prompts)
    ]
    results: list[GenerateResult] = engine.generate([prompt.ids for prompt in prompts], sampling)
    return [result.token_ids for result in results]


def _counts(engine: Engine) -> tuple[int, int]:
    stats = engine.info()["scheduler"]
    return stats["drafts"], stats["accepted_tokens"]


def settings_with(settings: dict[str, Any], drafter: str) -> dict[str, Any]:
    """The engine's settings with a drafter, or none; a draft model is named to those that have
    one."""
    made = settings | {"speculative": None if drafter in ("", AGAIN) else drafter}
    if drafter not in ("eagle", "draft"):
        made.pop("speculative_draft", None)
    return made


def speculative(
    settings: dict[str, Any],
    *,
    drafters: Sequence[str],
    tasks: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 4, 16, 64),
    temperatures: Sequence[float] = (0.0, 0.8),
    tokens: int = 128,
    outputs: int = OUTPUTS,
    prompts: Path | None = None,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> dict[str, dict[Key, Cell]]:
    """Measure plain decoding ("") and each drafter; print a table, a JSON line for each cell, and
    one that sums up.

    Args:
        settings: the engine's; `speculative` is set here.
        drafters: values of `speculative`, or `AGAIN`.
        tasks: None = all.
        outputs: of a run at least.

    Raises:
        InvalidRequest: a task that no prompt has, or what the engine refuses.
    """
    texts = read_texts(prompts)
    chosen = list(texts) if tasks is None else list(tasks)
    for task in chosen:
        if task not in texts:
            known = ", ".join(texts)
            raise InvalidRequest("no prompt is of this task", value=task, hint=f"Known: {known}.")
    if min(tokens, repeats, *batches) < 1:
        raise InvalidRequest(
            "a benchmark needs outputs", value=[*batches], hint="Use 1 or more for every number."
        )
    engines = {name: settings_with(settings, name) for name in ("", *drafters)}
    for one in engines.values():  # wrong settings of the last shall not be found out at the end
        EngineConfig.from_settings(one)
    keys = [(task, t, n) for task in chosen for t in temperatures for n in batches]
    found: dict[str, dict[Key, Cell]] = {name: {} for name in engines}
    for group in _groups(engines):
        with ExitStack() as stack:
            opened = {name: stack.enter_context(Engine(**engines[name])) for name in group}
            if "" in opened:
                print(header(opened[""].info()), file=stream)
            first = opened[group[0]]
            made = {task: prompts_of(first, task, texts[task]) for task in chosen}
            for key in keys:
                runs = {
                    name: Measure(engine, made[key[0]], key, tokens, outputs=outputs)
                    for name, engine in opened.items()
                }
                for _ in range(repeats + 1):
                    for run in runs.values():
                        run.run()
                for name, run in runs.items():
                    found[name][key] = run.cell
            print(f"  {', '.join(name or 'plain' for name in group)} done", file=sys.stderr)
    _report(found, keys, repeats, stream)
    return found


def _groups(engines: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Which engines are there at once: all, where their memory was given. They take turns then, so
    that what else the machine does falls on all of them."""
    if all(one.get("kv_tokens") for one in engines.values()):
        return [list(engines)]
    return [[name] for name in engines]


def _report(
    found: dict[str, dict[Key, Cell]], keys: Sequence[Key], repeats: int, stream: TextIO
) -> None:
    columns = [Column("task"), Column("T", right=True), Column("at once", right=True)]
    columns.append(Column("plain tok/s", right=True))
    names = [name for name in found if name]
    for name in names:
        columns += [Column(f"{name} tok/s", right=True), Column("× plain", right=True)]
        columns += [Column("accept", right=True), Column("same", right=True)]
    rows = []
    for key in keys:
        plain = found[""][key]
        row = [key[0], f"{key[1]:g}", str(key[2]), f"{plain.rate:.0f}"]
        for name in names:
            cell = found[name][key]
            accept = "-" if cell.accept is None else f"{cell.accept:.2f}"
            row += [f"{cell.rate:.0f}", f"{cell.rate / plain.rate:.2f}", accept]
            row.append(f"{_same(cell, plain):.0%}")
        rows.append(row)
    table(f"guessing ahead, median of {repeats}", columns, rows, stream)
    for name in found:
        for key in keys:
            cell = found[name][key]
            fields = {"task": key[0], "temperature": key[1], "at_once": key[2]}
            rates = {"tok_s": cell.rate, "all_tok_s": cell.rates, "accept": cell.accept}
            cpu = {"cpu_gain": round(_cpu_gain(cell, found[""][key]), 3)} if name else {}
            print(json_line(drafter=name or "plain", **fields, **rates, **cpu), file=stream)
    print(json_line(bench="speculative", **_sums(found, keys)), file=stream)


def _sums(found: dict[str, dict[Key, Cell]], keys: Sequence[Key]) -> dict[str, Any]:
    """For each drafter: the mean greedy accept length one at a time, the speed against plain
    decoding (geometric mean) one at a time, and the worst of the largest batch."""
    sums: dict[str, Any] = {}
    least, most = min(key[2] for key in keys), max(key[2] for key in keys)
    for name in found:
        if not name:
            continue
        cells = found[name]
        gains = {key: cells[key].rate / found[""][key].rate for key in keys}
        accepts = [cells[k].accept or 0.0 for k in keys if k[1] == 0.0 and k[2] == least]
        alone = [gains[k] for k in keys if k[2] == least]
        sums[name] = {
            "accept": round(statistics.fmean(accepts), 3) if accepts else None,
            "gain": round(statistics.geometric_mean(alone), 3),
            "worst_gain_of_largest": round(min(gains[k] for k in keys if k[2] == most), 3),
        }
    return sums


def _cpu_gain(cell: Cell, plain: Cell) -> float:
    """Tokens a CPU second against plain decoding, median of the runs, each beside its neighbour."""
    pairs = zip(cell.cpu_rates, plain.cpu_rates, strict=True)
    return statistics.median(one / other for one, other in pairs)


def _same(cell: Cell, plain: Cell) -> float:
    pairs = zip(cell.outputs, plain.outputs, strict=True)
    return sum(one == other for one, other in pairs) / len(plain.outputs)
