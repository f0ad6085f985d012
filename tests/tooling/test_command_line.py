"""The command line: errors are one line and a hint, flags follow the config sections."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from branchline.cli.bench_flags import BENCHES
from branchline.cli.main import build_parser, main
from branchline.cli.options import engine_settings
from branchline.runtime.config.sections import all_settings
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.loading.adapters import adapter_folder

PROGRAM = '''
import branchline as bl

@bl.function
def shout(s, word: str, times: int = 1):
    """Say it."""
    s += word * times
    s += bl.gen("answer", max_tokens=4, temperature=0.0)
    return s["answer"]

@bl.function
def whisper(s):
    s += "psst" + bl.gen("answer", max_tokens=2)
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def flags(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["demo", *words])


def failing(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(words)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return status, captured.err


def test_every_setting_is_a_flag() -> None:
    text = build_parser().parse_args(["demo"])
    assert {f"setting_{name}" for name in all_settings()} <= set(vars(text))


def test_flags_get_the_types_of_their_settings() -> None:
    given = flags("--threads", "2", "--prefix-cache", "off", "--memory-fraction", "0.5")
    assert engine_settings(given) == {
        "threads": 2,
        "prefix_cache": False,
        "memory_fraction": 0.5,
    }
    assert engine_settings(flags("--context-length", "none")) == {"context_length": None}
    assert engine_settings(flags()) == {}


@pytest.mark.parametrize("words", [("--threads", "two"), ("--overlap", "maybe")])
def test_flag_of_the_wrong_type_names_itself(words: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=f"{words[0]}.*{words[1]}"):
        engine_settings(flags(*words))


def test_help_is_quick_and_loads_no_heavy_package() -> None:
    code = (
        "import sys, time; t = time.process_time()\n"
        "from branchline.cli.main import build_parser; build_parser().format_help()\n"
        "print(time.process_time() - t, {'torch', 'rich', 'numpy'} & set(sys.modules))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.3
    assert all("set()" in run.stdout for run in runs)


@pytest.mark.parametrize("words", [["run"], ["demo"], ["serve"], *(["bench", b] for b in BENCHES)])
def test_a_command_says_what_it_does_and_names_its_settings_once_in_its_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    usage, about, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.count("--SETTING X ...") == 1 and "--model" not in usage
    assert about.endswith(".")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("branchline ")


def test_env_is_json_when_asked_and_tells_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRANCHLINE_ADMIN_KEY", "a secret")
    assert main(["env", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    parts = {"versions", "system", "cpu", "kernels", "grammars", "models", "environment"}
    assert parts == set(found)
    assert found["environment"]["BRANCHLINE_ADMIN_KEY"] == "set" and "a secret" not in text
    assert found["grammars"]["json_schema"].startswith("llguidance: ")
    assert found["grammars"]["ebnf"].startswith("xgrammar: ")
    assert found["kernels"]["native"] in ("yes", "no")


def test_unknown_model_is_an_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = failing(["models", "path", "no-such-model"], capsys)
    assert status == 1
    assert "no-such-model" in text
    assert "hint: " in text


def test_model_path_is_printed(default_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "path", "smollm2-135m"]) == 0
    assert capsys.readouterr().out.strip() == str(default_model)
    assert main(["models", "list"]) == 0
    listed = capsys.readouterr().out
    assert str(default_model) in listed
    assert str(adapter_folder("smollm2-135m-sql")) in listed
    head = next(line for line in listed.splitlines() if "draft head smollm2-135m-eagle3" in line)
    columns = {len(line) - len(line.lstrip()) for line in listed.splitlines() if line[0] == " "}
    assert columns == {len(head) - len(head.lstrip())}, "one column"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "no_such_file.py"], "no_such_file.py"),
        (["run", "{program}:missing"], "missing"),
        (["run", "{program}"], "whisper"),
        (["run", str(Path(__file__).with_name("__init__.py"))], "has no program"),
        (["run", "{program}:shout"], "word"),
        (["run", "{program}:shout", "--arg", "word"], "word"),
        (["run", "{program}:shout", "--arg", "word=a", "--arg", "loud=1"], "loud"),
        (["run", "{program}:shout", "--arg", "word=a", "--arg", "times=many"], "times"),
        (["demo", "99"], "99"),
        (["bench", "offline", "--workload", "nothing"], "nothing"),
        (["bench", "programs", "--workload", "nothing"], "nothing"),
        (["run", "{program}:whisper", "--thread", "2", "--modle", "x"], "Did you mean --model?"),
        (["bench", "start", "extra"], "extra"),
        (["bench", "speculative", "--batches", "0"], "1 or more"),
        (["train-eagle", "--out", "x", "--save-every", "0"], "--save-every"),
        (["train-eagle", "--out", "x", "--rate", "0"], "--rate"),
        (["train-eagle", "--out", "x", "--ffn", "0"], "--ffn"),
        (["run", "{program}:whisper", "--endpoint", "http://x", "--threads", "2"], "threads"),
    ],
)
def test_wrong_use_names_what_is_wrong(
    words: list[str], named: str, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(program=program) for word in words]
    status, text = failing(words, capsys)
    assert status == 2
    assert named in text


def test_run_prints_the_result_and_writes_the_trace(
    program: Path, default_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "trace.html"
    words = ["run", f"{program}:shout", "--arg", "word=Hello ", "--arg", "times=2", "--plain"]
    words += ["--model", str(default_model), "--trace", str(page)]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()
    assert "<html" in page.read_text(encoding="utf-8")
