"""Event loops that start and end, threads without one, processes that fork: each sends, and nothing is lost or hangs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskflow import JobHandle, enqueue_sync, run_sync
from taskflow.app.app import default_app
from taskflow.app.portal import INTERRUPTED, STOP_TIMEOUT
from taskflow.broker.protocol import Broker
from taskflow.model.session import Session
from taskflow.model.verdict import Settlement, Succeeded
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis
from tests.support.world import World
from tests.unit.app.jobs import add

pytestmark = pytest.mark.slow


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker without its own loop: the tests here bring theirs."""
    harness: type[StoreHarness] = request.param
    world = World(harness)
    with default_app().using(world.broker):
        yield world.broker
    asyncio.run(world.close())


def ids_in(broker: Broker) -> set[str]:
    async def claim() -> set[str]:
        session = Session(id=os.urandom(16), name="reader", ttl=1e6)
        await broker.register(session)
        return {JobHandle(default_app(), lease.envelope.id, None).id for lease in await broker.claim(session.id, 1, [], 10_000)}

    return asyncio.run(claim())


# --- loops ----------------------------------------------------------------------------------------------------------


def test_one_asyncio_run_after_the_other(broker: Broker) -> None:
    """A broker outlives the loops that use it; what belongs to a loop ends with it."""
    handles = [asyncio.run(add.delay(n)) for n in range(5)]
    assert {handle.id for handle in handles} == ids_in(broker)


def test_a_handle_of_one_loop_is_asked_in_another(broker: Broker) -> None:
    handle = asyncio.run(add.delay(1, 2))

    async def work() -> None:
        session = Session(id=os.urandom(16), name="worker", ttl=1e6)
        await broker.register(session)
        [lease] = await broker.claim(session.id, 1, [], 1)
        verdict = Succeeded(add.codec.encode_result(3))
        await broker.settle([Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict)])

    asyncio.run(work())
    assert asyncio.run(handle.result(timeout=30)) == 3
    assert run_sync(handle.result(timeout=30)) == 3


def test_connections_of_closed_loops_are_let_go(broker: Broker) -> None:
    for n in range(20):
        asyncio.run(add.delay(n))
    assert len(default_app()._clients) <= 2


# --- threads --------------------------------------------------------------------------------------------------------


def test_delay_sync_from_eight_threads(broker: Broker) -> None:
    """One loop serves all threads."""
    start = threading.Barrier(8)

    def send() -> list[str]:
        start.wait()
        return [add.delay_sync(n).id for n in range(25)]

    with ThreadPoolExecutor(8) as threads:
        sent = [job_id for each in [threads.submit(send) for _ in range(8)] for job_id in each.result()]
    assert len(sent) == len(set(sent)) == 200
    assert ids_in(broker) == set(sent)
    assert [thread.name for thread in threading.enumerate()].count("taskflow-portal") == 1


# --- a running loop, as a notebook has one --------------------------------------------------------------------------


async def test_inside_of_a_running_loop_one_awaits() -> None:
    """A call that would block the loop raises an error that says what to write instead; awaiting works."""
    world = World(BROKERS[0])
    with default_app().using(world.broker), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match=r"delay_sync\(\) was called inside a running event loop.*await \.delay\(\)"):
            add.delay_sync(1)
        with pytest.raises(RuntimeError, match=r"enqueue_sync\(\).*await enqueue\(\)"):
            enqueue_sync([])
        with pytest.raises(RuntimeError, match=r"run_sync\(\).*await"):
            run_sync(add.delay(1))
        assert (await add.delay(1)).is_new
    assert caught == [], "no coroutine was left that nobody has awaited"
    await world.close()


def test_outside_of_a_loop_a_coroutine_says_what_to_use() -> None:
    """The coroutine is stepped by hand, or by another framework's loop."""
    coroutine = add.delay(1)
    with pytest.raises(RuntimeError, match=r"no event loop is running here: use \.delay_sync\(\), enqueue_sync\(\) or run_sync\(\)"):
        coroutine.send(None)


# --- forks ----------------------------------------------------------------------------------------------------------

TASKS = """
from taskflow import job

@job
async def add(x: int, y: int = 1) -> int:
    return x + y
"""

