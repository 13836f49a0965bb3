"""`taskflow worker`: what it imports, works, says and comes to."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import pytest

from taskflow.model.codec.payload import seal
from taskflow.model.codec.wire import pack
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.worker import executor
from tests.cli.inprocess import Cli

TASKS = """
import asyncio
from taskflow import Backoff, Discard, JobContext, job

ran: list[str] = []

class Slots:
    taken = 0
    most = 0
    barrier: asyncio.Barrier | None = None

@job
async def note(ctx: JobContext, text: str = "") -> None:
    ran.append(text or ctx.queue)

@job(queue="mail")
def send(to: str) -> None:
    ran.append(to)

@job(max_attempts=1)
async def fail() -> None:
    raise ValueError("as asked")

@job
async def discard() -> None:
    raise Discard("no use")

@job(retry=Backoff(base=0))
async def recover(ctx: JobContext) -> None:
    if ctx.attempt == 1:
        raise OSError("once")

@job
async def meet(at_one_time: int) -> None:
    Slots.barrier = Slots.barrier or asyncio.Barrier(at_one_time)
    Slots.taken += 1
    Slots.most = max(Slots.most, Slots.taken)
    await Slots.barrier.wait()
    Slots.taken -= 1
"""


@pytest.fixture
def tasks(cli: Cli) -> Any:
    cli.write("app/tasks.py", TASKS)
    return cli.load("app.tasks")


# --- modules -----------------------------------------------------------------------------------------------------------


def test_the_jobs_of_several_modules_are_worked(cli: Cli) -> None:
    for name in ("first", "second"):
        cli.write(f"{name}.py", f"from taskflow import job\nran = []\n@job\nasync def work(): ran.append({name!r})")
    first, second = cli.load("first"), cli.load("second")
    first.work.delay_sync()
    second.work.delay_sync()
    said = cli("worker", "first", "second", "--drain")
    assert (first.ran, second.ran) == (["first"], ["second"])
    assert "jobs: first.work, second.work" in said.err


def test_all_submodules_of_a_package_are_imported(cli: Cli) -> None:
    cli.write("app/__init__.py", "")
    cli.write("app/a.py", "from taskflow import job\n@job\ndef one(): pass")
    cli.write("app/deep/b.py", "from taskflow import job\n@job\ndef two(): pass")
    cli.write("app/__main__.py", "raise SystemExit('a package is not run')")
    assert "jobs: app.a.one, app.deep.b.two\n" in cli("worker", "app", "--all-submodules", "--drain").err


def test_the_first_lines_tell_where_and_what(cli: Cli, tasks: Any) -> None:
    said = cli("worker", "app.tasks", "--queues", "mail=3,default=1", "--concurrency", "7", "--drain")
    told = [line.split("INFO", 1)[1].strip() for line in said.err.splitlines()]
    assert told[:4] == [
        "broker sqlite:///queue.db, namespace taskflow",
        "queues: mail=3, default=1; concurrency: 7",
        "modules: app.tasks; 6 jobs",
        "jobs: app.tasks.discard, app.tasks.fail, app.tasks.meet, app.tasks.note, app.tasks.recover, app.tasks.send",
    ]
    assert told[4].startswith("working as ")


# --- queues and slots --------------------------------------------------------------------------------------------------


def test_strict_queues_are_worked_in_order_and_others_are_left(cli: Cli, tasks: Any) -> None:
    for queue in ("other", "second", "first", "second", "first"):
        tasks.note.options(queue=queue).delay_sync()
    said = cli("worker", "app.tasks", "--queues", "first,second", "--concurrency", "1", "--drain")
    assert tasks.ran == ["first", "first", "second", "second"]
    assert said.out == "", "what is in other queues is not its business"
    assert cli.json("queues")[1]["counts"]["ready"] == 1


def test_a_queue_that_nobody_knows_is_doubted_and_worked(cli: Cli, tasks: Any) -> None:
    """It may come yet."""
    said = cli("worker", "app.tasks", "--queues", "mial", "--drain")
    assert "queue mial is unknown: it never had a job, and no job here names it; did you mean mail?" in said.err
    tasks.note.options(queue="own").delay_sync()
    assert "no job here names it" not in cli("worker", "app.tasks", "--queues", "own,mail", "--drain").err


# --- drain -------------------------------------------------------------------------------------------------------------


def test_a_drained_worker_ends_with_0(cli: Cli, tasks: Any) -> None:
    """Also when a job has failed on its way to success."""
    tasks.recover.delay_sync()
    tasks.send.delay_sync("you")
    said = cli("worker", "app.tasks", "--drain")
    assert re.search(r"failed after \d\.\d{3} s, again in 0\.0 s: OSError: once\n", said.err)
    assert {job["status"] for job in cli.jobs()} == {"succeeded"}


@pytest.mark.parametrize("which", ["fail", "discard"])
def test_a_drained_worker_ends_with_1_when_a_job_that_it_ran_has_failed(cli: Cli, tasks: Any, which: str) -> None:
    getattr(tasks, which).delay_sync()
    tasks.note.delay_sync()
    cli("worker", "app.tasks", "--drain", code=1)
    assert cli("worker", "app.tasks", "--drain").out == "", "it was another worker's"


def test_drain_waits_for_what_is_due_within_the_horizon(cli: Cli, tasks: Any) -> None:
    tasks.note.options(after=0.3).delay_sync("soon")
    tasks.note.options(after=3600).delay_sync("late")
    said = cli("worker", "app.tasks", "--drain")
    assert tasks.ran == ["soon"]
    assert said.out == "left in default: 1 scheduled\n"


def test_drain_leaves_what_waits_in_a_paused_queue(cli: Cli, tasks: Any) -> None:
    """Nobody may take it: to wait for it could be for ever."""
    tasks.send.delay_sync("nobody")
    tasks.send.options(after=50).delay_sync("nobody")
    cli("pause", "mail")
    assert cli("worker", "app.tasks", "--drain").out == "left in mail (paused): 1 scheduled, 1 ready\n"
    assert tasks.ran == []


def test_drain_does_not_wait_for_what_is_parked_for_a_newer_worker(cli: Cli, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one can never run it, and says so; what it does know and is due soon is waited for all the same."""
    monkeypatch.setattr(executor, "MIN_PARK_PAUSE", 30.0)
    louder = seal(pack({"to": "you", "loud": True}))
    send_raw(cli, ("app.tasks.newer", b""), ("app.tasks.newest", b""), ("app.tasks.newer", b""), ("app.tasks.send", louder))
    tasks.note.options(after=0.5).delay_sync("soon")
    began = time.monotonic()
    said = cli("worker", "app.tasks", "--drain")
    assert tasks.ran == ["soon"]
    assert said.out == "left in default: 4 parked for a worker that knows more: 2 app.tasks.newer, 1 app.tasks.newest, 1 app.tasks.send\n"
    assert re.search(r"worked for \d(\.\d )?s: 5 runs, 1 job ended, 0 failed", said.err)
    assert cli("worker", "app.tasks", "--drain").out == said.out, "also when another one has parked it"
    assert time.monotonic() - began < 30.0


