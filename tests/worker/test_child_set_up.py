"""What an application sets up in each child process: `child_initializer` and `child_lifespan`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskflow import ConfigurationError, JobCancelled, configure
from taskflow.broker.memory import MemoryBroker
from taskflow.model.pauses import Pauses
from tests.worker import set_up_jobs as jobs
from tests.worker.child_scene import TIMEOUT, Lines, a_worker, failure, gone

SetUp = Callable[[str], None]


@pytest.fixture(autouse=True)
def _configured(memory_broker: MemoryBroker) -> None:
    configure(child_initializer=jobs.initialize, child_lifespan=jobs.lifespan)  # as the module does, before the block


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SET_UP_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def set_up(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    return lambda how: monkeypatch.setenv("SET_UP_HOW", how)


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def words(ledger: Path) -> list[str]:
    return [line.split()[0] for line in lines(ledger)]


async def until(ledger: Path, word: str) -> int:
    async with asyncio.timeout(TIMEOUT):
        while word not in words(ledger):  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.01)
    return int(next(line for line in lines(ledger) if line.startswith(word)).split()[1])


# --- in its order -------------------------------------------------------------------------------------------------------


async def test_each_child_is_set_up_once_in_its_main_thread_before_its_first_job(ledger: Path) -> None:
    async with a_worker(at_once=1, max_runs=2):
        for _ in range(3):
            assert await (await jobs.reads_state.delay()).result(TIMEOUT) == "a model"
    found = words(ledger)
    assert found[:4] == ["initialized", "entered", "run", "run"]
    assert found[4:] in (["left", "initialized", "entered", "run", "left"], ["initialized", "left", "entered", "run", "left"])
    first, second = (line for line in lines(ledger) if line.startswith("initialized"))
    assert first.split()[1] != second.split()[1]
    assert [first.split()[2], second.split()[2]] == ["True", "True"]


async def test_an_async_lifespan_shares_its_loop_with_async_jobs_and_ends_in_its_task(ledger: Path, set_up: SetUp) -> None:
    set_up("async")
    printed = Lines()
    async with a_worker(printed, at_once=1):
        assert await (await jobs.is_in_its_loop.delay()).result(TIMEOUT)
        assert await (await jobs.is_in_its_loop.delay()).result(TIMEOUT)
    assert words(ledger) == ["initialized", "entered", "left"]
    assert printed.printed == []


async def test_a_job_that_cancels_every_task_leaves_no_child_without_its_lifespan(ledger: Path, set_up: SetUp) -> None:
    set_up("async")
    async with a_worker(at_once=1):
        await (await jobs.cancels_everything.delay()).result(TIMEOUT)
        assert await (await jobs.is_in_its_loop.delay()).result(TIMEOUT)
    assert words(ledger).count("entered") == 2


async def test_a_child_without_work_leaves_its_lifespan(ledger: Path) -> None:
    async with a_worker(idle_for=0.05):
        await (await jobs.reads_state.delay()).result(TIMEOUT)
        await gone(await until(ledger, "left"))


@pytest.mark.parametrize("is_over", [False, True], ids=["the worker works", "the worker winds down"])
async def test_a_child_whose_run_was_asked_to_stop_leaves_its_lifespan(ledger: Path, set_up: SetUp, *, is_over: bool) -> None:
    set_up("takes its time at its end")
    async with a_worker(grace=0.1):
        handle = await jobs.works.delay()
        await until(ledger, "works")
        if not is_over:
            await handle.cancel()
            with pytest.raises(JobCancelled):
                await handle.result(TIMEOUT)
            await gone(await until(ledger, "left"))
    assert words(ledger) == ["initialized", "entered", "works", "stopped", "left"]


async def test_a_lifespan_that_fails_at_its_end_says_so_in_the_log(ledger: Path, set_up: SetUp) -> None:
    set_up("fails at its end")
    printed = Lines()
    async with a_worker(printed, idle_for=0.05):
        await (await jobs.reads_state.delay()).result(TIMEOUT)
        await gone(await until(ledger, "left"))
        async with asyncio.timeout(TIMEOUT):
            while "LookupError: nothing to close" not in printed.of("stderr"):  # noqa: ASYNC110  # nobody rings for it
                await asyncio.sleep(0.01)
    assert printed.of("stderr")[0].startswith("child_lifespan failed during cleanup: Traceback")


async def test_a_lifespan_that_does_not_end_is_cut_off(ledger: Path, set_up: SetUp) -> None:
    set_up("hangs at its end")
    async with asyncio.timeout(TIMEOUT), a_worker(exit_within=1.0):
        await (await jobs.reads_state.delay()).result(TIMEOUT)
    await gone(await until(ledger, "left"))


# --- failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says", "shows"),
    [
        ("fails", "child_initializer has failed in a child process: LookupError: no model", 'raise LookupError("no model")'),
        ("fails to enter", "child_lifespan has failed in a child process: LookupError: no lifespan", 'raise LookupError("no lifespan")'),
        ("is none", "it returned None: expected a context manager, or an async one", ""),
        ("exits", "has died: exit code 3", ""),
        ("not configured", "no module that a child process imports configures it: call configure(child_initializer=...)", ""),
    ],
)
async def test_a_set_up_that_fails_is_a_failed_attempt_that_shows_why(
    ledger: Path, set_up: SetUp, caplog: pytest.LogCaptureFixture, how: str, says: str, shows: str
) -> None:
    set_up(how)
    with caplog.at_level(logging.ERROR, "taskflow.worker"):
        async with a_worker():
            failed = await failure(await jobs.reads_state.delay())
    assert failed.type in ("taskflow.ChildFailed", "taskflow.ChildDied")
    assert says in failed.message
    assert shows in failed.traceback
    [logged] = [record for record in caplog.records if record.getMessage().startswith("a child process cannot be used")]
    assert says in logged.getMessage()
    assert "\n" not in logged.getMessage()
    assert shows in logging.Formatter().format(logged)
    assert "run" not in words(ledger)


async def test_the_next_start_after_one_that_failed_is_put_off(ledger: Path, set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a broken set-up would use up the attempts of all waiting jobs at once."""
    monkeypatch.setattr("taskflow.worker.children.pool.START_PAUSES", Pauses(3.0, 3.0))
    set_up("fails")
    async with a_worker(at_once=1):
        handles = [await jobs.reads_state.delay() for _ in range(2)]
        await failure(handles[0])
        failed_at = time.monotonic()
        await failure(handles[1])
    assert time.monotonic() - failed_at > 2.5


# --- what may be configured ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["child_initializer", "child_lifespan"])
def test_a_set_up_that_cannot_be_called_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"configure\\({name}='x'\\): expected a function"):
        configure(**{name: "x"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_an_async_initializer_is_refused() -> None:
    async def initialize() -> None: ...

    with pytest.raises(ConfigurationError, match="it is async; use child_lifespan="):
        configure(child_initializer=initialize)
