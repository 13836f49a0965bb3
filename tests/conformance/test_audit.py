"""The audit log of what operators did."""

from __future__ import annotations

from typing import Any

from taskflow.model.audit import MAX_CHARACTERS, MAX_NAMES, MAX_REASON, Action
from taskflow.model.clock import instant_of
from tests.support.world import World


def an_act(world: World, **fields: Any) -> Action:
    return Action(**{"id": world.an_id(), "by": "ada@host", "verb": "cancel", **fields})


async def verbs(world: World, **page: Any) -> list[str]:
    return [record.act.verb for record in await world.broker.admin.actions(**page)]


async def test_admin_acts(world: World) -> None:
    """Each action is listed as it was told, with the store's time, the newest first, in pages."""
    admin, told = world.broker.admin, list[Action]()
    assert await admin.actions() == []
    for number in range(3):
        told.append(an_act(world, names=(f"queue\udcff{number}",), named=1, which={"tag": "a:\0b"}, affected=2**40, reason="it was\nlate"))
        await admin.record_action(told[-1])
        await world.pass_time(60.0)

    found = await admin.actions()

    assert [(record.act.names, record.act.named, record.act.which) for record in found] == [
        (act.names, act.named, act.which) for act in reversed(told)
    ]
    assert {(record.act.by, record.act.verb, record.act.affected, record.act.reason, record.act.stopped) for record in found} == {
        ("ada@host", "cancel", 2**40, "it was\nlate", "")
    }
    assert [record.at for record in found] == [instant_of(world.clock.wall() - 60_000_000 * ago) for ago in (1, 2, 3)]
    pages = [(await admin.actions(before=before, limit=1))[0] for before in (None, found[0].number, found[1].number)]
    assert pages == found
    assert await admin.actions(before=found[2].number) == []
    assert await admin.actions(limit=0) == []


async def test_admin_acts__long_texts_are_cut(world: World) -> None:
    """Whoever names a million jobs, or writes a book as a reason, makes a small entry."""
    long = "x" * 1_000_000
    await world.broker.admin.record_action(an_act(world, names=(long,) * 99, named=99, which={"tag": long}, reason=long))

    [record] = await world.broker.admin.actions()
    assert (record.act.names, record.act.named) == ((long[:MAX_CHARACTERS],) * MAX_NAMES, 99)
    assert (record.act.which, record.act.reason) == ({"tag": long[:MAX_CHARACTERS]}, long[:MAX_REASON])


async def test_admin_acts_repeat(world: World) -> None:
    """A call whose answer was lost is sent again: the action is listed once, in its place."""
    first, second = an_act(world, verb="first"), an_act(world, verb="second")
    for act in (first, second, first):
        await world.broker.admin.record_action(act)

    assert await verbs(world) == ["second", "first"]


async def test_admin_acts_bounded(world: World) -> None:
    """The oldest go, and the numbers rise all the same."""
    world = world.under(max_actions=3)
    for number in range(5):
        await world.broker.admin.record_action(an_act(world, verb=str(number)))

    assert await verbs(world) == ["4", "3", "2"]
    numbers = [record.number for record in await world.broker.admin.actions()]
    assert numbers == sorted(numbers, reverse=True)
    assert await verbs(world, before=numbers[0], limit=1) == ["3"]
