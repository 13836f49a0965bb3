"""Each kind of connection through each way in which a transaction can end. The table in the how-to is made from these tests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

import taskflow
from taskflow import JobHandle, Status, run_sync
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from tests.transactions.handles import ALL, POSTGRES, User, driven
from tests.transactions.jobs import charge

_numbers: Final = itertools.count(1)


class Sender:
    """Sends on a user's connection, and reads the store, with `await` or without, as the connection is used."""

    def __init__(self, user: User) -> None:
        self.user = user

    async def order(self) -> JobHandle[None]:
        """Write a row and send a job."""
        number = next(_numbers)
        await self.user.execute(f"INSERT INTO orders (number) VALUES ({number})")
        return await self.send(number)

    async def send(self, number: int = 0) -> JobHandle[None]:
        options = charge.options(connection=self.user.connection)
        return await options.delay(number) if self.user.is_awaited else options.delay_sync(number)

    async def send_many(self, number: int) -> list[JobHandle[None]]:
        calls = [charge.bind(each) for each in range(number)]
        if self.user.is_awaited:
            return await taskflow.enqueue(calls, connection=self.user.connection)
        return taskflow.enqueue_sync(calls, connection=self.user.connection)

    async def status(self, handle: JobHandle[None]) -> Status | None:
        return await handle.status() if self.user.is_awaited else run_sync(handle.status())

    async def orders(self) -> Any:
        return await self.user.number("SELECT count(*) FROM orders")


Scenario = Callable[[Sender], Coroutine[Any, Any, None]]
Play = Callable[[Scenario], None]


@pytest.fixture(params=ALL)
def play(request: pytest.FixtureRequest) -> Play:
    """Plays a scenario with each kind of connection, whose database is the broker's."""
    is_postgres = request.param in POSTGRES
    place = str(request.getfixturevalue("postgres_database" if is_postgres else "sqlite_file"))
    user = ALL[request.param](place)
    url = place if is_postgres else f"sqlite:///{place}?shared=1"

    async def whole(scenario: Scenario) -> None:
        await user.open()
        try:
            await scenario(Sender(user))
        finally:
            with contextlib.suppress(Exception):  # the connection may be closed or lost
                await user.close()

    def play(scenario: Scenario) -> None:
        async def in_loop() -> None:
            broker = connect(url)
            with default_app().using(broker):
                try:
                    await whole(scenario)
                finally:
                    await broker.close()

        if user.is_awaited:
            asyncio.run(in_loop())
            return
        broker = connect(url)
        with default_app().using(broker):
            try:
                driven(whole(scenario))
            finally:
                run_sync(broker.close())

    return play


def test_commit(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        handle = await sender.order()
        assert handle.is_new
        assert await sender.status(handle) is None
        await sender.user.commit()
        assert await sender.status(handle) is Status.READY

    play(scenario)


def test_rollback(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        handle = await sender.order()
        await sender.user.rollback()
        assert await sender.status(handle) is None

    play(scenario)


def test_savepoint_released(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        await sender.user.savepoint()
        handle = await sender.order()
        await sender.user.release()
        assert await sender.status(handle) is None
        await sender.user.commit()
        assert await sender.status(handle) is Status.READY

    play(scenario)


def test_savepoint_rolled_back(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        first = await sender.order()
        await sender.user.savepoint()
        second = await sender.order()
        await sender.user.undo()
        third = await sender.order()
        await sender.user.commit()
        assert [await sender.status(handle) for handle in (first, second, third)] == [Status.READY, None, Status.READY]

    play(scenario)


def test_connection_closed(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.close()
        if sender.user.opens_again:  # a session takes another connection at its next use
            handle = await sender.send()
            await sender.user.commit()
            assert await sender.status(handle) is Status.READY
        else:
            with pytest.raises(sender.user.when_closed):
                await sender.send()

    play(scenario)


def test_connection_lost(play: Play) -> None:
    """It is lost between the sending and the commit."""

    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        handle = await sender.order()
        await sender.user.lose()
        with contextlib.suppress(Exception):  # each driver raises another error, aiosqlite none
            await sender.user.commit()
        assert await sender.status(handle) is None

    play(scenario)


def test_many(play: Play) -> None:
    async def scenario(sender: Sender) -> None:
        await sender.user.begin()
        handles = await sender.send_many(2_500)
        await sender.user.commit()
        assert len({handle.id for handle in handles}) == 2_500
        assert [await sender.status(handle) for handle in handles[::500]] == [Status.READY] * 5

    play(scenario)
