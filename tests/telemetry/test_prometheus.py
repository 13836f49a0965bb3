"""Metrics in Prometheus' format."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from taskflow import Worker, configure
from taskflow.broker.admin import LimitInfo, QueueInfo
from taskflow.broker.memory import MemoryBroker
from taskflow.model.measures import MAX_BIN, Measure, pack_measures
from taskflow.model.record import Status
from taskflow.telemetry import Prometheus
from taskflow.telemetry.prometheus import MAX_LIMITS, page_of, store_page
from taskflow.worker.measuring import WorkerFacts
from tests.telemetry.jobs import add, fails


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples}


def value(page: bytes, name: str, **labels: str) -> float:
    return samples(page)[name, tuple(sorted(labels.items()))]


def facts(**given: Any) -> WorkerFacts:
    measure = Measure(
        runs={"succeeded": 2, "failed": 1}, waits={0: 1, 10: 1, 11: 1}, times={12: 2, MAX_BIN: 1}, waited=3_000, ran=5_000_000
    )
    return WorkerFacts(**{"measures": pack_measures({("mail\n", 'a "job"'): measure}), "busy": 1, "free": 9, **given})


def test_the_page_of_several_processes_adds_them_up() -> None:
    of = {"queue": "mail\n", "job": 'a "job"'}
    page = page_of([facts(broker_errors={"claiming": 1}), facts(leases_lost=2, loop_lag=1.5).ended()])
    assert value(page, "taskflow_runs_total", outcome="succeeded", **of) == 4
    assert value(page, "taskflow_runs_total", outcome="failed", **of) == 2
    assert value(page, "taskflow_wait_seconds_bucket", le="0.001024", **of) == 4
    assert value(page, "taskflow_wait_seconds_bucket", le="0.004096", **of) == 6
    assert value(page, "taskflow_run_seconds_bucket", le="68719.476736", **of) == 4
    assert value(page, "taskflow_run_seconds_bucket", le="+Inf", **of) == value(page, "taskflow_run_seconds_count", **of) == 6
    assert value(page, "taskflow_run_seconds_sum", **of) == 10
    assert value(page, "taskflow_slots", state="busy") == 1
    assert value(page, "taskflow_slots", state="free") == 9
    assert value(page, "taskflow_broker_errors_total", operation="claiming") == 1
    assert value(page, "taskflow_leases_lost_total") == 2
    assert value(page, "taskflow_loop_lag_seconds") == 0


async def test_a_registry_of_the_application_has_them_too(memory_broker: MemoryBroker) -> None:
    """Each worker of the process joins the same metrics."""
    registry = CollectorRegistry()
    sold = Counter("sold", "Things sold.", registry=registry)
    sold.inc()
    prometheus, second = Prometheus(registry), Prometheus(registry)  # they count in the same metrics
    for each in (prometheus, second):
        configure(telemetry=[each])
        await add.delay(1, 2)
        await fails.delay()
        async with Worker() as worker:
            await worker.drained()
    page = generate_latest(registry)
    assert page == prometheus.page()[1]
    assert value(page, "taskflow_runs_total", queue="default", job=add.name, outcome="succeeded") == 2
    assert value(page, "taskflow_runs_total", queue="default", job=fails.name, outcome="retried") == 2
    assert value(page, "taskflow_runs_total", queue="default", job=fails.name, outcome="failed") == 2
    assert value(page, "sold_total") == 1
    assert [value(page, "taskflow_slots", state=state) for state in ("busy", "free")] == [0, 0]  # both have ended


def a_store_page() -> bytes:
    counts = dict.fromkeys(Status, 0) | {Status.READY: 3, Status.RUNNING: 2}
    queues = [
        QueueInfo(name="mail", is_paused=True, counts=counts, oldest_ready_for=12.5),
        QueueInfo(name="other", is_paused=False, counts=dict.fromkeys(Status, 0)),
    ]
    return store_page(queues, {"mail": {"claim": 7, "dropped over the cap": 1}}, 4, [a_limit("acme", 3, 9), a_limit("umbrella", 1, 0)])


def a_limit(key: str, taken: int, waiting: int, limit: str = "charge", per: float | None = None) -> LimitInfo:
    return LimitInfo(limit=limit, key=key, n=3, is_set=False, running=taken, waiting=waiting, per=per, burst=1, opens_in=0.0)


def test_limits_are_added_up_over_their_keys() -> None:
    page = a_store_page()
    assert [value(page, "taskflow_limit_jobs", limit="charge", state=state) for state in ("holding", "waiting")] == [4, 9]
    assert value(page, "taskflow_limit_full_keys", limit="charge") == 1
    assert b"acme" not in page
    many = [a_limit("", 1, 0, limit=f"limit{number}") for number in range(MAX_LIMITS + 5)] + [a_limit("", 0, 0, "rated", 60.0)]
    page = store_page([], {}, 0, many)
    assert value(page, "taskflow_limit_jobs", limit="_other", state="holding") == 5
    assert b"rated" not in page


def test_the_page_of_a_store_has_a_sample_for_each_queue_and_status() -> None:
    page = a_store_page()
    for queue in ("mail", "other"):
        assert {status for (name, labels) in samples(page) if name == "taskflow_queue_jobs" and ("queue", queue) in labels
                for label, status in labels if label == "status"} == {status.value.lower() for status in Status}  # fmt: skip
    assert value(page, "taskflow_queue_jobs", queue="mail", status="ready") == 3
    assert value(page, "taskflow_queue_oldest_ready_seconds", queue="mail") == 12.5
    assert value(page, "taskflow_queue_oldest_ready_seconds", queue="other") == 0
    assert value(page, "taskflow_queue_paused", queue="mail") == 1
    assert value(page, "taskflow_jobs_total", queue="mail", event="claim") == 7
    assert value(page, "taskflow_jobs_total", queue="mail", event="dropped_over_the_cap") == 1
    assert value(page, "taskflow_workers") == 4


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install promtool); the parser above reads the same pages"
)
def test_promtool_finds_nothing_to_say() -> None:
    for page in (page_of([facts()]), a_store_page()):
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
