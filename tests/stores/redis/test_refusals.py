"""Servers that let nobody in, or not this one: a clear error, exit code 3, and no secret in what is said."""

from __future__ import annotations

import asyncio
import gc
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
from taskflow.broker.redis import RedisBroker
from taskflow.broker.redis.scripts import smallest_calls
from taskflow.broker.url import connect
from taskflow.worker.events import SessionEnded
from tests.cli.inprocess import Cli
from tests.stores.redis.scene import Scene, commands
from tests.stores.refusals import SECRET, exits_by_broker
from tests.support.binaries import ServerBinary
from tests.support.listing import listed
from tests.support.servers import HOST, RedisServer, has_tls, redis_binaries

PAGE: Final = (Path(__file__).parents[3] / "docs/how-to/configure-a-broker.md").read_text()


def _rules_of_the_page() -> list[str]:
    """What a user of ours may do, one rule of an access list each."""
    [command] = re.findall(r"^redis-cli ACL SETUSER app on '>password' ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


OF_THE_PAGE: Final = _rules_of_the_page()


# --- passwords and access lists ------------------------------------------------------------------------------------


@contextmanager
def with_user(*rules: str, binary: Path | None = None, **settings: str) -> Iterator[str]:
    """The URL of a server with one user who may do this."""
    with RedisServer(binary, users=["default off", f"app on >{SECRET} {' '.join(rules)}"], settings=settings) as server:
        yield f"redis://app:{SECRET}@{HOST}:{server.port}/0"


def test_the_page_permits_the_commands_that_are_used_and_no_others() -> None:
    permitted = {rule[1:].upper() for rule in OF_THE_PAGE if rule.startswith("+")}
    assert permitted - commands() == {"SELECT", "CLIENT|SETINFO", "WAITAOF"}  # the driver's own, and durability=fsync
    assert permitted >= commands()
    assert [rule for rule in OF_THE_PAGE if not rule.startswith("+")] == ["~{taskflow:*", "&{taskflow:*"]


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
async def test_a_user_with_the_rights_of_the_page_can_do_everything(found: ServerBinary) -> None:
    """Every operation, every act of the admin interface; and nothing beside."""
    with with_user(*OF_THE_PAGE, binary=found.path, appendonly="yes") as url, RedisServer(found.path) as unused:
        async with Scene(unused, f"{url}?durability=fsync") as scene:
            broker = scene._broker
            assert isinstance(broker, RedisBroker)
            async with scene.worker():
                await scene.send(range(20))
                await scene.send(range(20, 25), padding=bytes(10_000))
                await scene.until_ran(range(25))
                await scene.handles[0].result(timeout=10)
            await scene.send(range(25, 30))
            waiting = [id_of(scene, number) for number in range(25, 30)]
            admin = broker.admin
            assert await broker.cancel(waiting[:1]) == [Status.READY]
            assert [record.id for record in await listed(admin, View(statuses=(Status.CANCELLED,)))] == waiting[:1]
            assert await admin.retry(waiting[:1]) == [Redone.OK]
            await admin.pause("default")
            await admin.resume("default")
            assert [queue.counts[Status.READY] for queue in await admin.queues()] == [5]
            assert len(await listed(admin)) == 30
            assert await admin.purge(View()) == 30
            assert await admin.workers() == []
            assert (await admin.metrics()).totals["default"]["drop"] == 30
            assert await admin.examine()
            assert (await broker.upkeep(100)).reaped == 0
        with pytest.raises(NoPermissionError), redis.Redis.from_url(url) as client:
            client.execute_command("RANDOMKEY")


def id_of(scene: Scene, number: int) -> bytes:
    return bytes.fromhex(scene.handles[number].id.replace("-", ""))


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
@pytest.mark.parametrize("denied", ["-evalsha", "-hget", "-scan", "-publish", "-@write", "resetchannels", "resetkeys"])
async def test_every_kind_of_server_says_what_a_user_may_not_do(found: ServerBinary, denied: str) -> None:
    """And survives the question: one before Redis 8 takes a command that is not whole at its word, and looks for keys beyond its end."""
    with with_user(*OF_THE_PAGE, denied, binary=found.path) as url:
        for _ in range(2):
            broker = connect(url)
            with pytest.raises(BrokerRefused, match=r"denies this user rights that taskflow needs.*configure-a-broker"):
                await broker.read([bytes(16)])
            await broker.close()


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
def test_the_commands_that_are_asked_about_are_whole(found: ServerBinary) -> None:
    calls = smallest_calls(["a", "b", "c"])
    with RedisServer(found.path) as server, server.client() as client:
        told: Any = client.execute_command("COMMAND INFO", *(call[0] for call in calls))
    needed = {command[0].decode().upper(): abs(command[1]) for command in told}
    assert {call[0]: len(call) for call in calls if call[0] not in ("EVAL", "EVALSHA")} == {
        name: number for name, number in needed.items() if name not in ("EVAL", "EVALSHA")
    }


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def behind_tls() -> Iterator[RedisServer]:
    able = [found for found in redis_binaries() if has_tls(found.path)]
    assert able, "no server of this machine has TLS"
    with RedisServer(able[0].path, tls=True, settings={"requirepass": SECRET}) as server:
        yield server


async def test_tls_with_the_right_authority(behind_tls: RedisServer) -> None:
    broker = connect(f"{behind_tls.url}?tls_ca={behind_tls.ca_file}")
    assert await broker.read([bytes(16)]) == [None]
    await broker.close()
    gc.collect()  # what was not closed would be told here


def test_tls_with_an_unknown_authority(behind_tls: RedisServer, cli: Cli) -> None:
    exits_by_broker(cli, behind_tls.url, "over TLS cannot be trusted: .*certificate", r"\?tls_ca=")


def test_tls_with_a_file_that_is_none(behind_tls: RedisServer, cli: Cli, tmp_path: Path) -> None:
    exits_by_broker(cli, f"{behind_tls.url}?tls_ca={tmp_path}/none.pem", "no TLS with Redis at .*none.pem")


# --- replicas -----------------------------------------------------------------------------------------------------------


@contextmanager
def replica_of(primary: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(settings={"replicaof": f"{HOST} {primary.port}"}) as replica:
        yield replica


def test_a_read_only_replica(server: RedisServer, cli: Cli) -> None:
    with replica_of(server) as replica:
        exits_by_broker(cli, replica.url, "read-only replica: name the primary")


async def test_a_primary_that_is_demoted_and_promoted_again(scene: Scene, server: RedisServer) -> None:
    """While it is a replica nothing can be written, which may pass: whoever sends waits, the worker goes on with its session."""
    with server.client() as client:
        async with scene.worker(ttl=20):
            await scene.send(range(20))
            await scene.until_done()
            client.replicaof(HOST, 1)
            sending = asyncio.create_task(scene.send(range(20, 40)))
            await asyncio.sleep(0.5)
            assert not sending.done()
            client.replicaof("NO", "ONE")
            await sending
            await scene.until_done()
    await scene.assert_each_settled_once()
    assert not [event for event in scene.events if isinstance(event, SessionEnded)]


# --- others -------------------------------------------------------------------------------------------------------------


def test_a_store_that_another_version_keeps_in_another_layout(server: RedisServer, cli: Cli) -> None:
    """It is left alone, and the message says what to do; another namespace of the same server is another store."""
    with server.client() as client:
        client.hset("{taskflow:0}:meta", "layout", 99)
        exits_by_broker(cli, server.url, r"another version of taskflow under \{taskflow:0\}:", r"layout is 99", r"namespace=")
        assert client.keys("*") == [b"{taskflow:0}:meta"]
    cli("queues", "--broker", f"{server.url}?namespace=other")
