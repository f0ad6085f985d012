"""The size budget finds what is too large, and only that."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "size_budget.py"


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    spec = importlib.util.spec_from_file_location("size_budget", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(budget: ModuleType, source: str) -> list[tuple[str, str]]:
    found = budget.findings_of(Path("x.py"), source)
    return [(item.name, item.message.split(":")[0]) for item in found]


def function(lines: int, head: str = "def f():") -> str:
    return head + "\n" + "    pass\n" * (lines - 1)


def test_function_at_the_limit_passes_and_one_more_line_does_not(budget: ModuleType) -> None:
    assert names(budget, function(80)) == []
    assert names(budget, function(81)) == [("f", "lines of function")]


def test_docstring_is_not_size(budget: ModuleType) -> None:
    documented = 'def f():\n    """A.\n\n    B.\n    """\n' + "    pass\n" * 79
    assert names(budget, documented) == []


def test_method_is_named_by_its_class(budget: ModuleType) -> None:
    body = "".join(f"    {line}\n" for line in function(81).splitlines())
    assert names(budget, f"class C:\n{body}") == [("C.f", "lines of function")]


def test_reason_in_the_file_excuses_one_name_only(budget: ModuleType) -> None:
    source = function(81) + function(81, "def g():")
    assert names(budget, "# size: f: a table\n" + source) == [("g", "lines of function")]
    assert len(names(budget, "# size: f:\n" + source)) == 2


def test_file_and_class_have_budgets(budget: ModuleType) -> None:
    assert names(budget, "x = 1\n" * 501) == [("file", "lines")]
    attributes = "".join(f"    a{i}: int\n" for i in range(21))
    assert names(budget, f"class C:\n{attributes}") == [("C", "constructor fields")]


def test_self_and_keyword_only_arguments_do_not_count(budget: ModuleType) -> None:
    eight = ", ".join(f"a{i}" for i in range(8))
    assert names(budget, f"class C:\n    def f(self, {eight}, *, k): ...\n") == []
    assert names(budget, f"def f(z, {eight}): ...\n") == [("f", "positional arguments")]
