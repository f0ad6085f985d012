"""Trains an adapter of assets/adapters with PEFT: LoRA on the default model's own weights.

    pip install 'branchline[runtime,train]'
    python examples/train_adapters.py sql --device cuda --to /tmp/sql

What is learned, and the recipe's numbers, are in `examples/adapters/`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from branchline.examples.adapters.extract import Extraction
from branchline.examples.adapters.sql import Sql
from branchline.examples.adapters.task import Task
from branchline.examples.adapters.train import Learned, Recipe, train
from branchline.runtime.loading.catalog import resolve_model

TASKS: dict[str, Task] = {"extract": Extraction(), "sql": Sql()}


def main(words: list[str] | None = None) -> Learned:
    """Train one adapter and write it as a PEFT folder."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--to", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--model", default="smollm2-135m", help="name or path of the base model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name in ("rank", "items", "epochs", "batch", "measured", "seed", "rate"):
        value = getattr(recipe, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    found = vars(parser.parse_args(words))
    changes = {name: found[name] for name in vars(recipe) if name in found}
    return train(
        TASKS[found["task"]],
        resolve_model(found["model"]),
        found["to"],
        replace(recipe, **changes),
        device=found["device"],
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
