"""Jobs that run in a worker's child processes: how they end, and that nothing they do harms other jobs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskflow import DeclarationError, JobCancelled, JobHandle, Progress, Status, Worker, configure, enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.model.clock import start_thread
from taskflow.model.codec.function import FunctionCodec
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.ids import id_text
from taskflow.model.verdict import RunEnding
from taskflow.worker.children import syscalls
from taskflow.worker.children.messages import ChildDied
from taskflow.worker.children.process import Child, ChildOptions, ChildSpec
from taskflow.worker.lease_table import HeldLease
from tests.cli.processes import Shell
from tests.support.waiting import until_running
from tests.worker import child_jobs as jobs
from tests.worker.child_scene import HANDSHAKE, TIMEOUT, Lines, a_worker, failure, gone, is_alive, read, written

pytestmark = pytest.mark.usefixtures("memory_broker")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
async def worker(lines: Lines) -> AsyncIterator[Worker]:
    async with a_worker(lines) as begun:
        yield begun


# --- what a run comes to ------------------------------------------------------------------------------------------------


async def test_plain_and_async_functions_run_in_another_process_which_is_used_again(worker: Worker) -> None:
    first = await (await jobs.pid.delay()).result(TIMEOUT)
    assert first != os.getpid()
    assert await (await jobs.pid_of_async.delay()).result(TIMEOUT) == first
    assert await (await jobs.pid.delay()).result(TIMEOUT) == first


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")], ids=type)
async def test_a_shortage_of_the_machine_costs_no_attempt(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """For a while the worker tries to start the child again; the log says so once."""
    refusals = iter([error] * 3)

    def spawn_later(*args: Any, **more: Any) -> syscalls.Process:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return syscalls.spawn(*args, **more)

    monkeypatch.setattr("taskflow.worker.children.process.spawn", spawn_later)
    with caplog.at_level(logging.WARNING, "taskflow.worker"):
        handle = await jobs.pid.options(max_attempts=1).delay()
        async with a_worker(lines):
            assert await handle.result(TIMEOUT) != os.getpid()
    assert [message for message in caplog.messages if "cannot be started" in message] == [
        f"a child process cannot be started: {error}; trying again for at most 60 s"
    ]


async def test_an_exception_is_a_failure_with_its_own_traceback_and_is_retried(worker: Worker) -> None:
    handle = await jobs.fails.delay()
    failed = await failure(handle)
    assert (failed.type, failed.message) == ("ValueError", "attempt 2 \ud800")
    assert 'raise ValueError(f"attempt {ctx.attempt} \\ud800")' in failed.traceback
    assert "taskflow/worker" not in failed.traceback
    info = await handle.info()
    assert info is not None
    assert [error.attempt for error in info.errors] == [1, 2]


@pytest.mark.parametrize("is_missing", [False, True], ids=["unknown argument", "missing argument"])
async def test_a_call_of_another_version_is_parked(worker: Worker, memory_broker: MemoryBroker, *, is_missing: bool) -> None:
    """The payload is decoded in the child, and the worker adopts its answer."""

    def newer(n: int) -> None: ...

    def older() -> None: ...

    payload = FunctionCodec(older).encode_arguments((), {}) if is_missing else FunctionCodec(newer).encode_arguments((1,), {})
    job_id = default_app().new_id()
    await memory_broker.enqueue([Envelope(id=job_id, job=jobs.describe.name if is_missing else jobs.pid.name, payload=payload)])
    handle = JobHandle.of(id_text(job_id))
    async with asyncio.timeout(TIMEOUT):
        while (info := await handle.info()) is None or info.waiting_for is None:  # noqa: ASYNC110  # nobody rings for it
            await asyncio.sleep(0.01)
    assert (info.status, info.failures) == (Status.SCHEDULED, 0)
    assert "a worker with other code" in info.waiting_for


async def test_the_state_of_the_lifespan_is_not_there_and_says_so(lines: Lines) -> None:
    @contextlib.asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        yield "a resource"

    configure(lifespan=resources)
    async with a_worker(lines):
        failed = await failure(await jobs.reads_state.delay())
    assert "create what it needs in the job itself" in failed.message


# --- its death ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("segfault", "has died: SIGSEGV"),
        ("abort", "has died: SIGABRT"),
        ("kill", "has died: SIGKILL$"),
        ("exit", "has died: exit code 7"),
        (
            "hang up",
            "has closed its connection to the worker, and was killed|has died: exit code 70",
        ),  # depends on which side notices first
        ("noise", "sent a message of .*, and was killed"),
    ],
)
async def test_a_child_that_dies_fails_its_run_alone_and_is_retried_whatever_retry_on_says(worker: Worker, how: str, cause: str) -> None:
    before = await (await jobs.pid.delay()).result(TIMEOUT)
    handle = await jobs.dies.delay(how)
    failed = await failure(handle)
    assert failed.type == "taskflow.ChildDied"
    assert re.search(cause, failed.message)
    info = await handle.info()
    assert info is not None
    assert (info.failures, info.crashes) == (2, 0), "the worker lives and knows the cause: it is no crash"
    after = await (await jobs.pid.delay()).result(TIMEOUT)
    assert after != before
    await gone(before)


async def test_a_segfault_leaves_the_place_where_it_happened(worker: Worker) -> None:
    failed = await failure(await jobs.dies.options(max_attempts=1).delay("segfault"))
    assert "child_jobs.py" in failed.traceback
    assert "in dies" in failed.traceback


@pytest.mark.parametrize("which", [jobs.endless, jobs.endless_async], ids=["plain", "async"])
async def test_the_timeout_kills(worker: Worker, tmp_path: Path, which: Any) -> None:
    handle = await which.options(timeout=1.0).delay(str(tmp_path / "note"))
    failed = await failure(handle)
    [pid] = await written(tmp_path / "note")
    assert not is_alive(pid)
    assert "longer than its timeout of 1 s" in failed.message
    info = await handle.info()
    assert info is not None
    assert info.errors[-1].ending is RunEnding.TIMED_OUT


async def test_a_cancel_kills_the_child_and_the_processes_that_it_started(worker: Worker, tmp_path: Path) -> None:
    handle = await jobs.begets.delay(str(tmp_path / "note"))
    pids = await written(tmp_path / "note")
    assert await handle.cancel() is Status.RUNNING
    with pytest.raises(JobCancelled):
        await handle.result(TIMEOUT)
    assert not is_alive(pids[0])
    await gone(*pids)


async def test_a_process_that_a_child_forked_does_not_hide_the_childs_death(worker: Worker, tmp_path: Path) -> None:
    failed = await failure(await jobs.forks_and_dies.delay(str(tmp_path / "note")))
    assert "has died: exit code 3" in failed.message
    await gone(*await written(tmp_path / "note"))


async def test_winding_down_hands_back_running_and_waiting_jobs(lines: Lines, tmp_path: Path) -> None:
    async with a_worker(lines, grace=0.1, at_once=1):
        running = await jobs.endless.delay(str(tmp_path / "note"))
        [pid] = await written(tmp_path / "note")
        waiting = await jobs.pid.delay()
        await until_running(waiting)
    assert not is_alive(pid)
    for handle in (running, waiting):
        info = await handle.info()
        assert info is not None
        assert (info.status, info.failures) == (Status.READY, 0)


async def test_a_job_that_waits_for_a_child_can_be_cancelled_and_its_timeout_has_not_begun(lines: Lines, tmp_path: Path) -> None:
    async with a_worker(lines, at_once=1):
        first = await jobs.endless.options(timeout=2.0).delay(str(tmp_path / "note"))
        await written(tmp_path / "note")
        patient, cancelled = await jobs.pid.options(timeout=0.5, max_attempts=1).delay(), await jobs.pid.delay()
        await until_running(cancelled)
        await cancelled.cancel()
        with pytest.raises(JobCancelled):
            await cancelled.result(1.5)
        await failure(first)
        assert await patient.result(TIMEOUT) > 0


# --- how many, how long -------------------------------------------------------------------------------------------------


async def test_more_jobs_than_slots_wait_for_their_turn_and_all_run(lines: Lines, tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with a_worker(lines, at_once=2):
        handles = await enqueue(jobs.overlaps.bind(str(note)) for _ in range(12))
        assert [await handle.result(TIMEOUT) for handle in handles] == [1.0] * 12
    at_once, most = 0, 0
    for sign in note.read_text():
        at_once += 1 if sign == "+" else -1
        most = max(most, at_once)
    assert (at_once, most) == (0, 2)


async def test_a_child_is_replaced_after_so_many_runs(lines: Lines) -> None:
    async with a_worker(lines, at_once=1, max_runs=3):
        pids = [await (await jobs.pid.delay()).result(TIMEOUT) for _ in range(7)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
        await gone(pids[0], pids[3])


async def test_a_child_that_has_grown_is_replaced(lines: Lines) -> None:
    async with a_worker(lines, at_once=1, max_growth=32 << 20):
        small = [await (await jobs.grows.delay(1)).result(TIMEOUT) for _ in range(2)]
        large = await (await jobs.grows.delay(64)).result(TIMEOUT)
        assert small == [large, large]
        assert await (await jobs.pid.delay()).result(TIMEOUT) != large
        await gone(large)


async def test_signals_to_all_processes_of_a_service_are_left_to_the_worker(worker: Worker) -> None:
    assert await (await jobs.outlives_signals.delay()).result(TIMEOUT)


# --- what it says -------------------------------------------------------------------------------------------------------


async def test_a_mebibyte_on_both_streams_blocks_neither_process(worker: Worker, lines: Lines) -> None:
    """This also holds while the worker's loop is busy. Every line arrives, in order, and before the run's end."""
    handle = await jobs.prints.delay(1024, 1000)
    time.sleep(1.0)  # noqa: ASYNC251  # the loop is busy
    assert await handle.result(TIMEOUT) == 1024
    for stream, letter in (("stdout", "o"), ("stderr", "e")):
        assert lines.of(stream) == [f"{number} ".ljust(1000, letter) for number in range(1024)]


async def test_progress_is_seen_while_it_runs_and_the_last_of_it_after(worker: Worker, tmp_path: Path) -> None:
    handle = await jobs.reports.delay(str(tmp_path / "note"))
    async with asyncio.timeout(TIMEOUT):
        while (info := await handle.info()) is None or info.progress != Progress(0.75, "waits"):  # noqa: ASYNC110  # it is for a person
            await asyncio.sleep(0.01)
    (tmp_path / "note").touch()
    await handle.result(TIMEOUT)


# --- where it is found --------------------------------------------------------------------------------------------------


async def test_an_import_error_in_the_child_is_a_failure_that_shows_it(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy may change the files under a running worker. The next child imports the files as they are then."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "shop_of_children.py"
    right = "import os\nfrom taskflow import Backoff, job\n@job(runs_in='process', max_attempts=1)\ndef sell() -> int: return os.getpid()\n"
    module.write_text(right)
    import shop_of_children as shop  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    async with a_worker(lines):
        module.write_text("import nothing_of_the_kind\n")
        failed = await failure(await shop.sell.delay())
        assert failed.type == "taskflow.ChildFailed"
        assert "shop_of_children cannot be imported in a child process: ModuleNotFoundError: No module named 'noth" in failed.message
        assert "import nothing_of_the_kind" in failed.traceback
        module.write_text("")
        assert "no job 'shop_of_children.sell' in" in (await failure(await shop.sell.delay())).message
        module.write_text(right)
        assert await (await shop.sell.delay()).result(TIMEOUT) != os.getpid()


async def test_an_import_that_hangs_is_cut_off(lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "slow_of_children.py"
    module.write_text("from taskflow import job\n@job(runs_in='process', max_attempts=1)\ndef sell() -> int: return 1\n")
    import slow_of_children as slow  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    module.write_text("import time\ntime.sleep(60)\n")
    async with a_worker(lines, start_within=4.0):
        failed = await failure(await slow.sell.delay())
    assert "did not import slow_of_children within 4 s" in failed.message


async def test_a_child_sends_to_no_broker_that_only_looks_like_the_workers(worker: Worker) -> None:
    failed = await failure(await jobs.sends.delay())
    assert failed.type == "taskflow.ConfigurationError"
    assert "jobs of the memory broker can be sent only from the worker's process" in failed.message


async def test_a_child_starts_no_worker(worker: Worker) -> None:
    assert '`if __name__ == "__main__":`' in (await failure(await jobs.starts_a_worker.delay())).message


# --- processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as made:
        made.environment["PYTHONPATH"] = str(ROOT)
        yield made


TASKS = """
import ctypes
import logging
import os
import time
from pathlib import Path
from taskflow import JobContext, enqueue_sync, job

