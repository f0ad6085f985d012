"""`branchline serve` with adapters: named at the start, loaded while it runs, kept when a process
dies.

Oracle: an engine in this process with the same folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import branchline as bl
from branchline.runtime.config.model_spec import from_hf_config
from tests.launch.test_serve import Served, serving
from tests.support.peft_adapters import write_adapter
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(240)
PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("adapters")
    spec = from_hf_config(json.loads((Path(settings["model"]) / "config.json").read_text()))
    for seed, name in enumerate(("one", "two", "three")):
        write_adapter(found / name, spec, seed=seed)
    (found / "key").write_text("admin-key\n")
    (found / "key").chmod(0o600)
    return found


def texts(settings: dict[str, Any], folder: Path) -> dict[str, str]:
    """What each writes."""
    adapters = {name: str(folder / name) for name in ("one", "two", "three")}
    with_adapters = bl.Engine(**settings, adapters=adapters)
    found = {
        name: with_adapters.generate(PROMPT, adapter=name, **GREEDY).text
        for name in ("", *adapters)
    }
    with_adapters.close()
    return found


def ask(served: Served, model: str) -> str | int:
    body = {"prompt": PROMPT, "model": model, **GREEDY}
    status, response = served.request("POST", "/v1/completions", body)
    answer = json.loads(response.read())
    return str(answer["choices"][0]["text"]) if status == 200 else status


def models(served: Served) -> list[str]:
    _, response = served.request("GET", "/v1/models")
    return [card["id"] for card in json.loads(response.read())["data"]]


def test_adapters_are_served_by_processes_that_may_die(
    settings: dict[str, Any], folder: Path
) -> None:
    expected = texts(settings, folder)
    assert len(set(expected.values())) == 4
    flags = ["--adapter", f"first={folder / 'one'}", "--served-model-name", "tiny"]
    flags += ["--admin-key-file", str(folder / "key"), "--adapter-dirs", str(folder)]
    with serving(settings, *flags) as served:
        url = f"http://{served.host}:{served.port}"
        admin = bl.Endpoint(url, "admin-key")
        assert models(served) == ["tiny", "first"]
        assert ask(served, "first") == expected["one"] and ask(served, "tiny") == expected[""]
        assert ask(served, "second") == 404
        assert admin.load_adapter("second", str(folder / "two")).version == 1
        assert ask(served, "second") == expected["two"]
        assert admin.load_adapter("second", str(folder / "three")).version == 2
        with pytest.raises(bl.AdapterError):
            admin.load_adapter("second", str(folder))
        assert ask(served, "tiny:second") == expected["three"]

        served.child("scheduler_process").kill()
        until(lambda: served.health() == 503)
        until(lambda: served.health() == 200, 120)
        assert models(served) == ["tiny", "first", "second"]
        assert [info.version for info in admin.adapters()] == [1, 2]
        assert ask(served, "first") == expected["one"]
        assert ask(served, "second") == expected["three"]

        @bl.function(**GREEDY)
        def program(s: bl.State) -> Any:
            s += PROMPT
            with s.fork(3) as branches:
                for branch, name in zip(branches, ("", "first", "second"), strict=True):
                    branch += bl.gen("x", adapter=name)
            return s["x"]

        found = program.run(backend=admin).result
        assert found == [expected[name] for name in ("", "one", "three")]
        assert admin.unload_adapter("second", drain=True).version == 2
        assert ask(served, "second") == 404
        admin.close()


def test_one_that_cannot_be_loaded_at_the_start_is_said_there(
    settings: dict[str, Any], folder: Path
) -> None:
    command = [sys.executable, "-m", "branchline", "serve", "--port", "0"]
    for name, value in settings.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    command += ["--adapter", f"bad={folder / 'none'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "serving at" not in done.stdout
    assert str(folder / "none") in done.stderr and "folder" in done.stderr
    assert "Traceback" not in done.stderr