def test_drain_does_not_wait_for_schedules(cli: Cli) -> None:
    """Their jobs count like any others."""
    source = """
        from taskflow import Cron, Every, job

        @job(schedule=[Cron("@yearly", name="seldom"), Every(1, name="often")])
        async def work() -> None: ...
    """
    cli.write("regular.py", source)
    began_at = time.monotonic()
    cli("worker", "regular", "--drain")
    assert time.monotonic() - began_at < 20
    assert [schedule["asleep_since"] is None for schedule in cli.json("schedules")] == [False, False]


def test_a_drain_fires_the_schedules_that_are_due(cli: Cli) -> None:
    """Started again and again, as from cron, it runs what came due in between."""
    cli.write("regular.py", "from taskflow import Every, job\n\n@job(schedule=Every(1))\nasync def work() -> None: ...\n")
    cli("worker", "regular", "--drain")
    [before] = cli.json("schedules")
    assert before["next_at"] is None or before["asleep_since"]
    time.sleep(1.5)
    cli("worker", "regular", "--drain")
    [after] = cli.json("schedules")
    assert after["fired"] > before["fired"]


def send_raw(cli: Cli, *jobs: tuple[str, bytes]) -> None:
    """What another version of the application has sent."""
    new_id = IdFactory()
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=new_id(), job=name, payload=payload) for name, payload in jobs]))


# --- what it leaves behind in a process that calls it --------------------------------------------------------------------


def test_logging_is_left_as_it_was(cli: Cli, tasks: Any) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    cli("worker", "app.tasks", "--drain", "--log-level", "debug")
    assert (root.level, list(root.handlers)) == before


@pytest.mark.parametrize("error", ['OSError("the pool is not there")', "SystemExit(7)", 'BaseException("neither")'])
def test_a_jobs_own_lifespan_error_is_the_users_traceback(cli: Cli, error: str) -> None:
    """The application's lifespan fails: what is shown is where, in its own file."""
    source = f"""
        from contextlib import asynccontextmanager
        from taskflow import configure, job

        @asynccontextmanager
        async def resources():
            raise {error}
            yield

        configure(lifespan=resources)

        @job
        def work() -> None: ...
    """
    cli.write("tasks.py", source)
    said = cli("worker", "tasks", "--drain", code=1)
    shown = said.err[said.err.index("Traceback") :]
    assert f"raise {error}" in shown
    assert "taskflow/" not in shown
    cli.load("taskflow.app.app").default_app().configure()