Path("imported").open("a").write(f"{os.getpid()}\\n")

@job(runs_in="process")
def note(text: str) -> None:
    print("noting", text)
    Path("ledger").open("a").write(f"{text} {os.getpid()}\\n")

@job(runs_in="process")
def sends(text: str) -> None:
    note.delay_sync(text)

@job(runs_in="process")
def endless(how: str) -> None:
    Path("pid.new").write_text(str(os.getpid()))
    Path("pid.new").rename("pid")
    while how == "computes":
        pass
    while how == "holds the interpreter":
        ctypes.PyDLL(None).sleep(60)
    while how == "waits" and not Path("go").exists():
        time.sleep(0.01)
"""


def test_a_job_of_the_command_line_runs_in_a_child_that_can_send(shell: Shell) -> None:
    shell.write("tasks.py", TASKS)
    shell.send("sends.bind('a')", "note.bind('b')")
    (shell.folder / "imported").unlink()
    said = shell.run("-m", "taskflow", "worker", "tasks", "--drain")
    assert sorted(line.split()[0] for line in shell.ledger()) == ["a", "b"]
    assert "stdout: noting a" in said
    imported = read(shell.folder / "imported")
    assert len(imported) == len(set(imported)), "each process has imported the application once"


@pytest.mark.parametrize("how", ["computes", "holds the interpreter", "is idle"])
async def test_no_child_outlives_a_worker_that_is_killed(shell: Shell, how: str) -> None:
    shell.write("tasks.py", TASKS)
    worker = shell.worker()
    shell.send(f"endless.bind({how!r})")
    [pid] = await written(shell.folder / "pid")
    if how == "is idle":
        worker.wait_for("succeeded")
    worker.process.kill()
    await gone(pid)


async def test_a_ctrl_c_in_the_terminal_is_the_workers_alone(shell: Shell) -> None:
    """The whole process group gets it. The run ends in its time, and so does the worker."""
    shell.write("tasks.py", TASKS)
    started = shell.start("-m", "taskflow", "worker", "tasks", start_new_session=True)
    started.wait_for("working as")
    shell.send("endless.bind('waits')")
    await written(shell.folder / "pid")
    os.killpg(started.process.pid, signal.SIGINT)
    started.wait_for("winding down: 1 running")
    (shell.folder / "go").touch()
    assert started.end() == 0
    assert "succeeded" in started.said


async def test_a_child_whose_worker_hangs_up_ends_at_once(tmp_path: Path) -> None:
    """Without help from the system, the closed connection shows that the worker is gone."""
    child = await Child.start(ChildSpec(HANDSHAKE, ChildOptions(exit_within=TIMEOUT), lambda _: None, start_thread))
    await child.prepare(jobs.__name__, None)
    payload = jobs.endless.codec.encode_arguments((str(tmp_path / "note"),), {})
    lease = Lease(envelope=Envelope(id=bytes(16), job=jobs.endless.name, payload=payload), epoch=1, claim=ClaimId(b"", 1, 1), created_at=0)
    running = asyncio.create_task(child.run(HeldLease(lease), jobs.__name__))
    [pid] = await written(tmp_path / "note")
    child.retire()
    async with asyncio.timeout(5):
        assert await child.ended == -signal.SIGKILL
    assert (pid, is_alive(pid)) == (child.pid, False)
    with pytest.raises(ChildDied):
        await running


SCRIPT = """
import asyncio
import logging
import os
from taskflow import Worker, configure, job

