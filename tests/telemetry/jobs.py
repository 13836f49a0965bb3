"""Jobs for the tests of telemetry. Child processes import this module, too."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from taskflow import configure, job
from taskflow.app.app import default_app
from taskflow.telemetry import OpenTelemetry

if default_app().is_in_child:
    configure(telemetry=[OpenTelemetry(TracerProvider())])


@job(name="tests.telemetry.add")
async def add(a: int, b: int) -> int:
    return a + b


@job(name="tests.telemetry.fails", max_attempts=2, retry=lambda attempt, error: 0.0)
async def fails() -> None:
    raise ValueError("it fails")


@job(name="tests.telemetry.where")
async def where() -> str:
    return current_span()


@job(name="tests.telemetry.where_plain")
def where_plain() -> str:
    return current_span()


@job(name="tests.telemetry.where_child", runs_in="process")
def where_child() -> str:
    return current_span()


@job(name="tests.telemetry.fails_in_child", runs_in="process", max_attempts=1)
def fails_in_child() -> None:
    raise ValueError("in the child")


def current_span() -> str:
    """Return the trace and the span in which this is called."""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}-{found.span_id:016x}"
