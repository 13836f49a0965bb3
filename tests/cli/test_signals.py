"""SIGTERM and SIGINT, at any moment: a clear end, nothing lost, no traceback of ours."""

from __future__ import annotations

import re
import signal
import sys
import time

import pytest

from taskflow.cli.signals import ForcedExit
from tests.cli.processes import JOBS, Running, Shell, ended_clearly, on_each_broker
from tests.cli.supervised import PYTHONS_OWN, a_little_later

pytestmark = pytest.mark.unmeasured

TASKS = (
    JOBS
    + """
import sys

@job
async def outlive_its_packages(seconds: float) -> None:
    sys.meta_path.clear()  # nothing that is not loaded can be, as where a deploy has replaced what was installed
    Path.open = Path.read_text = Path.read_bytes = None  # nor can what lies beside it be read
    print("begun\\n", end="", flush=True)
    await asyncio.sleep(seconds)

@job
async def leave_a_thread() -> None:
    print("begun\\n", end="", flush=True)
    await asyncio.to_thread(threading.Event().wait)

@job
async def close_descriptors(ctx: JobContext) -> None:
    if ctx.epoch == 1:
        os.closerange(3, 300)
    write("ended")

@job
def close_descriptors_in_a_thread(ctx: JobContext) -> None:
    if ctx.epoch == 1:
        os.closerange(3, 300)
        threading.Event().wait()
    write("ended")
"""
)

SLOW_START = """
import asyncio
from contextlib import asynccontextmanager
from taskflow import configure, job

@asynccontextmanager
async def resources():
    print("starting\\n", end="", flush=True)
    try:
        await asyncio.sleep(3600)
        yield
    finally:
        await asyncio.sleep(0)
        print("let go of\\n", end="", flush=True)

configure(lifespan=resources)

@job
async def work() -> None: ...
"""

SWALLOW = """
async def swallow():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("swallowed\\n", end="", flush=True)
"""

LOCK = """
import sqlite3, time
file = sqlite3.connect("queue.db", isolation_level=None)
file.execute("BEGIN EXCLUSIVE")
print("locked\\n", end="", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def tasks(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    return shell


@pytest.fixture(params=["uvloop", "asyncio"])
def on_each_loop(request: pytest.FixtureRequest, tasks: Shell) -> Shell:
    """On uvloop, where it is installed, and without it: the current folder's `uvloop` is found first."""
    if request.param == "asyncio":
        tasks.write("uvloop.py", "raise ImportError('not in this test')")
    else:
        pytest.importorskip("uvloop")
    return tasks


# --- once, twice, three times ----------------------------------------------------------------------------------------------


@on_each_broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_lets_runs_finish_and_starts_nothing_new(tasks: Shell, number: signal.Signals) -> None:
    tasks.send("wait.bind()")
    worker = tasks.worker("--concurrency", "1")
    worker.wait_for("begun")
    tasks.send("brief.bind(1)")
    worker.signal(number)
    worker.wait_for(f"{number.name}: winding down")
    tasks.write("release", "")
    ended_clearly(worker, [0])
    assert tasks.ledger() == ["ended"]
    assert tasks.counts() == {"succeeded": 1, "ready": 1}


@on_each_broker
def test_the_second_signal_hands_runs_back_and_another_worker_starts_them(tasks: Shell) -> None:
    """It starts long before the session would lapse, which takes an hour here; and no attempt is used up."""
    tasks.send("wait.bind()")
    first = tasks.worker("--ttl", "3600")
    first.wait_for("begun .*attempt 1")
    second = tasks.worker()
    first.signal(signal.SIGTERM)
    first.wait_for("winding down: 1 running")
    a_little_later()
    first.signal(signal.SIGTERM)
    second.wait_for("begun .*attempt 1")
    ended_clearly(first, [124])
    tasks.write("release", "")
    second.wait_for("succeeded")
    second.signal(signal.SIGTERM)
    ended_clearly(second, [0])


