"""The files of the production pages fit each other and the worker: ports, probes, and time enough to stop."""

from __future__ import annotations

import configparser
import itertools
import json
from typing import Any, Final

import pytest
import yaml

from taskflow.cli.parser import a_parser
from tests.docs.pages import ROOT, blocks

HOW_TO: Final = ROOT / "docs/how-to"
LEAST: Final = a_parser().parse_args(["worker", "app.tasks"]).grace + 10
"""Seconds that a worker may take to stop: its grace period, and what follows on it."""


def documents(page: str) -> list[dict[str, Any]]:
    return list(itertools.chain.from_iterable(yaml.safe_load_all(block.text) for block in blocks(HOW_TO / page, "yaml")))


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    found = {
        f"{document['kind']} {document['metadata']['name']}": document
        for document in documents("run-on-kubernetes.md")
        if "kind" in document
    }
    assert found.keys() >= {"Deployment app-worker", "HorizontalPodAutoscaler app-worker", "Job app-migrate"}
    return found


def test_kubernetes_leaves_a_worker_time_to_stop(manifests: dict[str, dict[str, Any]]) -> None:
    assert manifests["Deployment app-worker"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= LEAST


def test_the_probes_ask_the_health_port_of_the_worker(manifests: dict[str, dict[str, Any]]) -> None:
    [container] = manifests["Deployment app-worker"]["spec"]["template"]["spec"]["containers"]
    worker = a_parser().parse_args(container["args"][1:])
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"health": worker.health_port}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}
    assert probes == {"liveness": {"path": "/live", "port": "health"}, "readiness": {"path": "/ready", "port": "health"}}


def test_each_autoscaler_scales_the_deployment(manifests: dict[str, dict[str, Any]]) -> None:
    scalers = [each for each in manifests.values() if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert len(scalers) == 4
    for scaler in scalers:
        target = {"kind": "Deployment", **scaler["spec"]["scaleTargetRef"]}
        assert f"{target['kind']} {target['name']}" in manifests


def test_a_scaler_asks_the_health_port_of_the_workers(manifests: dict[str, dict[str, Any]]) -> None:
    service, template = manifests["Service app-worker"], manifests["Deployment app-worker"]["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    [port], [container] = service["spec"]["ports"], template["spec"]["containers"]
    assert port["targetPort"] in [each["name"] for each in container["ports"]]
    triggers = manifests["ScaledObject app-worker"]["spec"]["triggers"]
    assert {trigger["metadata"]["url"] for trigger in triggers} == {f"http://app-worker.default.svc.cluster.local:{port['port']}/scale"}
    [served] = [json.loads(block.text) for block in blocks(HOW_TO / "run-on-kubernetes.md", "json")]
    assert [trigger["metadata"]["valueLocation"] for trigger in triggers] == list(served)


def test_an_external_metric_is_one_that_the_adapter_makes(manifests: dict[str, dict[str, Any]]) -> None:
    [rules] = [document["rules"]["external"] for document in documents("run-on-kubernetes.md") if "rules" in document]
    [metric] = manifests["HorizontalPodAutoscaler app-worker-by-backlog"]["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] in [rule["name"]["as"] for rule in rules]


def test_compose_leaves_a_worker_time_to_stop_and_names_what_it_declares() -> None:
    [compose] = documents("run-in-docker.md")
    services = compose["services"]
    assert float(services["worker"]["stop_grace_period"].removesuffix("s")) >= LEAST
    assert {name for service in services.values() for name in service.get("depends_on", ())} <= services.keys()
    mounted = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert mounted == compose["volumes"].keys()


def test_systemd_leaves_a_worker_time_to_stop() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read_string(blocks(HOW_TO / "run-under-systemd.md", "ini")[0].text)
    assert float(unit["Service"]["TimeoutStopSec"]) >= LEAST
