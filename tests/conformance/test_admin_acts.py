"""The admin interface, continued: purging, pausing, totals, and the audit log of what operators did."""

from __future__ import annotations

from typing import Any

import pytest

from taskflow.broker.admin import QueueInfo, View
from taskflow.broker.protocol import Refused
from taskflow.model.audit import MAX_CHARACTERS, MAX_NAMES, MAX_REASON, Action
from taskflow.model.clock import instant_of
from taskflow.model.errors import BrokerRefused
from taskflow.model.record import Status
from taskflow.model.transitions import Event
from taskflow.model.verdict import Settled
from tests.support.listing import listed
from tests.support.verdicts import retried, succeeded
from tests.support.world import ODD_QUEUES, World, ids_of


async def _queue(world: World, name: str) -> QueueInfo:
    [record] = [record for record in await world.broker.admin.queues() if record.name == name]
    return record


async def test_admin_purge(world: World) -> None:
    """Ended and waiting jobs are purged, and running ones are left alone; the answer says how many went. A resent enqueue restores no
    purged job for as long as one may be resent."""
    session = await world.a_session(ttl=1_000.0)
    running, ended = await world.running(session), await world.running(session)
    await world.settle(succeeded(ended))
    waiting = [await world.add(), await world.add(after=60.0), await world.add(awaits=1)]
    gone = [ended.envelope, *waiting]

    assert await world.broker.admin.purge(View()) == 4

    assert await world.broker.read(ids_of(gone)) == [None] * 4
    assert await world.status(running) is Status.RUNNING
    assert await world.settle(succeeded(running)) == [Settled.OK]
    assert await world.claim(session) == []
    await world.pass_time(world.rules.repeat_for - 1.0)
    assert await world.enqueue(*gone) == [Refused(job_id, job_id, "id") for job_id in ids_of(gone)]


async def test_admin_purge__only_what_is_chosen(world: World) -> None:
    """The filter and the limit decide."""
    fields: tuple[dict[str, Any], ...] = ({"queue": "mail"}, {"queue": "mail", "after": 60.0}, {}, {}, {})
    jobs = [await world.add(**given) for given in fields]

    assert await world.broker.admin.purge(View(queue="mail", statuses=(Status.READY,))) == 1
    assert [await world.status(job) for job in jobs[:3]] == [None, Status.SCHEDULED, Status.READY]
    assert await world.broker.admin.purge(View(), limit=3) == 3
    assert await world.broker.admin.purge(View()) == 1


async def test_admin_pause(world: World) -> None:
    """A paused queue gives out no job and accepts new ones, and its running jobs go on. After the resume all jobs are there, in order."""
    session = await world.a_session()
    running = await world.running(session, queue="mail")
    first = await world.add(queue="mail")
    await world.broker.admin.pause("mail")
    second = await world.add(queue="mail")
    assert (await _queue(world, "mail")).is_paused
    assert await world.claim(session) == []
    assert await world.settle(succeeded(running)) == [Settled.OK]

    await world.broker.admin.resume("mail")

    assert not (await _queue(world, "mail")).is_paused
    assert ids_of(await world.claim(session)) == ids_of([first, second])


async def test_admin_pause__by_its_whole_name(world: World) -> None:
    """A pause stops one queue, and no queue whose name begins or ends alike. Totals and filters use whole names too."""
    jobs = [await world.add(queue=queue) for queue in ODD_QUEUES]
    assert (await world.broker.admin.metrics()).totals == {queue: {str(Event.ENQUEUE): 1} for queue in ODD_QUEUES}
    found = [await listed(world.broker.admin, View(queue=queue)) for queue in ODD_QUEUES]
    assert [[record.id for record in records] for records in found] == [[job.id] for job in jobs]
    for queue in ("a", "queue:a", ":"):
        await world.broker.admin.pause(queue)

    session = await world.a_session()
    claimed = [lease.envelope.queue for queue in ODD_QUEUES for lease in await world.claim(session, [queue])]

    assert claimed == [queue for queue in ODD_QUEUES if queue not in ("a", "queue:a", ":")]
    assert [record.name for record in await world.broker.admin.queues()] == sorted(ODD_QUEUES)


async def test_admin_examine(world: World) -> None:
    """Each store reports how safe jobs are in it, whether it holds any or not, and the report changes nothing."""
    before = await world.broker.admin.examine()
    await world.add()
    findings = await world.broker.admin.examine()

    assert [finding.topic for finding in findings] == [finding.topic for finding in before]
    assert "persistence" in {finding.topic for finding in findings}
    assert all(finding.says for finding in findings)
    assert (await world.broker.admin.metrics()).totals == {"default": {"enqueue": 1}}