@on_each_broker
def test_a_worker_whose_packages_were_replaced_hands_its_runs_back(tasks: Shell) -> None:
    """It imports nothing as it ends."""
    tasks.send("outlive_its_packages.bind(3600.0)")
    worker = tasks.worker("--grace", "0.1")
    worker.wait_for("begun")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [124])
    assert tasks.counts() == {"ready": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_third_ends_the_process_even_when_a_job_blocks_the_loop(on_each_loop: Shell, number: signal.Signals) -> None:
    tasks = on_each_loop
    tasks.send("block.bind()")
    worker = tasks.worker()
    worker.wait_for("begun")
    for _ in range(2):
        worker.signal(number)
        a_little_later()
    assert worker.process.poll() is None
    for _ in range(5):  # a process that waited for a processor may have taken two of the earlier ones for one
        if worker.process.poll() is None:
            worker.signal(number)
            a_little_later()
    ended_clearly(worker, [128 + number])


# --- at any moment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["argparse.py", "tasks.py"], ids=["ours", "the application's"])
def test_ctrl_c_that_c_code_replaces_with_another_error(tasks: Shell, where: str) -> None:
    """PyCapsule_Import replaces whatever is raised while it loads a module."""
    tasks.start_sooner()
    tasks.write(where, LOADED_BY_C)
    worker = tasks.taskflow("worker", "tasks")
    worker.wait_for("loading")
    worker.signal(signal.SIGINT)
    ended_clearly(worker, [128 + signal.SIGINT])


# The current folder's argparse is found before Python's.
LOADED_BY_C = """
import time
try:
    print("loading\\n", end="", flush=True)
    time.sleep(3600)
except KeyboardInterrupt:
    raise ImportError("could not import a module") from None
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sys.monitoring")
@pytest.mark.parametrize("callback", ["cb", "remove"])
@pytest.mark.parametrize("where", ["argparse.py", "tasks.py"], ids=["ours", "the application's"])
def test_ctrl_c_in_a_callback_of_the_import_system_is_not_lost(shell: Shell, where: str, callback: str) -> None:
    """Python drops an exception that is raised in such a callback, and prints it."""
    shell.start_sooner()
    shell.write(where, INTERRUPTED.replace("CALLBACK", callback))
    worker = shell.taskflow("worker", "tasks")
    ended_clearly(worker, [128 + signal.SIGINT])
    assert "the import went on" in worker.said
    assert "Exception ignored" not in worker.said


INTERRUPTED = """
import ctypes, importlib._bootstrap as imports, sys
from taskflow import job

def found_in(code):
    for constant in code.co_consts:
        if hasattr(constant, "co_consts"):
            yield from [constant] if constant.co_name == "CALLBACK" else found_in(constant)

functions = imports._get_module_lock, imports._WeakValueDictionary.__init__
[callback] = [code for function in functions for code in found_in(function.__code__)]
interrupt = ctypes.pythonapi.PyErr_SetInterrupt  # runs no bytecode, in which Python would call the handler before the callback goes on
interrupt.argtypes = ctypes.py_object, ctypes.py_object
tool, start = sys.monitoring.DEBUGGER_ID, sys.monitoring.events.PY_START
sys.monitoring.use_tool_id(tool, "interrupt")
sys.monitoring.register_callback(tool, start, interrupt)
sys.monitoring.set_local_events(tool, callback, start)
import colorsys
sys.monitoring.set_local_events(tool, callback, 0)
print("the import went on\\n", end="", flush=True)

@job
async def brief() -> None: ...
"""


def test_ctrl_c_at_any_moment_of_the_end(tasks: Shell) -> None:
    """A worker that ends by itself is interrupted as it does so."""
    for step in range(5):
        tasks.send(f"brief.bind({step})")
        worker = tasks.taskflow("worker", "tasks", "--drain")
        worker.wait_for("winding down: 0 running")
        time.sleep(0.01 * step)
        worker.signal(signal.SIGINT)
        ended_clearly(worker, [0, *PYTHONS_OWN[:1]])
    assert tasks.ledger() == ["0", "1", "2", "3", "4"]


def test_ctrl_c_while_python_ends_is_silent(shell: Shell) -> None:
    shell.write(
        "end.py",
        """
        import atexit, os, signal, sys, time
        from taskflow.cli.main import program
        atexit.register(time.sleep, 5)
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
        sys.argv = ["taskflow", "--version"]
        sys.exit(program())
        """,
    )
    ending = shell.start("end.py")
    ended_clearly(ending, [-signal.SIGINT])
    assert "KeyboardInterrupt" not in ending.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_modules_are_imported_ends_it(shell: Shell, number: signal.Signals) -> None:
    shell.write("tasks.py", "import time\nprint('importing', flush=True)\ntime.sleep(3600)\n")
    worker = shell.taskflow("worker", "tasks")
    worker.wait_for("importing")
    worker.signal(number)
    ended_clearly(worker, [128 + number])
    assert "Traceback" not in worker.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_lifespan_starts_cancels_the_start(on_each_loop: Shell, number: signal.Signals) -> None:
    """It is reported at once, the lifespan releases what it has, and no session is opened."""
    shell = on_each_loop
    shell.write("tasks.py", SLOW_START)
    worker = shell.taskflow("worker", "tasks")
    worker.wait_for("starting")
    worker.signal(number)
    worker.wait_for(f"{number.name}: cancelling the start")
    worker.wait_for("let go of")
    ended_clearly(worker, [128 + number])
    assert "working as" not in worker.said
    assert "Traceback" not in worker.said


def test_a_second_signal_ends_a_start_that_does_not_give_up(on_each_loop: Shell) -> None:
    shell = on_each_loop
    shell.write("tasks.py", SLOW_START.replace("await asyncio.sleep(3600)", "await swallow()") + SWALLOW)
    worker = shell.taskflow("worker", "tasks")
    worker.wait_for("starting")
    worker.signal(signal.SIGINT)
    worker.wait_for("swallowed")
    a_little_later()
    worker.signal(signal.SIGINT)
    ended_clearly(worker, [128 + signal.SIGINT])


def lock(shell: Shell) -> None:
    """The store is created, and locked by another program."""
    shell.run("-m", "taskflow", "resume", "default")
    shell.start("-c", LOCK).wait_for("locked")


def test_a_drain_that_is_stopped_before_its_end_is_not_taken_for_done(tasks: Shell) -> None:
    """`taskflow worker --drain && next` does not go on. The remaining jobs are reported as they are after the winding down."""
    tasks.send("wait.bind()")
    worker = tasks.worker("--drain", "--concurrency", "1")
    worker.wait_for("begun")
    tasks.send("brief.bind(1)")
    worker.signal(signal.SIGTERM)
    worker.wait_for("winding down: 1 running")
    tasks.write("release", "")
    ended_clearly(worker, [128 + signal.SIGTERM])
    assert re.findall("left in .*", worker.said) == ["left in default: 1 ready"]


AUDITS = """
import sys
sys.addaudithook(lambda event, arguments: event == "sqlite3.connect/handle" and print("opens the store", file=sys.stderr, flush=True))
"""


def test_other_commands_end_by_ctrl_c(shell: Shell) -> None:
    """Another program locks the store, so that the command waits."""
    lock(shell)
    shell.write("audits/sitecustomize.py", AUDITS)
    shell.environment["PYTHONPATH"] = str(shell.folder / "audits")
    command = shell.taskflow("pause", "mail")
    command.wait_for("opens the store")
    command.signal(signal.SIGINT)
    # The command waits for an operation that the store's thread has begun, up to its timeout; it may then report the locked store.
    ended_clearly(command, [128 + signal.SIGINT, 3])
    assert "Traceback" not in command.said


# --- jobs that do not end --------------------------------------------------------------------------------------------------


def test_a_worker_ends_whatever_its_jobs_do(shell: Shell) -> None:
    """One job swallows every cancellation, one never returns from its thread, one leaves its own thread behind: 124, and the job is ready
    again, with no attempt used up. The three run at the same time, since each takes `stop_timeout` seconds."""
    shell.write("tasks.py", TASKS)
    workers: dict[str, Running] = {}
    for name in ("swallow", "never_return", "leave_a_thread"):
        shell.environment["TASKFLOW_BROKER"] = f"sqlite:///{name}.db"
        shell.send(f"{name}.bind()")
        workers[name] = shell.worker("--grace", "0.1")
    for worker in workers.values():
        worker.wait_for("begun")
        worker.signal(signal.SIGTERM)
    for name, worker in workers.items():
        ended_clearly(worker, [124])
        assert "Traceback" not in worker.said
        shell.environment["TASKFLOW_BROKER"] = f"sqlite:///{name}.db"
        assert shell.counts() == {"ready": 1}, name


def test_a_worker_whose_descriptors_a_job_has_closed_ends_and_loses_nothing(on_each_loop: Shell) -> None:
    """It could damage other programs' files if it went on. Its jobs run elsewhere when its session has lapsed.

    On uvloop it is libuv that ends the process, by SIGABRT. Python's dump of the other threads, which go on meanwhile, may crash then."""
    shell = on_each_loop
    workers: dict[str, Running] = {}
    for name in ("close_descriptors", "close_descriptors_in_a_thread"):
        shell.environment["TASKFLOW_BROKER"] = f"sqlite:///{name}.db"
        shell.send(f"{name}.bind()")
        workers[name] = shell.taskflow("worker", "tasks", "--ttl", "1")
    for worker in workers.values():
        ended_clearly(worker, [124, -signal.SIGABRT, -signal.SIGSEGV])  # asyncio may have printed something, but no frame of ours
    for name in workers:
        shell.environment["TASKFLOW_BROKER"] = f"sqlite:///{name}.db"
        ended_clearly(shell.taskflow("worker", "tasks", "--ttl", "1", "--drain"), [0])
        assert shell.counts() == {"succeeded": 1}


# --- the forced exit -------------------------------------------------------------------------------------------------------


def test_the_forced_exit_ends_the_process_at_the_first_of_its_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr("os._exit", ends.append)
    with ForcedExit() as forced_exit:
        forced_exit.end_within(3600)
        forced_exit.end_within(0.01)
        forced_exit.end_within(7200)
        deadline = time.monotonic() + 30
        while not ends and time.monotonic() < deadline:
            time.sleep(0.001)
    assert ends == [124]