configure(broker="sqlite:///script.db")

@job(runs_in="process")
def pid() -> int:
    return os.getpid()

async def main() -> None:
    async with Worker(concurrency=2):
        handle = await pid.delay()
        print("another" if await handle.result(30) != os.getpid() else "the same", handle)

GUARD
"""
GUARDED = SCRIPT.replace("GUARD", 'if __name__ == "__main__":\n    asyncio.run(main())')


@pytest.mark.parametrize("how", [("script.py",), ("-m", "shop.script")], ids=["file", "module"])
def test_a_job_that_is_declared_in_the_main_module(shell: Shell, how: tuple[str, ...]) -> None:
    shell.write("script.py", GUARDED)
    shell.write("shop/script.py", GUARDED)
    assert shell.run(*how).startswith("another <JobHandle ")


def test_a_main_module_that_would_start_a_worker_in_its_child_is_reported(shell: Shell) -> None:
    shell.write("script.py", SCRIPT.replace("GUARD", "asyncio.run(main())").replace("@job(", "@job(max_attempts=1, "))
    assert '`if __name__ == "__main__":`' in shell.run("script.py", code=1)


@pytest.mark.parametrize("how", [("-c",)])
def test_a_job_that_no_child_can_import_is_refused_at_its_declaration(shell: Shell, how: tuple[str, ...]) -> None:
    said = shell.run(*how, "from taskflow import job\n@job(runs_in='process')\ndef f() -> None: ...", code=1)
    assert "move it into a file, and import it" in said


def test_a_function_inside_a_function_is_refused_where_it_is_declared() -> None:
    with pytest.raises(DeclarationError, match="not inside a function"):

        @job(name="tests.children.local", runs_in="process")
        def local() -> None: ...


def _plain() -> None: ...


async def _async() -> None: ...


async def test_more_than_a_run_may_say_is_counted_and_dropped(worker: Worker, lines: Lines) -> None:
    assert await (await jobs.prints.delay(3000, 1000)).result(TIMEOUT) == 3000
    assert lines.of("stdout")[-1] == f"... and {1001 * (3000 - len(lines.of('stdout')) + 1):,} more characters, which are not shown"
    assert sum(len(line) + 1 for line in lines.of("stdout")) < 1.1 * (1 << 20)
    lines.printed.clear()
    assert await (await jobs.prints.delay(1, 10)).result(TIMEOUT) == 1
    assert lines.of("stdout") == ["0 oooooooo"]


async def test_native_writes_are_kept_too(worker: Worker, lines: Lines) -> None:
    await (await jobs.prints_natively.delay()).result(TIMEOUT)
    assert set(lines.of("stdout")) == {"by the system: \ufffd", "by the library"}
    assert lines.of("stderr") == ["unended"]


@pytest.mark.parametrize("runs_in", ["fork", "loop", 1, ["process"]])
def test_a_place_that_is_none_is_refused_where_it_is_declared(runs_in: Any) -> None:
    with pytest.raises(DeclarationError, match="runs_in="):
        job(name="tests.children.misplaced", runs_in=runs_in)(_plain)


def test_an_async_function_does_not_run_in_a_thread() -> None:
    with pytest.raises(DeclarationError, match="runs in the event loop"):
        job(name="tests.children.misplaced", runs_in="thread")(_async)
