"""Two versions of one application at work on one store, as in a rolling deploy. Nothing is lost, looped or burnt."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from taskflow import JobFailed, JobHandle, Status, register_type
from taskflow.app.app import App
from taskflow.model.codec.untyped import NAMED_READERS
from taskflow.model.envelope import Envelope
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Failed, Parked, Succeeded
from taskflow.worker.executor import PARK_FOR_AT_MOST, PARK_LONGEST, PARK_SHORTEST
from tests.unit.app.bench import Bench, loaded

pytestmark = pytest.mark.slow

OLD = """
from taskflow import job

@job(max_attempts=3)
async def greet(name: str) -> str:
    return f"old {name}"

@job
async def shrink(name: str) -> str:
    return f"old {name}"

@job
async def shown(value: object) -> str:
    return str(value)

@job(name="app.tasks.send_mail")
async def mail(to: str) -> str:
    return f"old {to}"
"""

NEW = """
from taskflow import job

@job(max_attempts=3)
async def greet(name: str, *, loud: bool = False) -> str:
    return f"new {name}{'!' if loud else ''}"

@job
async def shrink(name: str, to: int) -> str:
    return f"new {name} {to}"

@job(name="app.tasks.send_letter", aliases=("app.tasks.send_mail",))
async def mail(to: str) -> str:
    return f"new {to}"

@job
async def fresh() -> str:
    return "new"
"""


class Deploy:
    """A sender and a worker of each version, on one store."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.old_app, self.new_app = App(), App()
        self.old = loaded(OLD, app=self.old_app)
        self.new = loaded(NEW, app=self.new_app)


@pytest.fixture
def deploy(bench: Bench) -> Iterator[Deploy]:
    deploy = Deploy(bench)
    with deploy.old_app.using(bench.broker), deploy.new_app.using(bench.broker):
        yield deploy


# --- what an old worker finds ---------------------------------------------------------------------------------------


async def is_parked(deploy: Deploy, handle: JobHandle[str], *words: str, by: App | None = None) -> None:
    """A worker of one version parks it, saying for what and both ways out; no attempt is used, and a worker of the other runs it."""
    parks = by or deploy.old_app
    [verdict] = await deploy.bench.run_all(by=parks)
    assert isinstance(verdict, Parked)
    info = await handle.info()
    assert info is not None
    assert (info.status, info.failures, info.attempt, info.errors) == (Status.SCHEDULED, 0, 1, ())
    for word in (*words, "deploy", "cancel"):
        assert word in (info.waiting_for or "")
    await deploy.bench.pass_time(verdict.after)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app if parks is deploy.new_app else deploy.new_app)
    assert isinstance(verdict, Succeeded)


async def test_an_unknown_job_is_parked(deploy: Deploy) -> None:
    handle = await deploy.new.fresh.delay()
    await is_parked(deploy, handle, "app.tasks.fresh", "worker that knows")
    assert await handle.result() == "new"


async def test_an_unknown_argument_is_parked(deploy: Deploy) -> None:
    handle = await deploy.new.greet.delay("Ada", loud=True)
    await is_parked(deploy, handle, "loud", "other code")
    assert await handle.result() == "new Ada!"


class Version:
    """A class that a newer version of the application registers."""

    def __repr__(self) -> str:
        return "the newer one"


async def test_a_type_that_is_not_registered_yet_is_parked(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    register_type(Version, name="app.Version", encode=lambda version: None, decode=lambda plain: Version())
    handle = await deploy.old.shown.delay({"with": Version()})
    with monkeypatch.context() as without:
        without.delitem(NAMED_READERS, "app.Version")
        [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Parked)
    assert "value[<str>]: has the type 'app.Version', which is not registered here" in verdict.waiting_for
    await deploy.bench.pass_time(verdict.after)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Succeeded)
    assert "the newer one" in await handle.result()


async def test_a_default_is_not_sent(deploy: Deploy) -> None:
    """So that an old worker runs what a new sender sends, as long as nobody uses what is new."""
    handle = await deploy.new.greet.delay("Ada")
    await deploy.bench.run_all(by=deploy.old_app)
    assert await handle.result() == "old Ada"


