"""Traces and metrics through OpenTelemetry's API, named by its conventions for messaging."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, get_current_span, set_span_in_context

from taskflow.app.context import JobContext
from taskflow.app.middleware import EnqueueCall, RunNext, Telemetry
from taskflow.model.verdict import Discarded, Failed, Retried, Verdict
from taskflow.worker.measuring import name_of

MAX_WAIT_IN_TRACE: Final = 60.0
"""If a job waits for less than this many seconds, its first run is part of the sender's trace. Other runs begin traces, linked to it."""

MAX_HEADER: Final = 1_024
"""The maximum length of a context header. Longer headers, such as large baggage, aren't sent with the job."""

_SENDING: Final = {"messaging.system": "taskflow", "messaging.operation.name": "send", "messaging.operation.type": "send"}
_RUNNING: Final = {"messaging.system": "taskflow", "messaging.operation.name": "process", "messaging.operation.type": "process"}
_FAILED: Final = (Failed, Retried, Discarded)
_NOTHING: Final = Context()


class OpenTelemetry(Telemetry):
    """Creates a span for each call or batch that is sent and one for each run, and passes the context on in the job's headers.

    The first run of a job that waited for less than a minute is part of the sender's trace. Later runs, and runs after a longer wait,
    begin new traces with links to the sender's. Spans in child processes (``runs_in="process"``) belong to the run; set up the SDK there in
    ``configure(child_initializer=...)``. The worker's own calls to its broker create no spans.

    Without an SDK, only the context is passed on.

    `tracer_provider`, `meter_provider`  the providers to use (default: the global ones)
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None) -> None:
        self._tracer = trace.get_tracer("taskflow", tracer_provider=tracer_provider)
        meter = metrics.get_meter("taskflow", meter_provider=meter_provider)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Jobs sent.")
        self._duration = meter.create_histogram("messaging.process.duration", "s", "How long runs took.")

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        first, sent = calls[0], Counter([call.queue for call in calls])
        attributes: dict[str, Any] = dict(_SENDING)
        if len(sent) == 1:
            attributes["messaging.destination.name"] = first.queue
        if len(calls) == 1:
            attributes |= {"messaging.message.id": first.job_id, "taskflow.job": first.job}
        else:
            attributes["messaging.batch.message_count"] = len(calls)
        span = self._tracer.start_span(f"send {first.queue}" if len(sent) == 1 else "send", kind=SpanKind.PRODUCER, attributes=attributes)
        carrier = dict[str, str]()
        propagate.inject(carrier, set_span_in_context(span))
        carrier = {name: value for name, value in carrier.items() if len(value) <= MAX_HEADER}
        for call in calls:
            call.headers.update(carrier)
        span.end()
        for queue, n in sent.items():
            self._sent.add(n, {**_SENDING, "messaging.destination.name": queue})

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        sender, sent = _sender(tuple(context.headers.items()))
        is_part = sent.is_valid and context.attempt == 1 and context.waited < MAX_WAIT_IN_TRACE
        queue = context.queue
        attributes: dict[str, Any] = {**_RUNNING, "messaging.destination.name": queue, "taskflow.job": context.job_name}
        span = self._tracer.start_span(
            f"process {queue}",
            context=sender if is_part else _NOTHING,
            kind=SpanKind.CONSUMER,
            links=() if is_part or not sent.is_valid else (Link(sent),),
            attributes={**attributes, "messaging.message.id": context.job_id, "taskflow.attempt": context.attempt},
        )
        current = set_span_in_context(span, sender)
        token = attach(current)
        began = time.perf_counter()
        try:
            if context.runs_in_child:
                carrier = dict[str, str]()
                propagate.inject(carrier, current)
                context.pass_on(carrier)
            verdict = await call_next(context)
            attributes["taskflow.outcome"] = outcome = name_of(type(verdict))
            span.set_attribute("taskflow.outcome", outcome)
            if isinstance(verdict, _FAILED):
                attributes["error.type"] = _describe_failure(span, verdict)
            return verdict
        finally:
            self._duration.record(time.perf_counter() - began, attributes)
            detach(token)
            span.end()

    @contextmanager
    def in_child(self, context: JobContext) -> Iterator[None]:
        token = attach(_sender(tuple(context.headers.items()))[0])
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        token = attach(set_value("suppress_instrumentation", True))  # read by the instrumentations of redis, asyncpg, sqlite3 and so on
        try:
            yield
        finally:
            detach(token)


@lru_cache(maxsize=256)
def _sender(headers: tuple[tuple[str, str], ...]) -> tuple[Context, SpanContext]:
    """Return the sender's context, without the worker's (see `quiet`), and the sender's span context. Jobs sent in one batch share both."""
    sender = propagate.extract(dict(headers), context=_NOTHING)
    return sender, get_current_span(sender).get_span_context()


def _describe_failure(span: trace.Span, verdict: Failed | Retried | Discarded) -> str:
    """Record a failed run in its span, and return the error's type."""
    if isinstance(verdict, Discarded):
        kind, message = "Discarded", verdict.reason
    else:
        kind, message = verdict.error.type, verdict.error.message
        if verdict.exception is not None:
            span.record_exception(verdict.exception)
        else:  # the error was raised in a child process
            details = {"exception.type": kind, "exception.message": message, "exception.stacktrace": verdict.error.traceback}
            span.add_event("exception", details)
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, message))
    return kind
