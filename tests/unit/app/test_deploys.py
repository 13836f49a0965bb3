"""Two versions of one application work on one store, as in a rolling deploy. No job is lost, loops or uses up its attempts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from taskflow import JobFailed, JobHandle, Status, register_type
from taskflow.app.app import App
from taskflow.model.codec.untyped import NAMED_READERS
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Failed, Parked, Succeeded
from taskflow.worker.executor import MAX_PARK_PAUSE, MAX_PARK_TIME, MIN_PARK_PAUSE
from tests.unit.app.bench import Bench, loaded

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
    """Assert that a worker of one version parks it, naming the cause and both solutions; no attempt is used, and the other version's worker
    runs it."""
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


async def test_a_newer_payload_is_parked(deploy: Deploy) -> None:
    """A newer taskflow wrote it, in a form that this one does not read."""
    call = deploy.old.greet.bind("Ada")
    payload = bytes([call.envelope.payload[0] + 1]) + call.envelope.payload[1:]
    await deploy.bench.broker.enqueue([msgspec.structs.replace(call.envelope, payload=payload)])
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Parked)
    assert "is not known" in verdict.waiting_for


async def test_parking_backs_off_and_ends_after_seven_days(deploy: Deploy) -> None:
    """The wait doubles from 5 s to 5 minutes; in the end the job is FAILED, its payload kept, and an operator may send it again."""
    handle = await deploy.new.fresh.delay()
    waits: list[float] = []
    for _ in range(12):
        [verdict] = await deploy.bench.run_all(by=deploy.old_app)
        assert isinstance(verdict, Parked)
        waits.append(verdict.after)
        await deploy.bench.pass_time(verdict.after)
    assert waits[:5] == [MIN_PARK_PAUSE, MIN_PARK_PAUSE, 2 * MIN_PARK_PAUSE, 4 * MIN_PARK_PAUSE, 8 * MIN_PARK_PAUSE]
    assert waits[-1] == MAX_PARK_PAUSE

    await deploy.bench.pass_time(MAX_PARK_TIME - sum(waits) - 1)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Parked)
    await deploy.bench.pass_time(verdict.after)
    [verdict] = await deploy.bench.run_all(by=deploy.old_app)
    assert isinstance(verdict, Failed)
    with pytest.raises(JobFailed, match=r"waited 7 days for a worker that knows the job 'app.tasks.fresh'"):
        await handle.result()
    await deploy.bench.broker.admin.retry([parse_id(handle.id)])
    await deploy.bench.run_all(by=deploy.new_app)
    assert await handle.result() == "new"


# --- what a new worker finds ----------------------------------------------------------------------------------------


async def fails_at_once(deploy: Deploy, handle: JobHandle[str], *words: str) -> None:
    """Assert that no retry is used up, and that the payload is kept for repair."""
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


async def test_an_argument_of_another_type_fails_at_once(deploy: Deploy) -> None:
    sender = App()
    other = loaded(OLD.replace("greet(name: str)", "greet(name: int)"), app=sender)
    with sender.using(deploy.bench.broker):
        await fails_at_once(deploy, await other.greet.delay(7), "name: expected str, got int")


async def test_a_renamed_job_is_run_under_its_old_name(deploy: Deploy) -> None:
    """The old worker parks jobs that are sent under the new name."""
    handle = await deploy.old.mail.delay("Ada")
    await deploy.bench.run_all(by=deploy.new_app)
    assert await handle.result() == "new Ada"
    await is_parked(deploy, await deploy.new.mail.delay("Bob"), "app.tasks.send_letter")