@pytest.mark.parametrize(
    "newer",
    [
        lambda payload: bytes([payload[0] + 1]) + payload[1:],
        lambda payload: payload[:1] + b"\x02" + payload[2:],
        lambda payload: payload[:1] + b"\x80" + payload[2:],
        lambda payload: payload[:3] + b"\x07" + payload[4:],
    ],
    ids=["version", "encrypted", "unknown flag", "unknown content"],
)
async def test_a_newer_payload_is_parked(deploy: Deploy, newer: Callable[[bytes], bytes]) -> None:
    """Of a newer taskflow, which writes what this one does not read."""
    call = deploy.old.greet.bind("Ada")
    await deploy.bench.broker.enqueue([msgspec.structs.replace(call.envelope, payload=newer(call.envelope.payload))])
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Parked)
    assert "is not known" in verdict.waiting_for


async def test_parking_backs_off_and_ends_after_seven_days(deploy: Deploy) -> None:
    """It doubles from 5 s to 5 minutes; then the job has FAILED, its payload kept, and an operator may send it again."""
    handle = await deploy.new.fresh.delay()
    waits: list[float] = []
    for _ in range(12):
        [verdict] = await deploy.bench.run_all(by=deploy.old_app)
        assert isinstance(verdict, Parked)
        waits.append(verdict.after)
        await deploy.bench.pass_time(verdict.after)
    assert waits[:5] == [PARK_SHORTEST, PARK_SHORTEST, 2 * PARK_SHORTEST, 4 * PARK_SHORTEST, 8 * PARK_SHORTEST]
    assert waits[-1] == PARK_LONGEST

    await deploy.bench.pass_time(PARK_FOR_AT_MOST - sum(waits) - 1)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Parked)
    await deploy.bench.pass_time(verdict.after)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Failed)
    with pytest.raises(JobFailed, match=r"waited 7 days for a worker that knows the job 'app.tasks.fresh'"):
        await handle.result()
    await deploy.bench.broker.console.retry([parse_id(handle.id)])
    await deploy.bench.run_all(by=deploy.new_app)
    assert await handle.result() == "new"


# --- what a new worker finds ----------------------------------------------------------------------------------------


async def fails_at_once(deploy: Deploy, handle: JobHandle[str], *words: str) -> None:
    """No retry is burnt, and the payload is kept for whoever repairs it."""
    [verdict] = await deploy.bench.run_all(by=deploy.new_app)
    assert isinstance(verdict, Failed)
    with pytest.raises(JobFailed) as caught:
        await handle.result()
    for word in words:
        assert word in str(caught.value)
    record = await deploy.bench.world.record(parse_id(handle.id))
    assert record.failures == 1
    assert record.payload


async def test_a_missing_argument_is_parked(deploy: Deploy) -> None:
    """In a rolling deploy, old senders and new workers meet as often as new senders and old workers."""
    handle = await deploy.old.shrink.delay("Ada")
    await is_parked(deploy, handle, "to: is a required argument", "app.tasks.shrink", by=deploy.new_app)
    assert await handle.result() == "old Ada"


async def test_a_missing_argument_fails_after_seven_days(deploy: Deploy) -> None:
    """The error names the argument, and the payload is kept."""
    handle = await deploy.old.shrink.delay("Ada")
    [verdict] = await deploy.bench.run_all(by=deploy.new_app)
    assert isinstance(verdict, Parked)
    await deploy.bench.pass_time(PARK_FOR_AT_MOST)
    await fails_at_once(deploy, handle, "taskflow.NeverKnown", "waited 7 days", "to: is a required argument")


async def test_an_argument_of_another_type_fails_at_once(deploy: Deploy) -> None:
    sender = App()
    other = loaded(OLD.replace("greet(name: str)", "greet(name: int)"), app=sender)
    with sender.using(deploy.bench.broker):
        await fails_at_once(deploy, await other.greet.delay(7), "name: expected str, got int")


async def test_bytes_that_are_nothing_fail_at_once(deploy: Deploy) -> None:
    for payload in (b"", b"\x01", b"\x01\x00\x00\x01\xc1", b"\x01\x00\x00\x01\x93"):
        envelope = Envelope(id=deploy.old_app.new_id(), job="app.tasks.greet", payload=payload)
        await deploy.bench.broker.enqueue([envelope])
        [verdict] = await deploy.bench.run_all(by=deploy.new_app)
        assert isinstance(verdict, Failed)


