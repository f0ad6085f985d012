"""What is shipped for operators fits the server: flags that exist, metrics that exist, one port."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from branchline.cli.main import build_parser
from branchline.cli.server_settings import choices_of
from branchline.runtime.config.env import VARIABLES
from branchline.runtime.observability.metrics import INSTRUMENTS, PREFIX, READINGS
from branchline.runtime.server.run import OPEN_PATHS

DEPLOY = Path(__file__).resolve().parents[2] / "assets" / "deploy"
ROOT = DEPLOY.parents[1]
METRIC = re.compile(re.escape(PREFIX) + r"(\w+)")


def exposed() -> set[str]:
    names = {item.name for item in (*INSTRUMENTS, *READINGS)}
    return names | {f"{item.name}_bucket" for item in INSTRUMENTS if item.kind == "histogram"}


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())


def test_the_dashboard_asks_for_metrics_that_exist_and_shows_most_of_them() -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    text = json.dumps(board)
    asked = set(METRIC.findall(text))
    assert asked <= exposed()
    shown = {name.removesuffix("_bucket") for name in asked}
    missing = {item.name for item in (*INSTRUMENTS, *READINGS)} - shown
    assert missing <= {
        "cache_hit_rate",
        "e2e_request_latency_seconds",
        "leases",
        "num_aborted_requests_total",
        "request_time_per_output_token_seconds",
        "spec_accepted_tokens_total",
        "spec_drafted_tokens_total",
    }
    boxes = [panel["gridPos"] for panel in board["panels"]]
    for i, a in enumerate(boxes):
        assert a["x"] + a["w"] <= 24
        for b in boxes[i + 1 :]:
            apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


@pytest.mark.parametrize("name", ["cpu.Dockerfile", "cuda.Dockerfile"])
def test_an_image_holds_every_folder_of_the_package(name: str) -> None:
    import tomllib

    text = (DEPLOY / name).read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for folder in project["tool"]["setuptools"]["package-dir"].values():
        assert f"COPY {folder} {folder}" in text
    assert "USER branchline" in text, "nothing runs as root"
    [found] = re.findall(r"\.\[([\w,]+)\]", text)
    extras = set(found.split(","))
    assert extras <= set(project["project"]["optional-dependencies"])
    assert extras >= {"runtime", "grpc", "tracing"}, "every flag of the server can be used"
    assert ("cuda" in extras) == (name == "cuda.Dockerfile")


def test_probes_ask_on_the_port_that_the_image_serves_and_none_ends_a_restart() -> None:
    container = manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    (port,) = container["ports"]
    assert port["containerPort"] == 30000
    asked = {"startupProbe": "/health", "readinessProbe": "/health", "livenessProbe": "/metrics"}
    for probe, path in asked.items():
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert "/metrics" in OPEN_PATHS, "it answers while the server drains"
    assert manifest("service.yaml")["spec"]["ports"][0]["targetPort"] == port["name"]


def test_what_images_and_manifests_tell_the_server_is_what_it_takes() -> None:
    container = manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    said = [container["args"], compose["services"]["branchline"]["command"]]
    for name in ("cpu.Dockerfile", "cuda.Dockerfile"):
        text = (DEPLOY / name).read_text()
        entry, command = (
            json.loads(re.findall(rf"^{word} (\[.*\])$", text, re.MULTILINE)[0])
            for word in ("ENTRYPOINT", "CMD")
        )
        said.append([*entry[1:], *command])
    for words in said:
        words = words if words[0] == "serve" else ["serve", *words]
        choices_of(build_parser().parse_args(words))
    for variable in container["env"]:
        assert variable["name"] in VARIABLES


def test_a_node_of_the_only_pod_can_be_drained() -> None:
    assert manifest("deployment.yaml")["spec"]["replicas"] == 1
    budget = manifest("disruption-budget.yaml")["spec"]
    assert budget["maxUnavailable"] == 1 and "minAvailable" not in budget


def test_all_manifests_speak_of_the_same_pods() -> None:
    deployment = manifest("deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service.yaml")["spec"]["selector"] == labels
    assert manifest("disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == labels


def test_files_that_compose_mounts_are_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source
    build = compose["services"]["branchline"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
