"""Access lists: the page's grants are enough, and errors name the rights that a user lacks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from redis.exceptions import NoPermissionError

from taskflow import BrokerRefused, Status
from taskflow.broker.admin import Redone, View
from taskflow.broker.redis.scripts import smallest_calls
from taskflow.broker.url import connect
from tests.stores.redis.scene import commands
from tests.stores.scene import Scene, id_of
from tests.support.binaries import ServerBinary
from tests.support.listing import listed
from tests.support.servers import HOST, RedisServer, redis_binaries

PAGE: Final = (Path(__file__).parents[3] / "docs/how-to/configure-a-broker.md").read_text()
[_COMMAND] = re.findall(r"^redis-cli ACL SETUSER app on '>password' ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
OF_THE_PAGE: Final = shlex.split(_COMMAND.replace("\\\n", " "))
"""A taskflow user's rights, as rules of an access list."""

each_server = pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)


@contextmanager
def with_user(*rules: str, binary: Path | None = None, **settings: str) -> Iterator[str]:
    with RedisServer(binary, users=["default off", f"app on >secret {' '.join(rules)}"], settings=settings) as server:
        yield f"redis://app:secret@{HOST}:{server.port}/0"


def test_the_page_permits_the_commands_that_are_used_and_no_others() -> None:
    permitted = {rule[1:].upper() for rule in OF_THE_PAGE if rule.startswith("+")}
    assert permitted - commands() == {"SELECT", "CLIENT|SETINFO", "WAITAOF"}  # the driver's own, and durability=fsync
    assert permitted >= commands()
    assert [rule for rule in OF_THE_PAGE if not rule.startswith("+")] == ["~{taskflow:*", "&{taskflow:*"]
    assert {call[0] for call in smallest_calls(["a", "b", "c"])} == commands()  # what a new connection asks about


@each_server
async def test_a_user_with_the_rights_of_the_page_can_do_everything(found: ServerBinary) -> None:
    """Every operation and every action of the admin interface works; and nothing else is allowed."""
    with with_user(*OF_THE_PAGE, binary=found.path, appendonly="yes") as url, RedisServer(found.path) as unused:
        async with Scene(unused.url, f"{url}?durability=fsync") as scene:
            broker, admin = scene._broker, scene._broker.admin
            async with scene.worker():
                await scene.send(range(20))
                await scene.send(range(20, 25), padding=bytes(10_000))
                await scene.until_ran(range(25))
                await scene.handles[0].result(timeout=10)
            await scene.send(range(25, 30))
            waiting = [id_of(scene.handles[25])]
            assert await broker.cancel(waiting) == [Status.READY]
            assert [record.id for record in await listed(admin, View(statuses=(Status.CANCELLED,)))] == waiting
            assert await admin.retry(waiting) == [Redone.OK]
            await admin.pause("default")
            await admin.resume("default")
            assert [queue.counts[Status.READY] for queue in await admin.queues()] == [5]
            assert len(await listed(admin)) == await admin.purge(View()) == 30
            assert await admin.workers() == []
            assert (await admin.metrics()).totals["default"]["drop"] == 30
            assert await admin.examine()
            assert (await broker.upkeep(100)).reaped == 0
        with pytest.raises(NoPermissionError), redis.Redis.from_url(url) as client:
            client.execute_command("RANDOMKEY")


@each_server
async def test_every_kind_of_server_names_the_rights_that_a_user_lacks(found: ServerBinary) -> None:
    """It survives the question: a server before Redis 8 trusts an incomplete command, and searches keys beyond its end."""
    with RedisServer(found.path) as server, server.client() as client:
        for denied in ("-evalsha", "-hget", "-scan", "-publish", "-@write", "resetchannels", "resetkeys"):
            client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *OF_THE_PAGE, denied)
            for _ in range(2):
                broker = connect(f"redis://app:secret@{HOST}:{server.port}/0")
                with pytest.raises(BrokerRefused, match=r"denies this user rights that taskflow needs.*configure-a-broker"):
                    await broker.read([bytes(16)])
                await broker.close()
        calls = [call for call in smallest_calls(["a", "b", "c"]) if call[0] not in ("EVAL", "EVALSHA")]
        told: Any = client.execute_command("COMMAND INFO", *(call[0] for call in calls))
        assert {call[0]: len(call) for call in calls} == {command[0].decode().upper(): abs(command[1]) for command in told}
