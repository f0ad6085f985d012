"""Request graphs that the web page offers to run: traced programs with arguments to begin with."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any, Literal, TypedDict

import branchline as bl


class Plant(TypedDict):
    """What `describe` has the model write."""

    name: str
    height_cm: int
    season: Literal["spring", "summer", "autumn", "winter"]


@bl.function(temperature=0.7, seed=7)
def best_of_three(s: bl.State, task: str) -> None:
    """Three drafts from one prompt, which is computed once, then a last word."""
    with s.user():
        s += f"{task} One sentence."
    with s.fork(3) as drafts:
        for draft in drafts:
            with draft.assistant():
                draft += bl.gen("draft", max_tokens=40)
    with s.assistant():
        s += "In a few words: " + bl.gen("short", max_tokens=16, stop=["\n"])


@bl.function(temperature=0.0)
def describe(s: bl.State, plant: str) -> None:
    """A typed value, then a question about it: what the type forces takes no sampling."""
    s += f"A description of the {plant} as JSON:\n"
    s += bl.gen("facts", Plant, max_tokens=80)
    s += f"\nDoes the {plant} grow taller than a person? Answer:"
    s += bl.select("taller", [" yes", " no"])


EXAMPLES: dict[str, tuple[Any, dict[str, str]]] = {
    "views": (import_module("branchline.examples.06_tracing").debate, {"topic": "homework"}),
    "drafts": (best_of_three, {"task": "Describe the sea."}),
    "typed": (describe, {"plant": "sunflower"}),
}


def example(name: str) -> str:
    """The file of one of `EXAMPLES`."""
    program, arguments = EXAMPLES[name]
    about = (program.__doc__ or "").strip()
    graph = json.loads(program.trace().to_json())
    whole = {"name": name, "about": about, "arguments": arguments, "graph": graph}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
