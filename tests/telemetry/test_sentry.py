"""Errors of jobs for Sentry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from taskflow import Worker, configure
from taskflow.broker.memory import MemoryBroker
from taskflow.telemetry import Sentry
from tests.telemetry.jobs import add, fails, fails_in_child


class Events(Transport):
    """Records the events that would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.items = list[Any]()

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [item.payload.json for item in envelope.items]

    def errors(self) -> list[Any]:
        return [item for item in self.items if item.get("exception")]

    def transactions(self) -> list[Any]:
        return [item for item in self.items if item.get("type") == "transaction"]


@pytest.fixture
def events(memory_broker: MemoryBroker) -> Iterator[Events]:
    events = Events()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=events,
        traces_sample_rate=1.0,
        auto_enabling_integrations=False,
    )
    yield events
    sentry_sdk.init()


async def work() -> None:
    async with Worker() as worker:
        await worker.drained()


@pytest.mark.parametrize("retried", [False, True])
async def test_a_failed_job_is_an_event(events: Events, retried: bool) -> None:
    configure(telemetry=[Sentry(retried=retried)])
    handle = await fails.delay()
    await work()
    errors = events.errors()
    assert [event["contexts"]["taskflow"]["attempt"] for event in errors] == ([1, 2] if retried else [2])
    for event in errors:
        assert event["tags"] == {"taskflow.job": fails.name, "taskflow.queue": "default", "taskflow.job_id": handle.id}
        [value] = event["exception"]["values"]
        assert (value["type"], value["value"]) == ("ValueError", "it fails")
        assert value["stacktrace"]["frames"][-1]["function"] == "fails"


async def test_an_error_in_a_child_process_is_an_event_with_its_traceback(events: Events) -> None:
    configure(telemetry=[Sentry()])
    await fails_in_child.delay()
    await work()
    [event] = events.errors()
    assert event["exception"]["values"][0]["value"] == "in the child"
    assert "fails_in_child" in event["extra"]["traceback"]


async def test_a_run_is_a_transaction_of_the_senders_trace(events: Events) -> None:
    configure(telemetry=[Sentry()])
    with sentry_sdk.start_transaction(name="request") as request:
        await add.delay(1, 2)
    await fails.delay()
    await work()
    runs = {item["transaction"]: item for item in events.transactions()}
    assert runs[add.name]["contexts"]["trace"]["trace_id"] == request.trace_id
    assert runs[add.name]["contexts"]["trace"]["status"] == "ok"
    assert runs[fails.name]["contexts"]["trace"]["status"] == "internal_error"


async def test_arguments_are_not_sent(events: Events) -> None:
    configure(telemetry=[Sentry()])
    await add.delay(4242, 1)
    await work()
    assert "4242" not in repr([item.get("tags") for item in events.items])
