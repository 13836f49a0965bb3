"""`taskflow worker`: what it imports, runs and prints, and how it ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from typing import Any

import pytest

from taskflow.model.codec.payload import seal
from taskflow.model.codec.wire import pack
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.worker import executor
from tests.cli.inprocess import Cli
from tests.cli.processes import Shell, ended_clearly

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


def test_an_unknown_queue_causes_a_warning_and_is_served(cli: Cli, tasks: Any) -> None:
    """It may be created yet."""
    said = cli("worker", "app.tasks", "--queues", "mial", "--drain")
    assert "queue mial is unknown: it has never had a job, and no job here names it; did you mean mail?" in said.err
    tasks.note.options(queue="own").delay_sync()
    assert "no job here names it" not in cli("worker", "app.tasks", "--queues", "own,mail", "--drain").err


# --- drain -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fail", "discard"])
def test_a_drained_worker_ends_with_1_when_a_job_that_it_ran_has_failed(cli: Cli, tasks: Any, which: str) -> None:
    getattr(tasks, which).delay_sync()
    tasks.note.delay_sync()
    cli("worker", "app.tasks", "--drain", code=1)
    assert cli("worker", "app.tasks", "--drain").out == "", "it was another worker's"


def test_drain_leaves_the_jobs_of_a_paused_queue(cli: Cli, tasks: Any) -> None:
    """No worker may take the jobs, so that waiting for them could take for ever."""
    tasks.send.delay_sync("nobody")
    tasks.send.options(after=50).delay_sync("nobody")
    cli("pause", "mail")
    assert cli("worker", "app.tasks", "--drain").out == "left in mail (paused): 1 scheduled, 1 ready\n"
    assert tasks.ran == []


def test_drain_does_not_wait_for_jobs_parked_for_a_newer_worker(cli: Cli, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This worker can never run it, and says so; it waits all the same for a job that it knows and that is due soon."""
    monkeypatch.setattr(executor, "MIN_PARK_PAUSE", 30.0)
    louder = seal(pack({"to": "you", "loud": True}))
    send_raw(cli, ("app.tasks.newer", b""), ("app.tasks.newest", b""), ("app.tasks.newer", b""), ("app.tasks.send", louder))
    tasks.note.options(after=0.5).delay_sync("soon")
    began = time.monotonic()
    said = cli("worker", "app.tasks", "--drain")
    assert tasks.ran == ["soon"]
    assert said.out == "left in default: 4 parked until a worker can run them: 2 app.tasks.newer, 1 app.tasks.newest, 1 app.tasks.send\n"
    assert re.search(r"worked for \d(\.\d )?s: 5 runs, 1 job ended, 0 failed", said.err)
    assert cli("worker", "app.tasks", "--drain").out == said.out, "also when another one has parked it"
    assert time.monotonic() - began < 30.0


def test_a_drain_fires_the_schedules_that_are_due(cli: Cli) -> None:
    """Started again and again, as from cron, it runs the jobs that fell due in between."""
    cli.write("regular.py", "from taskflow import Every, job\n\n@job(schedule=Every(1))\nasync def work() -> None: ...\n")
    cli("worker", "regular", "--drain")
    [before] = cli.json("schedules")
    assert before["next_at"] is None or before["asleep_since"]
    time.sleep(1.5)
    cli("worker", "regular", "--drain")
    [after] = cli.json("schedules")
    assert after["fired"] > before["fired"]


def send_raw(cli: Cli, *jobs: tuple[str, bytes]) -> None:
    """Send what another version of the application would."""
    new_id = IdFactory()
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=new_id(), job=name, payload=payload) for name, payload in jobs]))


# --- what it leaves behind in a process that calls it --------------------------------------------------------------------


@pytest.mark.parametrize("error", ['OSError("the pool is not there")', "SystemExit(7)", 'BaseException("neither")'])
def test_a_jobs_own_lifespan_error_is_the_users_traceback(cli: Cli, error: str) -> None:
    """The application's lifespan fails: the traceback shows where, in its own file."""
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


# --- a module that sends jobs while it is imported sends them again with every worker -----------------------------------


JOBS = """
import asyncio
from taskflow import enqueue_sync, job

ran = []

@job
def note(n: int) -> None:
    ran.append(n)

@job
async def other(n: int) -> None:
    ran.append(n)
"""


@pytest.mark.parametrize(
    "sends",
    [
        "note.delay_sync(1)",
        "enqueue_sync(note.bind(n) for n in range(3))",
        "asyncio.run(note.delay(1))",
        "note.delay_sync(1); other.delay_sync(2)",
    ],
)
def test_a_module_that_sends_while_it_is_imported_is_warned_of_once(cli: Cli, sends: str) -> None:
    cli.write("tasks.py", f"{JOBS}\n{sends}\n")
    said = cli("worker", "tasks", "--drain")
    assert said.err.count("tasks sends tasks.note when it is imported, so every worker that imports the module sends the job again") == 1
    assert said.err.count("when it is imported") == 1


def test_a_module_that_only_binds_or_sends_when_asked_is_not_warned_of(cli: Cli) -> None:
    cli.write(
        "tasks.py",
        f"{JOBS}\ncall = note.bind(1)\nif __name__ == '__main__':\n    note.delay_sync(1)\n\ndef go() -> None:\n    note.delay_sync(1)\n",
    )
    cli.load("tasks").go()
    assert "when it is imported" not in cli("worker", "tasks", "--drain").err


