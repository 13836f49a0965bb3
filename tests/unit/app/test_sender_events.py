"""Subscribers receive events for calls that are sent, and for those that are not."""

from __future__ import annotations

import logging

import pytest

from taskflow import BrokerUnavailable, EnqueueFailed, KeyConflict, configure, enqueue, enqueue_sync
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.events import Event, JobSent, SendingFailed
from taskflow.model.ids import parse_id
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add


@pytest.fixture
def heard(bench: Bench) -> list[Event]:
    heard = list[Event]()
    configure(subscribers=[heard.append])
    return heard


async def test_each_call_is_an_event_with_its_job(heard: list[Event]) -> None:
    one = await add.options(queue="slow").delay(1, 2)
    many = await enqueue(add.bind(number, number) for number in range(3))

    assert [(type(event), event.job_id) for event in heard] == [(JobSent, handle.id) for handle in (one, *many)]
    first = heard[0]
    assert isinstance(first, JobSent)
    assert (first.job, first.queue, first.attempt, first.id, first.is_new) == (add.name, "slow", None, parse_id(one.id), True)


async def test_the_event_of_a_call_whose_key_is_taken_names_the_live_job(heard: list[Event]) -> None:
    live = await add.options(key="k").delay(1, 2)
    await add.options(key="k").delay(3, 4)
    with pytest.raises(KeyConflict):
        await add.options(key="k", on_conflict="raise").delay(5, 6)
    told = [(event.job_id, event.is_new) for event in heard if isinstance(event, JobSent)]
    assert told == [(live.id, True), (live.id, False), (live.id, False)]


def test_synchronous_senders_have_the_same_events() -> None:
    heard = list[Event]()
    with default_app().using(connect("memory://")):
        configure(subscribers=[heard.append])
        sent = [add.delay_sync(1, 2), *enqueue_sync([add.bind(3, 4)])]
    assert [event.job_id for event in heard] == [handle.id for handle in sent]


async def test_the_event_of_a_call_that_is_not_sent_says_why() -> None:
    heard = list[Event]()
    with default_app().using(connect("redis://127.0.0.1:1")):
        configure(subscribers=[heard.append], enqueue_timeout=0.05)
        with pytest.raises(BrokerUnavailable):
            await add.delay(1, 2)
        with pytest.raises(EnqueueFailed):
            await enqueue([add.bind(3, 4)])
    assert [type(event) for event in heard] == [SendingFailed, SendingFailed]
    assert all(isinstance(event, SendingFailed) and event.why.startswith("BrokerUnavailable: ") for event in heard)


async def test_a_subscriber_that_fails_fails_no_sender(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise OSError("no route")

    heard = list[Event]()
    configure(subscribers=[fail, heard.append])
    handles = [await add.delay(1, 2), await add.delay(3, 4)]
    assert [event.job_id for event in heard] == [handle.id for handle in handles]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
