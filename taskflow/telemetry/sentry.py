"""Reports job errors to Sentry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sentry_sdk
from sentry_sdk.consts import OP
from sentry_sdk.integrations.logging import ignore_logger

from taskflow.app.context import JobContext
from taskflow.app.middleware import EnqueueCall, RunNext, Telemetry
from taskflow.model.verdict import Failed, Retried, RunError, Verdict

_HEADERS = ("sentry-trace", "baggage")


class Sentry(Telemetry):
    """Reports job errors, and each run as a transaction in the sender's trace, if `sentry_sdk.init` has been called.

    Each run has a scope with the tags ``taskflow.job``, ``taskflow.queue`` and ``taskflow.job_id``. Arguments are not sent.
    The worker's log lines create no events, because they would repeat these errors.

    `retried`  True to also report errors after which the job is retried (default False)
    """

    def __init__(self, *, retried: bool = False) -> None:
        self._retried = retried
        ignore_logger("taskflow.worker")  # it logs the same errors

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        sent = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
        carrier = {name: value for name, value in sent.items() if value and len(value) <= 1_024}
        for call in calls:
            call.headers.update(carrier)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.set_tags({"taskflow.job": context.job_name, "taskflow.queue": context.queue, "taskflow.job_id": context.job_id})
            scope.set_context("taskflow", {"attempt": context.attempt, "max_attempts": context.max_attempts})
            sent = {name: value for name, value in context.headers.items() if name in _HEADERS}
            transaction = sentry_sdk.continue_trace(sent, op=OP.QUEUE_PROCESS, name=context.job_name, source="task")
            with sentry_sdk.start_transaction(transaction) as span:
                verdict = await call_next(context)
                is_error = isinstance(verdict, Failed | Retried)
                span.set_status("internal_error" if is_error else "ok")
            if isinstance(verdict, Failed) or (isinstance(verdict, Retried) and self._retried):
                if verdict.exception is not None:
                    sentry_sdk.capture_exception(verdict.exception)
                else:
                    sentry_sdk.capture_event(_event_of(verdict.error))
            return verdict


def _event_of(error: RunError) -> Any:
    """Return the event for an error whose exception is not in this process, because a child process raised it."""
    value = {"type": error.type.rpartition(".")[2], "module": error.type.rpartition(".")[0], "value": error.message}
    return {"level": "error", "exception": {"values": [value]}, "extra": {"traceback": error.traceback}}
