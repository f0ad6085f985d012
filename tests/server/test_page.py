"""The web page without a browser: its files, its policy, and the routes that it asks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.programs import trace_view
from branchline.runtime.programs.graph import RequestGraph
from branchline.runtime.server import page
from branchline.runtime.server.app import create_app
from branchline.runtime.server.keys import Keys
from tests.support.http_server import RunningServer, serve_engine

FOLDER = Path(str(resources.files(page)))
SCRIPTS = sorted(FOLDER.glob("*.js"))
MARKUP = [FOLDER / "index.html", *sorted(FOLDER.glob("*.css")), *sorted(FOLDER.glob("*.svg"))]
PROGRAMS_SCRIPT = (FOLDER / "programs.js").read_text(encoding="utf-8")
ASKED = re.compile(r"""["'`](/(?:v1|generate|get_|health|metrics)[\w/.-]*)""")


def test_every_file_is_served_with_its_type_and_the_policy(server: RunningServer) -> None:
    for path, name in page.paths().items():
        answer = server.get(path)
        kind = page.TYPES[name.rpartition(".")[2]]
        assert (answer.status, answer.raw) == (200, (FOLDER / name).read_bytes())
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert answer.headers["Content-Security-Policy"] == page.POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "/" in page.paths() and "/page/app.js" in page.paths()
    for path in ("/page/", "/page/__init__.py", "/page/index.html", "/page/..%2Fapp.py"):
        assert server.get(path).status == 404


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in page.POLICY.split("; "))
    assert rules.pop("default-src") == "'none'"
    inline = trace_view.inline_hashes()
    assert rules.pop("script-src") == f"'self' {inline['script']}"
    assert rules.pop("style-src") == f"'self' {inline['style']}"
    assert set(rules.values()) <= {"'self'", "'none'"}
    assert {"connect-src", "base-uri", "frame-ancestors", "form-action"} <= set(rules)


def test_the_page_refers_to_its_own_files_alone() -> None:
    for path in [*MARKUP, *SCRIPTS]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w+/|@import|javascript:", text), path.name
        assert "innerHTML" not in text and "outerHTML" not in text, path.name
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|<script(?![^>]* src=)| on\w+=", html)
    for target in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert target in page.paths()
    for script in SCRIPTS:
        for target in re.findall(r'from "\./([^"]*)"', script.read_text(encoding="utf-8")):
            assert (FOLDER / target).is_file()


def test_every_route_that_the_page_asks_for_exists(server: RunningServer) -> None:
    known = {
        route.resource.canonical
        for route in create_app(server.context).router.routes()
        if route.resource is not None
    }
    asked = {found for script in SCRIPTS for found in ASKED.findall(script.read_text("utf-8"))}
    assert asked and asked <= known


def test_every_element_that_a_script_names_exists() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    there = set(re.findall(r'\bid="([^"]*)"', html))
    named = {
        found
        for script in SCRIPTS
        for found in re.findall(r'\$\("([^"]*)"\)', script.read_text("utf-8"))
    }
    assert named and named <= there
    for target in re.findall(r'(?:for|aria-controls|aria-labelledby)="([^"]*)"', html):
        assert target in there


def test_the_files_are_open_and_the_routes_behind_them_are_not(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(("secret",))) as server:
        assert {server.get(path).status for path in page.paths()} == {200}
        assert server.get("/v1/models").status == 401


@pytest.mark.parametrize("path", sorted(FOLDER.glob("example-*.json")), ids=lambda path: path.stem)
def test_the_examples_run_as_they_are(server: RunningServer, path: Path) -> None:
    example = json.loads(path.read_text(encoding="utf-8"))
    graph = RequestGraph.from_json(json.dumps(example["graph"]))
    assert json.loads(graph.to_json()) == example["graph"]
    assert set(graph.args) == set(example["arguments"])
    assert f"/page/{path.name}" in page.paths() and path.name in PROGRAMS_SCRIPT
    for node in example["graph"]["nodes"]:  # a random model does not stop by itself
        if "sampling" in node["op"]:
            node["op"]["sampling"]["max_tokens"] = 12
    body = {"graph": example["graph"], "arguments": example["arguments"]}
    assert server.post("/v1/programs", body).status == 200


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to read the scripts with")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_parse(script: Path) -> None:
    command = ["node", "--check", "--input-type=module"]
    text = script.read_bytes()
    read = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    assert (read.returncode, read.stderr.decode()) == (0, ""), script.name