BEGIN = """
import asyncio, os, sys, threading
from app.tasks import add
from taskflow import run_sync

def in_a_child(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            sys.stdout.flush()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid

def check(*pids):
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def say(handle):
    os.write(1, f"{handle.id}\\n".encode())  # in one piece: threads and processes share the pipe
"""

ASYNC = """
async def main():
    say(await add.delay(1))
    async def in_child():
        say(await add.delay(2))
        say(await add.delay(3))
    check(in_a_child(lambda: asyncio.run(in_child())))
    say(await add.delay(4))
asyncio.run(main())
"""

# gunicorn --preload does this: the application is imported, and may send, before the workers are forked; they serve threads, and end.
PRELOAD = """
say(add.delay_sync(1))
def worker():
    threads = [threading.Thread(target=lambda: say(add.delay_sync(2))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
pids = [in_a_child(worker) for _ in range(4)]
say(add.delay_sync(3))
check(*pids)
say(add.delay_sync(4))
"""

# A child that ends normally, with its exit handlers: it must not wait for its parent's threads.
WHOLE_LIFE = """
say(add.delay_sync(1))
pid = os.fork()
say(add.delay_sync(2))
if pid:
    check(pid)
    say(add.delay_sync(3))
"""

# Parent and child share nothing that one of them could break: the parent waits for results while children start and end.
WAITING = """
handle = add.delay_sync(1)
say(handle)
waiting = threading.Thread(target=lambda: print(run_sync(handle.status())))
check(*[in_a_child(lambda: run_sync(handle.status())) for _ in range(3)])
waiting.start()
waiting.join(30)
assert not waiting.is_alive()
say(add.delay_sync(2))
"""


@pytest.mark.parametrize(
    ("script", "sent"),
    [(ASYNC, 4), (PRELOAD, 15), (WHOLE_LIFE, 4), (WAITING, 2)],
    ids=["async", "preload", "whole life", "waiting"],
)
def test_a_fork_between_two_sends(tmp_path: Path, script: str, sent: int) -> None:
    """Each process starts afresh; everything that was sent is in the one file, once."""
    said = run_script(tmp_path, BEGIN + script)
    ids = [line for line in said.splitlines() if len(line) == 36]
    assert len(ids) == len(set(ids)) == sent
    assert claimed_from(tmp_path / "queue.db") == set(ids)


def url_of(store: str) -> str:
    match store:
        case "redis":
            return f"{shared_redis().url}?namespace=test-loops"
        case "postgres":
            return f"{shared_postgres().url()}?namespace=test-loops&tls=disable"
        case _:
            return "sqlite:///queue.db"


# Records which thread imports a module.
NOTE_IMPORTS = """
import threading
importers = []
class Noted:
    def find_spec(self, name, path=None, target=None):
        importers.append((threading.current_thread() is threading.main_thread(), name))
"""


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
@pytest.mark.parametrize("is_configured", [True, False], ids=["configured", "from the environment"])
def test_no_thread_imports_the_store_while_the_process_may_fork(tmp_path: Path, store: str, is_configured: bool) -> None:
    """The children of such a fork waited for ever for the import lock of a thread that they do not have. A process in which any thread may
    be the first to send calls `configure()`."""
    configure = f"taskflow.configure(broker={url_of(store)!r})" if is_configured else ""
    script = f"""
    import sys, taskflow
    add = taskflow.job(name="add")(lambda x: x)
    {configure}
    sys.meta_path.insert(0, Noted())
    handle = add.delay_sync(1)
    of_store = "taskflow.broker" if {is_configured} else ()
    print(taskflow.run_sync(handle.status()), [name for is_main, name in importers if not is_main or name.startswith(of_store)])
    """
    said = run_script(tmp_path, NOTE_IMPORTS + textwrap.dedent(script), TASKFLOW_BROKER="memory://" if is_configured else url_of(store))
    assert said == "ready []\n"