# --- settings -----------------------------------------------------------------------------------------------------------


A_TASK = """
    from taskflow import job

    @job(queue="mail")
    def send() -> None: ...
"""
PROJECT = """
    [tool.taskflow.worker]
    modules = ["app.tasks"]
    queues = ["mail=3", "default=1"]
    concurrency = 7
"""


@pytest.fixture
def project(cli: Cli) -> Cli:
    cli.write("app/tasks.py", A_TASK)
    cli.write("app/other.py", A_TASK)
    cli.write("pyproject.toml", PROJECT)
    return cli


def test_the_environment_overrides_pyproject_and_options_override_both(project: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_WORKER_MODULES", "app.tasks, app.other")
    monkeypatch.setenv("TASKFLOW_WORKER_CONCURRENCY", "8")
    monkeypatch.setenv("TASKFLOW_WORKER_QUEUES", "")
    said = project("worker", "--drain").err
    assert "modules: app.tasks, app.other;" in said
    assert "queues: mail=3, default=1; concurrency: 8" in said
    said = project("worker", "app.tasks", "--drain", "--queues", "mail", "--concurrency", "100").err
    assert "modules: app.tasks;" in said
    assert "queues: mail; concurrency: 100" in said


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            'module = ["a"]',
            "[tool.taskflow.worker] in FOLDER/pyproject.toml has an unknown setting 'module'; settings are modules, queues, ",
        ),
        ("modules = 5", "modules in [tool.taskflow.worker] of FOLDER/pyproject.toml is 5: expected a string or a list of strings"),
        ('modules = ["a", 5]', "is ['a', 5]: expected a string or a list of strings"),
        ("modules = []", "is []: expected a string or a list of strings"),
        (
            "concurrency = true",
            "concurrency in [tool.taskflow.worker] of FOLDER/pyproject.toml is True: expected a whole number, 1 or more",
        ),
        pytest.param(f'concurrency = "{"9" * 5_000}"', "...: expected a whole number, from 1 to 1,000,000,000,000", id="5,000 digits"),
        ("processes = 0", "is 0: expected a whole number, 1 or more"),
        ("processes = 1001", "is 1001: expected at most 1000, because more would overload the machine"),
        ('modules = "app.tasks"\nqueues = "two words"', "queues in [tool.taskflow.worker] of FOLDER/pyproject.toml: queue 'two words'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(project: Cli, settings: str, complaint: str) -> None:
    project.write("pyproject.toml", f"[tool.taskflow.worker]\n{settings}")
    assert complaint.replace("FOLDER", os.path.realpath(project.folder)) in project("worker", code=2).err
    assert project("queues", "--broker", "memory://").err == "", "other commands do not read these settings"


def test_a_wrong_variable_and_a_table_that_is_none_are_named(project: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("pyproject.toml", "[tool.taskflow]\nworker = 5")
    assert "[tool.taskflow.worker] must be a table, got 5" in project("worker", code=2).err
    project.write("pyproject.toml", "")
    monkeypatch.setenv("TASKFLOW_WORKER_PORT", "tcp://10.0.0.1:80")  # as Kubernetes sets it for a service of this name
    monkeypatch.setenv("TASKFLOW_WORKER_PROCESSES", "many")
    assert project("worker", "app.tasks", code=2).err == (
        "taskflow: TASKFLOW_WORKER_PROCESSES is 'many': expected a whole number, 1 or more\n"
    )


def test_without_modules_anywhere_the_command_says_where_to_name_them(cli: Cli) -> None:
    for command in ("worker", "check"):
        said = cli(command, code=2).err
        assert f"taskflow {command}: name the modules that declare jobs, as in `taskflow {command} app.tasks`, or set modules in" in said


def test_a_number_of_processes_starts_a_supervisor_which_keeps_it(shell: Shell) -> None:
    """The number also holds for a worker that replaces another one after the setting is gone."""
    shell.write("tasks.py", A_TASK)
    shell.write("pyproject.toml", '[tool.taskflow.worker]\nmodules = ["tasks"]\nprocesses = 2\n')
    supervisor = shell.taskflow("worker")
    supervisor.wait_for("working as", times=2)
    shell.write("pyproject.toml", '[tool.taskflow.worker]\nmodules = ["tasks"]\n')
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_for("working as", times=4)
    supervisor.signal(signal.SIGTERM)
    ended_clearly(supervisor, [0])


# --- the garbage collector ----------------------------------------------------------------------------------------------


COLLECTED = """
import gc
from taskflow import job

while_loading = gc.get_threshold()
told = []

@job
def tell() -> None:
    told.append((gc.get_threshold(), gc.get_freeze_count() > 10_000))
"""


def test_a_worker_is_collected_seldom_while_it_loads_and_as_ever_while_it_works(cli: Cli) -> None:
    gc.unfreeze()  # the collected tests
    before = gc.get_threshold()
    cli.write("tasks.py", COLLECTED)
    tasks: Any = cli.load("tasks")
    tasks.tell.delay_sync()
    cli("worker", "tasks", "--drain")
    assert tasks.told == [(before, True)]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0), "whoever has called it goes on as before"
