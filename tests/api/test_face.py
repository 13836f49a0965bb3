"""The promise stands in this folder as it was made, and does what it says."""

from __future__ import annotations

import asyncio
import importlib
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import taskflow
from taskflow import EnqueueOptions, JobCancelled, JobContext, JobFailed, JobHandle, Status, job, schedules
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.app.settings import DEFAULT_BROKER
from taskflow.broker.url import connect
from taskflow.cli.parser import a_parser
from taskflow.model.ids import id_text, parse_id
from taskflow.worker.options import WorkerOptions
from taskflow.worker.worker import Worker
from tests.api import around, ask, compose, define, operate, promise, runs, say, send, work
from tests.api.testing import test_signup as test_signup  # block 10.1 is itself a test
from tests.support.harnesses import BROKERS
from tests.support.listing import listed
from tests.support.postgres import of_this_version, shared_postgres
from tests.support.verdicts import failed as settled_as_failed
from tests.support.world import World

MODULES = {
    "define.py": ["1.1"],
    "defaults.py": ["1.2"],
    "runs.py": ["1.3"],
    "send.py": ["2.1", "2.2", "2.3", "2.4"],
    "ask.py": ["3.1"],
    "work.py": ["6.1", "6.2"],
    "policies.py": ["7.1", "7.2"],
    "compose.py": ["8.1"],
    "around.py": ["9.1"],
    "testing.py": ["10.1"],
    "operate.py": ["11.1"],
}


# --- as it stands there ---------------------------------------------------------------------------------------------


def test_every_block_is_here() -> None:
    here = {name for names in MODULES.values() for name in names}
    assert set(promise.blocks()) == here


@pytest.mark.parametrize("module", MODULES)
def test_a_block_is_here_word_by_word(module: str) -> None:
    found = promise.written(module)
    assert list(found) == MODULES[module]
    for name, block in found.items():
        assert block == promise.blocks()[name]


def test_the_lines_of_section_4_are_here() -> None:
    lines = [span for span in promise.spans(4) if span.startswith(("raise ", "@job", "await ")) and "RateLimited" not in span]
    assert len(lines) == 6
    text = Path(say.__file__).read_text()
    assert [line for line in lines if line.replace("...", '"receipt"') not in text] == []


@pytest.mark.parametrize("url", [span for span in promise.spans(5) if "://" in span and not span.startswith(("redis+", "taskflow "))])
def test_a_url_of_section_5_names_a_broker(url: str) -> None:
    assert connect(url) is not None


def test_section_5_names_the_default() -> None:
    assert f"without one: `{DEFAULT_BROKER}` in the current folder" in promise.sections()[5]


@pytest.mark.parametrize("command", promise.commands(6))
def test_a_command_of_section_6_is_taken(command: str) -> None:
    """What it does then is tested with the command line."""
    arguments = a_parser().parse_args(command.split()[1:])
    assert (arguments.command, arguments.modules) == ("worker", ["app.tasks"])


def test_every_option_is_there() -> None:
    [options] = [span for span in promise.spans(2) if span.startswith("queue, priority")]
    assert set(options.split(", ")) == set(EnqueueOptions.__annotations__)


# --- and does what it says ------------------------------------------------------------------------------------------


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with World(request.param) as world:
        with default_app().using(world.broker):
            yield world


@pytest.fixture
async def worker(world: World) -> AsyncIterator[Worker]:
    async with Worker(options=WorkerOptions(subscribers=())) as worker:
        yield worker


async def names_in(block: str, **scope: Any) -> dict[str, Any]:
    """Run a block as the body of an async function; the names that it made."""
    body = textwrap.indent(promise.blocks()[block], "    ")
    exec(f"async def run():\n{body}\n    return locals()", scope)
    names: dict[str, Any] = await scope["run"]()
    return names