async def test_admin_rebuild(world: World) -> None:
    """It is refused while a worker is running, and the error names the worker. What is sound is unchanged."""
    session = await world.a_session("web:1")
    await world.running(session)
    waiting = await world.add(tags=("a",))
    with pytest.raises(BrokerRefused):
        await world.broker.admin.rebuild()
    await world.reap(session)
    world.clock.advance(2_000_000.0)  # the bystander is silent, too
    before = await world.broker.admin.queues()

    assert (await world.broker.admin.rebuild()).corrected == {}
    assert [(queue.name, queue.counts) for queue in await world.broker.admin.queues()] == [(queue.name, queue.counts) for queue in before]
    assert waiting.id in ids_of(await world.claim(await world.a_session()))


async def test_admin_metrics(world: World) -> None:
    """The totals say how often each kind of move was made, by queue, since the store was created. Dropping jobs reduces no total."""
    session = await world.a_session()
    lease = await world.running(session, queue="mail")
    await world.settle(retried(lease))
    [lease] = await world.claim(session)
    await world.settle(succeeded(lease, keep_for=0.0))
    await world.cancel(await world.add(queue="other"))
    await world.pass_time(1.0)

    totals = (await world.broker.admin.metrics()).totals

    assert totals == {
        "mail": {str(Event.ENQUEUE): 1, str(Event.CLAIM): 2, str(Event.RETRY): 1, str(Event.SUCCEED): 1, str(Event.DROP): 1},
        "other": {str(Event.ENQUEUE): 1, str(Event.CANCEL): 1},
    }


def an_act(world: World, **fields: Any) -> Action:
    return Action(**{"id": world.an_id(), "by": "ada@host", "kind": "cancel", **fields})


async def kinds(world: World, **page: Any) -> list[str]:
    return [record.action.kind for record in await world.broker.admin.actions(**page)]


async def test_admin_acts(world: World) -> None:
    """Each action is listed as it was reported, with the store's time, the newest first, in pages."""
    admin, told = world.broker.admin, list[Action]()
    assert await admin.actions() == []
    for number in range(3):
        told.append(an_act(world, names=(f"queue\udcff{number}",), named=1, which={"tag": "a:\0b"}, affected=2**40, reason="it was\nlate"))
        await admin.record_action(told[-1])
        await world.pass_time(60.0)

    found = await admin.actions()

    assert [(record.action.names, record.action.named, record.action.which) for record in found] == [
        (act.names, act.named, act.which) for act in reversed(told)
    ]
    assert {
        (record.action.by, record.action.kind, record.action.affected, record.action.reason, record.action.stopped) for record in found
    } == {("ada@host", "cancel", 2**40, "it was\nlate", "")}
    assert [record.at for record in found] == [instant_of(world.clock.wall() - 60_000_000 * ago) for ago in (1, 2, 3)]
    pages = [(await admin.actions(before=before, limit=1))[0] for before in (None, found[0].number, found[1].number)]
    assert pages == found
    assert await admin.actions(before=found[2].number) == []
    assert await admin.actions(limit=0) == []


async def test_admin_acts__long_texts_are_cut(world: World) -> None:
    """An operator who names a million jobs, or gives a book as a reason, makes a small entry."""
    long = "x" * 1_000_000
    await world.broker.admin.record_action(an_act(world, names=(long,) * 99, named=99, which={"tag": long}, reason=long))

    [record] = await world.broker.admin.actions()
    assert (record.action.names, record.action.named) == ((long[:MAX_CHARACTERS],) * MAX_NAMES, 99)
    assert (record.action.which, record.action.reason) == ({"tag": long[:MAX_CHARACTERS]}, long[:MAX_REASON])


async def test_admin_acts_repeat(world: World) -> None:
    """A call whose answer was lost is sent again: the action is listed once, in its place."""
    first, second = an_act(world, kind="first"), an_act(world, kind="second")
    for act in (first, second, first):
        await world.broker.admin.record_action(act)

    assert await kinds(world) == ["second", "first"]


async def test_admin_acts_bounded(world: World) -> None:
    """The oldest actions are dropped, and the numbers keep rising."""
    world = world.under(max_actions=3)
    for number in range(5):
        await world.broker.admin.record_action(an_act(world, kind=str(number)))

    assert await kinds(world) == ["4", "3", "2"]
    numbers = [record.number for record in await world.broker.admin.actions()]
    assert numbers == sorted(numbers, reverse=True)
    assert await kinds(world, before=numbers[0], limit=1) == ["3"]
