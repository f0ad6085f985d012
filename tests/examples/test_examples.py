"""Every numbered example runs on the default model, alone and as part of the tour."""

from __future__ import annotations

import datetime
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import branchline as bl
from branchline.cli.demo import example_names
from branchline.cli.main import main
from branchline.cli.show import program_text

ROOT = Path(__file__).resolve().parents[2]
NAMES = example_names([])


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    engine = bl.Engine(model=str(default_model))
    yield engine
    engine.close()


def test_examples_are_numbered_from_one() -> None:
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_example_is_short_and_says_what_it_shows(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") < 60
    assert text.startswith(f'"""{name[:2]} ')
    assert 'if __name__ == "__main__":' in text


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name: str, engine: bl.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"branchline.examples.{name}")
    with engine:
        states: list[bl.State] = module.main()
    assert states
    assert capsys.readouterr().out.strip()
    for state in states:
        assert state.usage.output_tokens + state.usage.prompt_tokens > 0
        shown = program_text(state.graph).plain
        for node in state.graph.nodes:
            if node.kind == "generate":
                assert node.values[0].split("\n")[0] in shown


def test_branches_of_the_fork_example_share_their_prefix(engine: bl.Engine) -> None:
    module = importlib.import_module("branchline.examples.03_fork_join")
    engine.flush_cache()
    with engine:
        (state,) = module.main()
    branches = [node for node in state.graph.nodes if node.name == "tip"]
    assert len(branches) == 3
    assert sum(node.stats.cached_tokens > 10 for node in branches) >= 2


def test_queries_of_the_grammar_run_in_sqlite(engine: bl.Engine) -> None:
    module = importlib.import_module("branchline.examples.10_sql_grammar")
    with engine:
        states = module.main()
    for state in states:
        assert bl.match(module.SQL, state["query"]).status == "full"
        assert isinstance(state.result, list)  # SQLite has run it
    assert states[0]["query"] != states[1]["query"]


def test_every_part_of_the_form_has_its_type(engine: bl.Engine) -> None:
    module = importlib.import_module("branchline.examples.11_form")
    with engine:
        (state,) = module.main()
    assert bl.match(module.FORM, state["form"]).status == "full"
    assert state["arrival"] is None or isinstance(state["arrival"], datetime.date)
    assert len(state["item"]) == len(state["count"]) <= 3
    assert state.result == sum(map(int, state["count"]))
    assert state["name"] in state.text() and state["name"].istitle()


def test_an_adapter_reads_what_the_model_itself_gets_wrong(engine: bl.Engine) -> None:
    module = importlib.import_module("branchline.examples.12_adapters")
    with engine:
        orders, *asked = module.main()
    assert [meta.adapter for meta in orders.meta("order")] == ["", "extract"]
    base, adapted = orders.result
    due = datetime.date(2026, 6, 3)
    assert adapted == module.Order("Ada Lovelace", "brass lamps", 12, 18.5, "EUR", due, "high")
    assert base != adapted
    assert [state.meta("query").adapter for state in asked] == ["sql", "sql"]
    cities, counts = (state.result for state in asked)
    assert cities == [("Porto",), ("Lisbon",)]
    assert dict(counts) == {"Portugal": 2, "Czechia": 1}


def program_title(name: str) -> str:
    module = importlib.import_module(f"branchline.examples.{name}")
    return (module.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def test_first_example_runs_as_a_script(default_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "01_hello.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_tour_shows_the_examples_asked_for(
    default_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them unless some are named (`NAMES`); each runs in a test of its own, too."""
    some = [NAMES[0], NAMES[2], NAMES[10]]
    assert main(["demo", *some]) == 0
    shown = capsys.readouterr().out
    titles = [program_title(name) for name in NAMES]
    assert [title in shown for title in titles] == [name in some for name in NAMES]
    for word in ("cached", "forced", "generated", "ms"):
        assert word in shown
