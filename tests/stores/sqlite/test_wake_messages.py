"""Wake-ups for due times, for requests to stop and for ended jobs, and the messages that carry them."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker, notifier, wakeups
from taskflow.broker.sqlite.wake_folder import Listeners
from taskflow.model.record import Status
from tests.stores.sqlite.support import Open, an_envelope, envelopes, files, registered, succeeded

Sent = tuple[str, notifier.WakeMessage]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """The messages from now on, with the names of those that get them."""
    messages, send = list[Sent](), notifier.SocketNotifier.send

    def sending(this: notifier.SocketNotifier, name: str, message: notifier.WakeMessage) -> bool:
        messages.append((name, message))
        return send(this, name, message)

    monkeypatch.setattr(notifier.SocketNotifier, "send", sending)
    return messages


# --- due times and sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_new_first_due_time_is_told_to_two_listeners(broker: SqliteBroker, open_broker: Open) -> None:
    """A later one is told to nobody."""
    others = [open_broker() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        waits = [stack.enter_context(other.listen([topics.DUE])) for other in others]
        for after, told in ((60.0, 2), (90.0, 0), (30.0, 2)):
            await broker.enqueue([an_envelope(after=after)])
            assert sum(await asyncio.gather(*(waiter.wait(0.3) for waiter in waits))) == told


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_killed_process_is_passed_over_when_a_due_time_is_told(broker: SqliteBroker, open_broker: Open, path: Path) -> None:
    other = open_broker()
    with other.listen([topics.DUE]) as waiter:
        for note in [*Listeners(files(path)).notes.values()]:
            for number in range(8):
                Path(f"{path}-wake", note._replace(listener=f"1-{number:012x}").file).touch()
        await broker.enqueue([an_envelope(after=60.0)])
        assert await waiter.wait(0.5)


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_request_to_stop_is_told_to_its_session_alone(broker: SqliteBroker, open_broker: Open, sent: list[Sent]) -> None:
    one, other = open_broker(), open_broker()
    session, other_session = await registered(one), await registered(other)
    job = an_envelope()
    await broker.enqueue([job])
    await one.claim(session.id, 1, [], 1)
    with one.listen([topics.session(session.id)]) as waiter, other.listen([topics.session(other_session.id)]):
        await broker.cancel([job.id])
        assert await waiter.wait(0.5)
    assert len(sent) == 1


# --- the end of a job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["here", "by datagram"])
@pytest.mark.usefixtures("only_nudges_count")
async def test_a_small_result_comes_with_the_wake_up(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Its waiter does not ask the store again; any other reader does."""
    if told == "by datagram":
        monkeypatch.setattr(notifier, "local_listener", lambda name: None)
    waiting, job = open_broker(), an_envelope()
    session = await registered(broker)
    await broker.enqueue([job])
    with waiting.listen([topics.job(job.id)]) as waiter:
        await broker.settle([succeeded(lease) for lease in await broker.claim(session.id, 1, [], 1)])
        assert await waiter.wait(1)

        monkeypatch.setattr(SqliteBroker, "run", None)
        [record] = await waiting.read([job.id])
        monkeypatch.undo()
    assert record == (await broker.read([job.id]))[0]
    assert record is not None
    assert (record.status, record.result) == (Status.SUCCEEDED, b"result")


@pytest.mark.usefixtures("only_nudges_count")
async def test_a_result_that_nobody_reads_is_not_kept(broker: SqliteBroker) -> None:
    job = an_envelope()
    await broker.enqueue([job])
    with broker.listen([topics.job(job.id)]) as waiter:
        await broker.cancel([job.id])
        assert await waiter.wait(1)
    assert broker._running().listener.take_ended(job.id) is None


@pytest.mark.parametrize("number", [1, 3_000])
@pytest.mark.usefixtures("only_nudges_count")
async def test_many_ends_cost_their_listener_one_message(
    broker: SqliteBroker, open_broker: Open, monkeypatch: pytest.MonkeyPatch, sent: list[Sent], number: int
) -> None:
    """However many wait, and a listener that waits for other jobs gets none."""
    monkeypatch.setattr(notifier, "local_listener", lambda name: None)
    waiting, unconcerned, jobs = open_broker(), open_broker(), envelopes(number)
    await broker.enqueue(jobs)
    with contextlib.ExitStack() as stack:
        waits = [stack.enter_context(waiting.listen([topics.job(job.id)])) for job in jobs for _ in range(2)]
        stack.enter_context(unconcerned.listen([topics.job(an_envelope().id)]))
        await broker.cancel([job.id for job in jobs])
        assert all(await asyncio.gather(*(waiter.wait(5) for waiter in waits)))
    assert [(name, len(message.ended)) for name, message in sent] == [(sent[0][0], number)]
    assert len(sent[0][1].records) == (number if number == 1 else 0)  # waiters read many in parallel


async def test_the_file_of_awaited_ids_goes_with_its_last_waiter(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    with broker.listen([topics.ANY_QUEUE]):
        with broker.listen([topics.job(bytes(range(16)))]):
            [file] = [file for file in Path(f"{path}-wake").iterdir() if file.name.startswith("j.")]
            assert file.read_bytes() == bytes(range(16))
        assert file.read_bytes() == bytes(16)
        await asyncio.sleep(wakeups.POLL_EVERY + 0.3)
        assert not file.exists()
