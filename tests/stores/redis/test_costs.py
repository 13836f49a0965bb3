"""What a plain job costs the server, in counts: a script's commands, a job's bytes, and its encoding, which decides the speed.

An idle worker sends next to nothing, and starts a job at once all the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from taskflow.broker.redis import scripts, wakeups
from taskflow.broker.redis.layout import number_bytes
from taskflow.broker.redis.scripts import PARTS
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import CODES, Status
from taskflow.model.session import Session
from taskflow.worker import fetcher
from taskflow.worker.options import WorkerOptions
from tests.stores.redis.conftest import Stored
from tests.stores.redis.scene import SCRIPTS, verb_of
from tests.stores.scene import Scene
from tests.support.proxy import PASS, Command, Fate, Proxy
from tests.support.servers import RedisServer
from tests.support.verdicts import succeeded
from tests.support.world import World

BATCH: Final = 100


def record(stored: Stored, job: Envelope) -> bytes:
    value: Any = stored.client.get(stored.key("j:", job.id))
    assert isinstance(value, bytes)
    return value


async def add(world: World, number: int, **fields: Any) -> None:
    await world.enqueue(*(world.an_envelope(payload=b"\x01payload", **fields) for _ in range(number)))


async def commands_of(stored: Stored, verb: Callable[[], Awaitable[object]]) -> tuple[int, int]:
    """Return how many scripts an operation sends, and how many commands they call."""
    stored.client.config_resetstat()
    await verb()
    stats: Any = stored.client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}
    scripts = calls.pop("evalsha", 0) + calls.pop("eval", 0)
    return scripts, sum(number for name, number in calls.items() if name not in ("config|resetstat", "info", "script|load", "ping"))


async def rounds(world: World, stored: Stored, session: Session, number: int) -> dict[str, tuple[int, int]]:
    leases = list[Lease]()

    async def claim() -> None:
        leases.extend(await world.claim(session, limit=number))

    counted = {"enqueue": await commands_of(stored, lambda: add(world, number)), "claim": await commands_of(stored, claim)}
    assert len(leases) == number
    counted["settle"] = await commands_of(stored, lambda: world.settle(*(succeeded(lease) for lease in leases)))
    await add(world, number, after=1.0)
    world.clock.advance(1.0)
    counted["upkeep"] = await commands_of(stored, world.upkeep)
    await world.settle(*(succeeded(lease) for lease in await world.claim(session)))
    return counted


async def test_a_batch_costs_one_script_and_no_command_a_job(world: World, stored: Stored) -> None:
    session = await world.a_session(ttl=1_000.0)
    await rounds(world, stored, session, 1)  # the server learns the scripts, the store its queue
    single, whole = await rounds(world, stored, session, 1), await rounds(world, stored, session, BATCH)
    for counted in (single, whole):
        assert {name: scripts for name, (scripts, _) in counted.items()} == {"enqueue": 1, "claim": 1, "settle": 1, "upkeep": 3}
    assert {name: commands for name, (_, commands) in single.items() if commands > MAX_COMMANDS[name]} == {}
    assert {name: commands for name, (_, commands) in whole.items() if commands > MAX_COMMANDS[name] + 12} == {}


MAX_COMMANDS: Final = {"enqueue": 15, "claim": 20, "settle": 10, "upkeep": 70}
"""Commands of a call. Some of an enqueue's skip a worker that waits, but whose process is gone."""


async def test_a_plain_job_is_kept_in_the_fixed_layout_all_its_life(world: World, stored: Stored) -> None:
    """A job that has to be unpacked and packed again takes the server three times as long."""
    plain = await world.add(payload=bytes(200))
    with_extras = await world.add(max_attempts=3, timeout=5.0, headers={"a": "b"})
    planned = await world.add(after=5.0)
    jobs = [plain, with_extras, planned]
    codes = [CODES[Status.READY], CODES[Status.READY], CODES[Status.SCHEDULED]]
    assert [record(stored, job)[0] for job in jobs] == codes
    assert len(record(stored, plain)) <= 200 + 70

    await world.pass_time(5.0)
    assert record(stored, planned)[0] == CODES[Status.READY]
    leases = await world.claim(await world.a_session())
    assert [record(stored, job)[0] for job in jobs] == [CODES[Status.RUNNING]] * 3
    await world.settle(*(succeeded(lease) for lease in leases))
    assert [record(stored, job)[0] for job in jobs] == [CODES[Status.SUCCEEDED]] * 3
    assert len(record(stored, plain)) <= 200


async def test_the_leases_of_a_busy_session_are_a_table(world: World, stored: Stored) -> None:
    """As one string, which the server searches at each lookup, they would make a claim half as expensive again."""
    session = await world.a_session()
    await add(world, BATCH)
    await world.claim(session)
    assert stored.client.object("encoding", stored.key("leases:", session.id)) == b"hashtable"
    assert stored.client.hlen(stored.key("leases:", session.id)) == BATCH


