"""A request, the job that it sends, and the job's work in a worker's child process, in one trace."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskflow import configure, send
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.telemetry import OpenTelemetry

TASKS = """
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from taskflow import configure, job
from taskflow.telemetry import OpenTelemetry

provider = TracerProvider()
exporter = ConsoleSpanExporter(out=open("spans", "a"), formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
configure(telemetry=[OpenTelemetry()])


@job(name="charge", runs_in="process", max_attempts=2, retry=lambda attempt, error: 0.0)
def charge() -> None:
    with trace.get_tracer("tests").start_as_current_span("inside"):
        if not Path("tried").exists():
            Path("tried").touch()
            raise ConnectionError("once")
"""


async def test_a_request_and_its_job_are_one_trace_and_a_retry_links_to_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = FastAPI()

    @app.post("/orders")
    async def order() -> str:
        with provider.get_tracer("tests").start_as_current_span("POST /orders"):
            return (await send("charge")).id

    broker = connect(url)
    with default_app().using(broker):
        configure(telemetry=[OpenTelemetry(provider)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop") as client:
            assert (await client.post("/orders")).status_code == 200
    await broker.close()
    (tmp_path / "tasks.py").write_text(TASKS)
    command = [sys.executable, "-m", "taskflow", "worker", "tasks", "--drain", "--broker", url]
    worker = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert await asyncio.wait_for(worker.wait(), 120) == 0

    sent, request = (span.get_span_context() for span in exporter.get_finished_spans())
    assert sent is not None
    assert request is not None
    spans: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    first, second = [span for span in spans if span["name"] == "process default"]
    inside = [span for span in spans if span["name"] == "inside"]
    assert int(first["context"]["trace_id"], 16) == sent.trace_id == request.trace_id
    assert int(first["parent_id"], 16) == sent.span_id
    assert [span["parent_id"] for span in inside] == [first["context"]["span_id"], second["context"]["span_id"]]
    assert [span["context"]["trace_id"] for span in inside] == [first["context"]["trace_id"], second["context"]["trace_id"]]
    assert (first["attributes"]["taskflow.outcome"], second["attributes"]["taskflow.outcome"]) == ("retried", "succeeded")
    assert second["parent_id"] is None
    assert [int(link["context"]["span_id"], 16) for link in second["links"]] == [sent.span_id]