async def test_a_renamed_job_is_run_under_its_old_name(deploy: Deploy) -> None:
    """And the old worker parks what is sent under the new one."""
    handle = await deploy.old.mail.delay("Ada")
    await deploy.bench.run_all(by=deploy.new_app)
    assert await handle.result() == "new Ada"
    await is_parked(deploy, await deploy.new.mail.delay("Bob"), "app.tasks.send_letter")


async def test_a_worker_that_knows_neither_leaves_its_neighbours_alone(deploy: Deploy) -> None:
    strange, known = await deploy.new.fresh.delay(), await deploy.old.greet.delay("Ada")
    await deploy.bench.run_all(by=deploy.old_app)
    assert await known.result() == "old Ada"
    assert await strange.status() is Status.SCHEDULED


# --- with processes -------------------------------------------------------------------------------------------------

MAIN = """
if __name__ == "__main__":
    print(greet.delay_sync("Main").id)
"""

# A worker whose parking does not take five seconds.
QUICK = """
import sys
from taskflow.cli.main import main
from taskflow.worker import executor

executor.PARK_SHORTEST = executor.PARK_LONGEST = 0.1
sys.exit(main())
"""


class Folder:
    """An application's folder, with a file as the store, where one version after the other is installed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        (folder / "app").mkdir()

    def install(self, source: str) -> None:
        (self.path / "app" / "tasks.py").write_text(source)

    def python(self, *command: str) -> str:
        ran = subprocess.run(
            [sys.executable, *command], cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout.strip()

    def ask(self, job_id: str, expression: str) -> str:
        return self.python("-c", f"from taskflow import JobHandle, run_sync; handle = JobHandle.of({job_id!r}); print({expression})")

    @property
    def environment(self) -> dict[str, str]:
        # Two versions within one second of each other: no byte code of the first may stand in for the second.
        return {**os.environ, "TASKFLOW_BROKER": "sqlite:///queue.db", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}

    @contextmanager
    def worker(self) -> Iterator[None]:
        command = [sys.executable, "-c", QUICK, "worker", "app.tasks"]
        process = subprocess.Popen(command, cwd=self.path, env=self.environment, stderr=subprocess.PIPE, text=True)
        try:
            yield
        finally:
            process.terminate()
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said

    def until_parked(self, *job_ids: str) -> None:
        waiting = f"[run_sync(JobHandle.of(each).info()).waiting_for for each in {job_ids!r}]"
        script = f"import time; from taskflow import JobHandle, run_sync\nwhile not all({waiting}): time.sleep(0.02)"
        self.python("-c", script)


def test_an_old_worker_hands_over_to_a_new_one(tmp_path: Path) -> None:
    """Real workers: a new sender's jobs wait while the old one works, and are run by the new one, as is what has been renamed."""
    folder = Folder(tmp_path)
    folder.install(NEW)
    unknown, louder, plain = folder.python(
        "-c",
        "from app.tasks import fresh, greet; "
        "[print(call.id) for call in (fresh.delay_sync(), greet.delay_sync('Ada', loud=True), greet.delay_sync('Bob'))]",
    ).splitlines()

    folder.install(OLD)
    with folder.worker():
        assert folder.ask(plain, "run_sync(handle.result(timeout=30))") == "old Bob"
        folder.until_parked(unknown, louder)
    renamed = folder.python("-c", "from app.tasks import mail; print(mail.delay_sync('Ada').id)")

    folder.install(NEW)
    with folder.worker():
        for job_id, result in ((unknown, "new"), (louder, "new Ada!"), (renamed, "new Ada")):
            assert folder.ask(job_id, "run_sync(handle.result(timeout=30))") == result


def test_what_a_main_module_sends_is_run_by_a_worker_that_imports_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.install(OLD + MAIN)
    sent = [folder.python("-m", "app.tasks"), folder.python("app/tasks.py")]
    began = time.monotonic()
    with folder.worker():
        for job_id in sent:
            assert folder.ask(job_id, "run_sync(handle.result(timeout=30))") == "old Main"
    assert time.monotonic() - began < 30
