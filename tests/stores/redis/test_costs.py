"""What a plain job costs the server, in counts: commands of a script, bytes of a job, and how it is kept, which decides how fast it is."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from taskflow.broker.redis import scripts
from taskflow.broker.redis.layout import number_bytes
from taskflow.broker.redis.scripts import PARTS
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import CODES, Status
from taskflow.model.session import Session
from tests.stores.redis.conftest import Stored
from tests.stores.redis.scene import SCRIPTS
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
    """Scripts that an operation sends, and commands that they call."""
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
    assert {name: commands for name, (_, commands) in single.items() if commands > MOST[name]} == {}
    assert {name: commands for name, (_, commands) in whole.items() if commands > MOST[name] + 12} == {}


MOST: Final = {"enqueue": 15, "claim": 20, "settle": 10, "upkeep": 56}
"""Commands of a call. Some of an enqueue's pass over a worker that waits, but whose process is gone."""


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
    """As one string, which the server reads through at each lookup, they would cost a claim half as much again."""
    session = await world.a_session()
    await add(world, BATCH)
    await world.claim(session)
    assert stored.client.object("encoding", stored.key("leases:", session.id)) == b"hashtable"
    assert stored.client.hlen(stored.key("leases:", session.id)) == BATCH


async def test_the_fixed_layout_byte_by_byte(world: World, stored: Stored) -> None:
    """Stores hold it: a change raises LAYOUT in layout.py. The revision, which is random, is left out."""
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
    """Each costs the server a quarter of a command, also when it is not called."""
    at_once = re.sub(r"^local function load_rest.*?^return [\w, ]+\nend$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    assert len(FUNCTION.findall(at_once)) <= most