async def test_block_1_1_runs(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    handles: list[JobHandle[Any]] = [
        await define.send_welcome_email.delay(define.WelcomeEmail("user_123", "a@example.com")),
        await define.add.delay(1, y=2),
        await define.report.delay(date(2026, 1, 2)),
        await define.resize.delay("a"),
    ]
    results = [await handle.result(timeout=30) for handle in handles]
    assert await (await define.crunch.delay(5)).result(timeout=30) == 10
    info = await handles[2].info()
    assert info is not None
    expected = f"{handles[2].id} attempt 1 of 10, made {info.created_at}, queue reports, 2026-01-02"
    assert results == [None, 3, expected, "a.small"]
    assert capsys.readouterr().out == "to a@example.com\n"


async def test_block_1_2(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a registry of its own. What it configures is undone with the world."""
    monkeypatch.setattr(default_app(), "registry", Registry())
    monkeypatch.delitem(sys.modules, "tests.api.defaults", raising=False)
    defaults = importlib.import_module("tests.api.defaults")
    assert (define.add.bind(1).envelope.max_attempts, define.add.bind(1).envelope.timeout) == (3, 1800.0)
    call = defaults.sync_project.bind(7, Path("a"))
    assert (call.key, call.envelope.queue, call.envelope.max_attempts, call.envelope.timeout) == ("7", "io", 1, 1800.0)


async def test_block_1_3(worker: Worker) -> None:
    handles = [await runs.export.options(timeout=timeout).delay(project) for timeout, project in ((0.2, 7), (60, 0))]
    assert [await handle.result(timeout=30) for handle in handles] == ["in part", "whole"]
    assert not runs.transaction.is_open
    info = await handles[0].info()
    assert info is not None
    assert info.arguments == {"project_id": 7}
    assert runs.pull.policy.retry(1, OSError()) == 60.0  # type: ignore[operator]  # a function  # pyright: ignore[reportCallIssue]


async def test_block_2_1(world: World) -> None:
    names = await names_in("2.1", **vars(send))

    assert (names["handle"].is_new, await names["handle"].status()) == (True, Status.READY)
    assert len(names["handles"]) == len(set(names["handles"])) == 10_000
    session = await world.a_session()
    [math] = await world.claim(session, ["math"])
    assert (math.envelope.priority, math.envelope.timeout, math.envelope.keep_result) == (5, 10.0, 300.0)
    [queue] = [queue for queue in await world.broker.admin.queues() if queue.name == "default"]
    assert (queue.counts[Status.SCHEDULED], queue.counts[Status.READY]) == (1, 10_001)


async def test_block_2_2(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    names = await names_in("2.2", **vars(send))
    await asyncio.to_thread(names["view"])
    assert capsys.readouterr().out == "3\n"


async def test_block_2_4(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    names = await names_in("2.4", **vars(send))
    assert await names["handle"].status() is Status.READY
    assert capsys.readouterr().out == f"{names['call'].id}\n"


@pytest.fixture(params=["postgresql", "sqlite"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """The application's engine, to the database of the broker."""
    server = shared_postgres()
    database = of_this_version(server)
    url, driver = server.url(database), server.url(database).replace("postgresql:", "postgresql+asyncpg:")
    if request.param == "sqlite":
        url, driver = f"sqlite:///{tmp_path}/app.db?shared=1", f"sqlite+aiosqlite:///{tmp_path}/app.db"
    engine, broker = create_async_engine(driver), connect(url)
    async with engine.begin() as connection:
        await connection.run_sync(send.Base.metadata.create_all)
    with default_app().using(broker):
        yield engine
    await engine.dispose()
    await broker.close()
    server.drop_database(database)


async def test_block_2_3(engine: AsyncEngine) -> None:
    assert await listed(default_app().broker().admin) == []  # its tables are there
    async with AsyncSession(engine, expire_on_commit=False) as session:
        await names_in("2.3", **vars(send), session=session, order=(order := send.Order()))
        [record] = await listed(default_app().broker().admin)
        async with Worker(options=WorkerOptions(subscribers=())):
            assert await JobHandle.of(id_text(record.id), job=send.charge).result(timeout=30) == order.id

        handle = await send.charge.options(connection=session).delay(0)
        await session.rollback()
        assert await handle.status() is None


async def test_block_3_1(worker: Worker) -> None:
    handle = await define.add.delay(1, 2)
    names = await names_in("3.1", **vars(ask), handle=handle, job_id=handle.id)

    assert names["value"] == names["info"].result == 3
    assert names["status"] is names["found"] is Status.SUCCEEDED
    assert names["other"] == handle
    with pytest.raises(taskflow.TaskflowError, match="'not an id' is not a job id"):
        JobHandle.of("not an id")
    promised = "attempt, errors, progress, queue, worker, result, created_at, due_at, started_at, ended_at"
    assert all(hasattr(names["info"], name) for name in promised.split(", "))


async def test_section_4(worker: Worker, world: World) -> None:
    async def due_in(handle: JobHandle[None]) -> float:
        while await handle.status() is not Status.SCHEDULED:  # noqa: ASYNC110  # a job that waits again wakes no sender
            await asyncio.sleep(0.01)
        record = await world.record(parse_id(handle.id))
        return record.due_at.timestamp() - world.clock.wall() / 1_000_000

    again, in_an_hour = await say.again.delay(), await say.in_an_hour.delay()
    assert [round(await due_in(handle)) for handle in (again, in_an_hour)] == [30, 3600]
    with pytest.raises(JobFailed, match="why"):
        await (await say.never.delay()).result(timeout=30)
    with pytest.raises(JobCancelled, match="why"):
        await (await say.no_more.delay()).result(timeout=30)
    for error in ("ValueError", "KeyError"):
        with pytest.raises(JobFailed, match=error):
            await (await say.choosy.delay(error)).result(timeout=30)
    assert 0 <= await due_in(await say.choosy.delay("OSError")) <= 1
    handle = await say.fences.delay()
    assert await handle.result(timeout=30) == (handle.id, 1)


async def test_section_4__complete_in(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(say, "connect", engine.connect, raising=False)
    async with Worker(options=WorkerOptions(subscribers=())):
        assert await (await say.completes.delay()).result(timeout=30) == "receipt"


async def test_block_6_1(world: World) -> None:
    async def serve() -> None:
        assert await (await define.add.delay(1, 2)).result(timeout=30) == 3

    await names_in("6.1", **vars(work), serve=serve)
    assert await world.broker.admin.workers() == []


async def test_block_6_2(world: World) -> None:
    async with work.app.router.lifespan_context(work.app) as state:
        assert state == {"name": "the application's own"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=work.app), base_url="http://testing") as client:
            assert (await client.get("/")).text == "3"
    assert await world.broker.admin.workers() == []


async def test_blocks_7_1_and_7_2(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a registry of their own: other tests' workers would fire these schedules too."""
    monkeypatch.setattr(default_app(), "registry", Registry())
    monkeypatch.delitem(sys.modules, "tests.api.policies", raising=False)
    policies = importlib.import_module("tests.api.policies")
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC)
    async with Worker(options=WorkerOptions(subscribers=())):
        handles = await policies.block_7_2(start, end)
        assert [await handle.result(timeout=30) for handle in handles] == ["done"] * 7
        infos = [await handle.info() for handle in handles]
        assert [info.scheduled_for.day for info in infos] == list(range(1, 8))
        found = await schedules.list()
        while len(found) < 3 or not all(info.next_at for info in found):
            await asyncio.sleep(0.01)
            found = await schedules.list()
    assert {info.name: (info.timetable, info.overlap) for info in found} == {
        "nightly": ("0 3 * * *", "allow"),
        "tests.api.policies.morning": ("0 9 * * MON-FRI Europe/Paris", "allow"),
        "tests.api.policies.poll": ("every 30 s", "skip"),
    }
    await policies.morning()


async def test_block_8_1(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    names = await names_in("8.1", **vars(compose), url="a/b")
    assert capsys.readouterr().out == f"{2 * sum(range(10_000))}\n"
    handles = [await names[name].delay() for name in ("flow", "then", "safe")]
    assert [await handle.result(timeout=30) for handle in handles] == [2, None, 9]


async def test_block_9_1(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a worker begins, as an application does."""
    await names_in("9.1", **vars(around))
    handle = await reads_state.delay()
    async with Worker(options=WorkerOptions(subscribers=())):
        assert await handle.result(timeout=30) == "a resource"
    info = await handle.info()
    assert info is not None
    assert info.headers == {"sent-by": "web"}
    assert capsys.readouterr().out.startswith("Succeeded(")


async def test_block_11_1(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed job of the import is shown and put back; another, which waits, is cancelled."""
    failed = await define.add.options(tags=("import:42",)).delay(1)
    [lease] = await world.claim(await world.a_session())
    await world.settle(settled_as_failed(lease))
    waiting = await define.add.options(tags=("import:42",)).delay(1)

    names = await names_in("11.1", **vars(operate))

    assert ([queue.name for queue in names["queues"]], len(names["workers"])) == (["default"], 1)
    info = await failed.info()
    assert info is not None
    assert capsys.readouterr().out == f"{failed.id} builtins.ValueError: no such user\n"
    assert (info.status, await waiting.status()) == (Status.READY, Status.CANCELLED)


@job
async def reads_state(ctx: JobContext) -> str:
    state: str = ctx.state
    return state
