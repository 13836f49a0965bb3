"""The dashboard, the alert rules and the scalers query existing metrics, with labels and values that they can have."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from taskflow.broker.admin import LimitInfo, QueueInfo
from taskflow.model import verdict as verdicts
from taskflow.model.measures import Measure, pack_measures
from taskflow.model.record import Status
from taskflow.telemetry.prometheus import page_of, store_page
from taskflow.worker.measuring import WorkerFacts, name_of
from tests.docs.pages import ROOT, blocks

MONITORING: Final = ROOT / "docs/monitoring"
RULES: Final = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
BOARD: Final = json.loads((MONITORING / "grafana.json").read_text())
PANELS: Final = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

FREE: Final = {"queue", "job", "limit", "event", "operation", "le", "instance", "file"}
"""Labels whose values depend on the application, the store or Prometheus."""

FOREIGN: Final = {"node_textfile_mtime_seconds": {"file"}}
"""The node exporter's metrics."""


def scaler_queries() -> Iterator[tuple[str, str]]:
    """Yield the queries of the scalers on the page about Kubernetes."""
    for block in blocks(ROOT / "docs/how-to/run-on-kubernetes.md", "yaml"):
        for document in yaml.safe_load_all(block.text):
            for trigger in document.get("spec", {}).get("triggers", ()):
                if trigger["type"] == "prometheus":
                    yield block.place, trigger["metadata"]["query"]
            for rule in document.get("rules", {}).get("external", ()):
                yield block.place, rule["seriesQuery"]
                yield block.place, rule["metricsQuery"]


QUERIES: Final = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((variable["name"], variable["query"]) for variable in BOARD["templating"]["list"] if variable["type"] == "query"),
    *scaler_queries(),
]


def parsed(query: str) -> promql_parser.Expr:
    """Parse a query of Prometheus, or of a Grafana variable."""
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", query):
        query = f"count by ({found[2]}) ({found[1]})"
    return promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$queue", ".*"))


def nodes(expression: promql_parser.Expr) -> list[Any]:
    found = list[Any]()
    promql_parser.walk(expression, found.append)
    return found


def selectors(expression: promql_parser.Expr) -> list[Any]:
    within = [node.vector_selector for node in nodes(expression) if isinstance(node, promql_parser.MatrixSelector)]
    alone = [node for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]
    return list({str(selector): selector for selector in [*within, *alone]}.values())


def outcomes() -> set[str]:
    """Return the name of each verdict that is counted. A completion counts as the verdict that took effect."""
    kinds = [kind for kind in vars(verdicts).values() if isinstance(kind, type) and issubclass(kind, verdicts.Verdict)]
    return {name_of(kind) for kind in kinds if not kind.__name__.startswith("_") and kind not in (verdicts.Verdict, verdicts.Completed)}


@pytest.fixture(scope="module")
def metrics() -> dict[str, dict[str, set[str]]]:
    """Return the label values of each metric that workers and the store have."""
    measure = Measure(runs=dict.fromkeys(outcomes(), 1), waits={1: 1}, times={1: 1})
    facts = WorkerFacts(measures=pack_measures({("default", "mail"): measure}), broker_errors={"claiming": 1})
    queue = QueueInfo(name="default", is_paused=False, counts=dict.fromkeys(Status, 0))
    limit = LimitInfo(limit="charge", key="", n=1, is_set=False, running=1, waiting=1, per=None, burst=1, opens_in=0.0)
    found = defaultdict[str, dict[str, set[str]]](dict)
    for page in (page_of([facts]), store_page([queue], {"default": {"claim": 1}}, 1, [limit])):
        for sample in itertools.chain.from_iterable(family.samples for family in text_string_to_metric_families(page.decode())):
            labels = found[sample.name]
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return dict(found)


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_names_existing_metrics_and_labels(title: str, query: str, metrics: dict[str, dict[str, set[str]]]) -> None:
    expression = parsed(query)
    known = set[str]()
    for selector in selectors(expression):
        assert selector.name in metrics.keys() | FOREIGN.keys()
        labels = FOREIGN.get(selector.name) or metrics[selector.name].keys()
        known |= set(labels)
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, matcher
            if matcher.name not in FREE:
                assert set(matcher.value.split("|")) <= metrics[selector.name][matcher.name], matcher
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known | {"instance"}
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            assert set(node.modifier.matching.labels) <= known


@pytest.mark.parametrize(
    "query", ["taskflow_gone", 'taskflow_slots{queue="a"}', 'taskflow_slots{state="x"}', "sum by (job) (taskflow_slots)"]
)
def test_a_wrong_query_is_found(query: str, metrics: dict[str, dict[str, set[str]]]) -> None:
    with pytest.raises(AssertionError):
        test_a_query_names_existing_metrics_and_labels("", query, metrics)


def test_legends_and_messages_name_labels_that_the_query_keeps() -> None:
    legends = [(target["legendFormat"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    messages = [(text, rule["expr"]) for rule in RULES for text in rule["annotations"].values()]
    for text, query in [*legends, *messages]:
        for label in re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", text):
            assert label in query or label == "instance", (text, query)


def test_no_scaler_asks_for_ready_jobs_alone() -> None:
    """Otherwise it would stop the workers that run the last jobs."""
    found = [query for _, query in scaler_queries() if "taskflow_queue_jobs" in query]
    assert found
    assert [query for query in found if 'status=~"ready|running"' not in query] == []


def test_the_dashboard_shows_every_metric(metrics: dict[str, dict[str, set[str]]]) -> None:
    shown = {selector.name for panel in PANELS for target in panel["targets"] for selector in selectors(parsed(target["expr"]))}
    unshown = {name for name in metrics if not name.endswith(("_created", "_count", "_sum"))} - shown
    assert unshown == set()


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    taken = set[tuple[int, int]]()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert cells.isdisjoint(taken), panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert [panel["title"] for panel in PANELS if not panel["description"] or panel["datasource"]["uid"] != "${datasource}"] == []


def test_the_reference_lists_every_metric_with_its_labels(metrics: dict[str, dict[str, set[str]]]) -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(taskflow_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    shown = {
        name + ("_bucket" if kind == "histogram" else ""): set(re.findall(r"`(\w+)`", labels)) - {"busy", "free", "holding", "waiting"}
        for name, kind, labels in rows
    }
    real = {name: labels.keys() - {"le"} for name, labels in metrics.items() if not name.endswith(("_created", "_count", "_sum"))}
    assert shown == real
    [listed] = re.findall(r"`outcome` is (.*) \|$", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == outcomes()


@pytest.mark.parametrize("page", ["monitor-and-triage.md", "troubleshoot.md"])
def test_a_page_names_metrics_that_exist(page: str, metrics: dict[str, dict[str, set[str]]]) -> None:
    named = re.findall(r"`(taskflow_\w+)(?:\{[^}`]*\})?`", (ROOT / "docs/how-to" / page).read_text())
    assert named
    assert set(named) <= {name.removesuffix("_bucket") for name in metrics}


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (apt-get install promtool); promql_parser above reads the same queries",
)
def test_promtool_accepts_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(MONITORING / "alerts.yml")], check=True)
