"""What is installed is what is in the folders, and the client half needs no torch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.loading.adapters import list_adapters

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_ONLY = ("torch", "transformers", "tokenizers", "numpy", "gguf", "llguidance", "safetensors")
BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def folders(mapping: dict[str, str]) -> set[str]:
    """Import names of all folders with an `__init__.py` below the mapped ones."""
    found = set()
    for name, folder in mapping.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *parts)))
    return found


def tracked() -> set[str]:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listing.stdout.splitlines())


def run_blocked(
    program: str, missing: tuple[str, ...] = RUNTIME_ONLY
) -> subprocess.CompletedProcess[str]:
    code = f"MISSING = {missing!r}\n{BLOCKED}{program}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_packages_are_exactly_the_folders_with_an_init(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    assert set(setuptools["packages"]) == folders(setuptools["package-dir"])


def test_every_data_file_of_a_package_is_listed(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    data = setuptools["package-data"]
    for name in setuptools["packages"]:
        root, folder = max(
            (item for item in setuptools["package-dir"].items() if name.startswith(item[0])),
            key=lambda item: len(item[0]),
        )
        path = ROOT / folder / name.removeprefix(root).lstrip(".").replace(".", "/")
        for file in path.iterdir():
            relative = str(file.relative_to(ROOT))
            if file.is_file() and file.suffix != ".py" and relative in tracked():
                assert any(file.match(glob) for glob in data.get(name, ())), relative


def test_a_wheel_holds_every_package(project: dict[str, Any], tmp_path: Path) -> None:
    import zipfile

    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), str(_copy(tmp_path / "source"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inits = {name.removesuffix("/__init__.py") for name in names if name.endswith("__init__.py")}
    assert inits == {name.replace(".", "/") for name in project["tool"]["setuptools"]["packages"]}
    assert "branchline/py.typed" in names
    for entry in list_adapters():
        files = {name for name in names if name.startswith(f"branchline/assets/{entry.folder}/")}
        shipped = {path.name for path in (ROOT / "assets" / entry.folder).iterdir()}
        assert {Path(name).name for name in files} == shipped
    assert not any(name.startswith("tests") for name in names)


def _copy(target: Path) -> Path:
    """The source without build leftovers, since a build writes beside what it reads."""
    import shutil

    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    for folder in ("assets", "branchline", "lang", "runtime", "kernels", "examples"):
        shutil.copytree(
            ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return target


@pytest.mark.parametrize(
    "module",
    [
        "branchline",
        "branchline.lang",
        "branchline.cli.main",
        "branchline.runtime.errors",
        "branchline.runtime.core.messages",
        "branchline.runtime.core.outputs",
        "branchline.runtime.core.protocols",
        "branchline.runtime.core.sampling_params",
        "branchline.runtime.programs.graph",
        "branchline.runtime.programs.protocol",
    ],
)
def test_client_half_imports_without_the_runtime_packages(module: str) -> None:
    done = run_blocked(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_a_program_runs_on_mock_without_the_runtime_packages() -> None:
    program = """
import branchline as bl

@bl.function
def hello(s):
    s += bl.user("Hi") + bl.assistant(bl.gen("answer"))
    return s["answer"]

print(hello.run(backend=bl.Mock("hello")).result)
"""
    done = run_blocked(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n"


def test_engine_without_torch_says_what_to_install() -> None:
    done = run_blocked("import branchline as bl\nbl.Engine()")
    assert done.returncode == 1
    assert "branchline[runtime]" in done.stderr.splitlines()[-1], done.stderr


def test_grpc_without_its_packages_is_refused_before_any_model_is_looked_for() -> None:
    words = ["serve", "--port", "0", "--grpc-port", "0", "--model", "no-such-model"]
    program = f"from branchline.cli.main import main\nsys.exit(main({words!r}))"
    done = run_blocked(program, ("grpc",))
    assert done.returncode == 2
    assert "branchline[grpc]" in done.stderr and "loading" not in done.stdout


def test_changelog_begins_with_the_version(project: dict[str, Any]) -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["project"]["version"]


def test_public_names_are_sorted_and_there() -> None:
    import branchline

    names = list(branchline.__all__)
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert not [name for name in names if not hasattr(branchline, name)]


DOCUMENTED = """
Engine Mock State TextDelta VariableReady Done RequestGraph
function gen select system user assistant tool fork regex choices set_default_backend
system_begin system_end user_begin user_end assistant_begin assistant_end
gen_int gen_string flush_cache
BranchlineError ProgramError BackendError ConstraintError UnsupportedConstraint TruncatedError
UnsupportedFeature DeadlineExceeded Cancelled
token_length_normalized greedy_token_selection unconditional_likelihood_normalized
"""


def test_public_names_hold_the_documented_language() -> None:
    import branchline

    assert not sorted(set(DOCUMENTED.split()) - set(branchline.__all__))