async def test_the_fixed_layout_byte_by_byte(world: World, stored: Stored) -> None:
    """Stores contain it: a change raises LAYOUT in layout.py. The revision, which is random, is left out."""
    session = await world.a_session("w1")
    created = number_bytes(world.clock.wall())
    envelope = await world.add(priority=-2, payload=b"\x01p")
    lengths = len(envelope.queue).to_bytes(2) + len(envelope.job).to_bytes(2) + bytes(4)
    head = bytes(2) + b"\x7e" + created + number_bytes(1) + created + lengths + envelope.queue.encode() + envelope.job.encode()
    waiting = record(stored, envelope)
    assert (waiting[:1], waiting[9:]) == (b"\x02", head + b"\x01p")

    [lease] = await world.claim(session)
    fence = (1).to_bytes(8) + session.id + lease.claim.request.to_bytes(8) + bytes(4)
    leased = fence + number_bytes(world.clock.wall()) + number_bytes(world.clock.steady()) + (2).to_bytes(2) + b"w1"
    running = record(stored, envelope)
    assert (running[:1], running[9:]) == (b"\x03", leased + waiting)

    await world.settle(succeeded(lease, b"\x01r", ran_for=0.5, keep_for=9.0))
    ended = b"".join(map(number_bytes, (world.clock.wall(), world.clock.wall() + 9_000_000, 500_000)))
    succeeded_job = record(stored, envelope)
    assert (succeeded_job[:1], succeeded_job[9:]) == (b"\x04", leased + waiting[:9] + head + ended + b"\x01r")


TEXTS = {name: SCRIPTS[name].text.decode() for name in PARTS}
FUNCTION = re.compile(r"^ *local function (\w+)", re.MULTILINE)
ALL = {function for text in TEXTS.values() for function in FUNCTION.findall(text)} - {"load_rest"}


def test_each_function_of_the_lua_files_is_once_in_each_script_that_calls_it() -> None:
    for text in TEXTS.values():
        functions = FUNCTION.findall(text)
        assert len(functions) == len(set(functions))
        assert ALL & set(re.findall(r"(?<![.\w])(\w+)\(", text)) <= set(functions)
    assert {function for function in ALL if not any(len(re.findall(rf"\b{function}\b", text)) > 1 for text in TEXTS.values())} == set()
    written = {function for file in Path(scripts.__file__).parent.glob("*.lua") for function in FUNCTION.findall(file.read_text())}
    assert written == ALL


@pytest.mark.parametrize(("name", "most"), [("add", 17), ("claim", 24), ("succeed", 14)])
def test_a_script_for_plain_jobs_makes_few_functions(name: str, most: int) -> None:
    """Each costs the server a quarter of a command, even when it is not called."""
    at_once = re.sub(r"^local function load_rest.*?^return [\w, ]+\nend$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    assert len(FUNCTION.findall(at_once)) <= most


LATENCY: Final = 0.15
"""Seconds for a command's way to the server; its answer takes none, so that a round trip takes as long."""


SLACK: Final = 0.14
"""Seconds that a busy machine may add to the round trips; less than one of them, so that one more would be noticed."""


BLOCKING: Final = {"BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "XREAD", "XREADGROUP", "WAIT"}


@pytest.fixture
def sent(proxy: Proxy) -> Counter[str]:
    counted = Counter[str]()

    def rule(command: Command) -> Fate:
        counted[verb_of(command)] += 1
        return PASS

    proxy.rule = rule
    return counted


def check_round_trips(waits: list[float], number: int) -> None:
    """Check their number, except for one job that is sent when all connections are in use: another is opened then, once, with two more."""
    *others, longest = sorted(waits)
    assert max(others) < number * LATENCY + SLACK, waits
    assert longest < (number + 2) * LATENCY + SLACK, waits


async def test_an_idle_worker_sends_less_than_one_command_a_second(far_scene: Scene, server: RedisServer, sent: Counter[str]) -> None:
    """They are counted in the proxy and by the server over 10 s, with a user's own settings; then a job starts at once."""
    async with far_scene.worker(ttl=WorkerOptions().ttl):
        await far_scene.seconds_to_start(0)
        await asyncio.sleep(1)
        sent.clear()
        with server.client() as client:
            client.config_resetstat()
            await asyncio.sleep(10)
            when_idle = sent.copy()
            told = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
        waited = await far_scene.seconds_to_start(1)
    assert when_idle.total() < 8, when_idle  # a heartbeat takes two, a call of upkeep that finds nothing one
    assert sum(told.get(f"cmdstat_{name}", 0) for name in ("evalsha", "eval", "ping")) < 8, told
    assert waited < 2.0  # a poll would come after 5 s
    assert not BLOCKING & when_idle.keys()


async def test_a_job_starts_within_two_round_trips_of_its_enqueue(far_scene: Scene, proxy: Proxy, sent: Counter[str]) -> None:
    async with far_scene.worker():
        await far_scene.seconds_to_start(0)
        proxy.latency = LATENCY
        await asyncio.sleep(1)
        waits = [await far_scene.seconds_to_start(number) for number in range(1, 6)]
    assert min(waits) >= 2 * LATENCY  # or the proxy would not slow down anything
    check_round_trips(waits, 2)
    assert not BLOCKING & sent.keys()


async def test_so_it_does_after_minutes_of_idleness_on_a_server_that_cuts_who_is_idle(
    far_scene: Scene, proxy: Proxy, server: RedisServer, monkeypatch: pytest.MonkeyPatch, sent: Counter[str]
) -> None:
    """It has polled and pinged as often as in minutes. The server cuts clients that are silent for a second, so the first command connects
    again, with two more round trips, in which the driver sends its name and its version."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", 5.0 / 200)
    monkeypatch.setattr(wakeups, "PING_INTERVAL", 25.0 / 200)
    monkeypatch.setattr(wakeups, "PONG_TIMEOUT", 4 * LATENCY)
    with server.client() as client:
        client.config_set("timeout", 1)
    async with far_scene.worker():
        await far_scene.seconds_to_start(0)
        await asyncio.sleep(2)
        proxy.latency = LATENCY
        monkeypatch.setattr(fetcher, "POLL_INTERVAL", 5.0)
        await asyncio.sleep(1.5)
        waits = [await far_scene.seconds_to_start(number) for number in range(1, 4)]
    assert sent["claim"] > 40
    assert sent["PING"] > 4
    check_round_trips(waits, 4)