def run_script(folder: Path, script: str, **variables: str) -> str:
    """Run the script. Warnings are errors, except Python's own (3.12) about forks in a process with threads, which is what is tested."""
    (folder / "app").mkdir()
    (folder / "app" / "tasks.py").write_text(TASKS)
    flags = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    environment = {**os.environ, "TASKFLOW_BROKER": "sqlite:///queue.db", "PYTHONPATH": ".", **variables}
    command = [sys.executable, *flags, "-c", textwrap.dedent(script)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def claimed_from(path: Path) -> set[str]:
    from taskflow.broker.sqlite import SqliteBroker

    broker = SqliteBroker(path)
    try:
        return ids_in(broker)
    finally:
        asyncio.run(broker.close())


# --- the end --------------------------------------------------------------------------------------------------------


BEFORE = """
import atexit
def try_to(name, function):
    try:
        print(name, function().id and "sent")
    except RuntimeError as error:
        print(name, error)
atexit.register(lambda: try_to("registered first:", lambda: add.delay_sync(1)))
"""

AT_EXIT = """
import taskflow
taskflow.configure(broker={0!r})
class Last:
    def __del__(self):
        try_to("destructor:", lambda: add.delay_sync(1))
last = Last()
atexit.register(lambda: try_to("registered last:", lambda: add.delay_sync(2)))
{1}
"""


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
@pytest.mark.parametrize("has_sent", [True, False], ids=["has sent", "has not sent"])
def test_a_call_sent_while_python_exits_arrives_or_is_refused_at_once(tmp_path: Path, store: str, has_sent: bool) -> None:
    """It hung for ever, or reported an unavailable broker. Python stops threads before it runs destructors."""
    script = BEFORE + BEGIN + AT_EXIT.format(url_of(store), "add.delay_sync(3)" if has_sent else "")

    last, first, destructor = run_script(tmp_path, script).splitlines()

    assert last == "registered last: sent"
    assert (first, destructor) == (f"registered first: {TOO_LATE}", f"destructor: {TOO_LATE}")


THREAD_THAT_OUTLIVES = """
import threading
def send():
    threading.main_thread().join()
    print(add.delay_sync(1).id and "sent")
threading.Thread(target=send).start()
"""


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
def test_a_thread_that_outlives_the_main_one_can_send_first(tmp_path: Path, store: str) -> None:
    """It failed with "can't register atexit after shutdown", and the job was not sent."""
    assert run_script(tmp_path, BEGIN + THREAD_THAT_OUTLIVES, TASKFLOW_BROKER=url_of(store)) == "sent\n"


INTERRUPTS = """
import threading, time
def interrupt(frame, event, argument):
    if frame.f_code.co_name == PLACE and threading.current_thread().name == THREAD:
        sys.setprofile(None)
        began = time.monotonic()
        try:
            add.delay_sync(1)
        except RuntimeError as error:
            print(error)
        if time.monotonic() - began > 4:
            print("slow")
threading.setprofile(interrupt)
sys.setprofile(interrupt)
print(add.delay_sync(2).id and "sent")
"""


@pytest.mark.parametrize(("thread", "place"), [("MainThread", "_open_sqlite"), ("taskflow-sqlite-writer", "begin")])
def test_a_destructor_that_interrupts_taskflow_itself_is_refused_at_once(tmp_path: Path, thread: str, place: str) -> None:
    """Python collects garbage in any thread, at any time, as it calls a profiler. In the first send a destructor that sends hung for ever,
    waiting for a lock of its own thread. In the store's thread it waited for itself, and meanwhile the program's own calls failed."""
    place_of = f"PLACE, THREAD = {place!r}, {thread!r}\n"
    assert run_script(tmp_path, BEGIN + place_of + INTERRUPTS) == f"{INTERRUPTED}\nsent\n"


TOO_LATE = "taskflow can no longer reach the broker, because Python is exiting: do this before the program ends"


def test_a_script_that_has_sent_ends_at_once(tmp_path: Path) -> None:
    """The portal's thread holds up no process; calls that wait in it when the script ends are cancelled."""
    script = """
    import concurrent.futures
    handle = add.delay_sync(1)
    def wait():
        try:
            run_sync(handle.result())
        except concurrent.futures.CancelledError:
            print("cancelled", flush=True)
    threading.Thread(target=wait, daemon=True).start()
    print(run_sync(handle.status()))
    """
    began = time.monotonic()
    said = run_script(tmp_path, BEGIN + textwrap.dedent(script))
    assert said.splitlines()[0] == "ready"
    assert time.monotonic() - began < STOP_TIMEOUT
