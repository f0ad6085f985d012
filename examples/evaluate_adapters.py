"""Measures the adapters of assets/adapters on held-out items, beside the base model.

    python examples/evaluate_adapters.py --chart adapters.svg

Every question is asked in the same words, greedily; the base model also with worked examples.
"""

import argparse
from contextlib import closing
from pathlib import Path

import branchline as bl
from branchline.examples.adapters.chart import bars
from branchline.examples.adapters.evaluate import BASE_ARMS, Outcome, adapter_arms, measure, table
from branchline.examples.train_adapters import TASKS

JUDGED = {"extract": "text → JSON: fields that are right", "sql": "question → SQL: right rows"}


def main(words: list[str] | None = None) -> dict[str, list[Outcome]]:
    """Print a table for each task; with --chart, draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=sorted(TASKS), action="append", help="default: all")
    parser.add_argument("--items", type=int, default=100, help="held-out items of each task")
    parser.add_argument("--model", default="smollm2-135m", help="name or path of the base model")
    parser.add_argument("--chart", type=Path, help="file of an SVG chart")
    found = parser.parse_args(words)
    names = found.task or sorted(TASKS)
    adapters = {name: f"smollm2-135m-{name}" for name in names}
    with closing(bl.Engine(found.model, adapters=adapters)) as engine:
        outcomes = {name: run(name, engine, found.items) for name in names}
    if found.chart:
        groups = {
            JUDGED[name]: [(one.arm.name, one.parts, "adapter" in one.arm.name) for one in group]
            for name, group in outcomes.items()
        }
        found.chart.write_text(bars(groups, "The base model beside its adapters"), "utf-8")
    return outcomes


def run(name: str, engine: bl.Engine, count: int) -> list[Outcome]:
    """All ways to ask a task's questions, on one engine."""
    task = TASKS[name]
    items = [task.item("held_out", number) for number in range(count)]
    arms = (*BASE_ARMS, *adapter_arms(name))
    outcomes = [measure(task, arm, engine, items) for arm in arms]
    print(f"{name}: {count} held-out items\n{table(outcomes)}", flush=True)
    return outcomes


if __name__ == "__main__":
    main()
