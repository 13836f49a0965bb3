"""`operate`: an application reads jobs, queues and workers, and changes them in bulk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

import taskflow
from taskflow import (
    ActionResult,
    Every,
    FailureGroup,
    InvalidJobId,
    JobHandle,
    Limit,
    QueueInfo,
    Rate,
    Status,
    WorkerInfo,
    configure,
    enqueue,
    limits,
    operate,
    schedules,
)
from taskflow.app import bulk_actions
from taskflow.app.app import default_app
from taskflow.app.bulk_actions import JobSelection, this_operator
from taskflow.broker.admin import Redone, View
from taskflow.broker.engine.broker import EngineAdmin
from taskflow.model.clock import instant_of
from taskflow.model.limits import Gate
from taskflow.model.session import Session
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, fail, nothing, snooze


async def ids(**which: Any) -> list[str]:
    return [info.id async for info in operate.jobs(**which)]


def newest_first(handles: dict[str, JobHandle[Any]], *names: str) -> list[str]:
    """Order by id: ids begin with the machine's time in milliseconds, which may be the same for several of them."""
    return sorted((handles[name].id for name in names), reverse=True)


async def another() -> None: ...


async def an_import(bench: Bench) -> dict[str, JobHandle[Any]]:
    """Add four jobs of import 42, of which one has failed and one has succeeded; one of another import; one without tags."""
    tagged = ("import:42",)
    handles: dict[str, JobHandle[Any]] = {}
    for name, job in (("failed", fail.options(tags=tagged, max_attempts=1).bind("oh")), ("succeeded", add.options(tags=tagged).bind(1))):
        [handles[name]] = await enqueue([job])
        await bench.run_all()
        bench.clock.advance(1.0)
    for name, call in (
        ("ready", add.options(tags=(*tagged, "tenant:7"), queue="mail").bind(1)),
        ("scheduled", nothing.options(tags=tagged, after=60).bind()),
        ("other", add.options(tags=("import:43",)).bind(1)),
        ("plain", add.bind(2)),
    ):
        [handles[name]] = await enqueue([call])
        bench.clock.advance(1.0)
    return handles


# --- looking --------------------------------------------------------------------------------------------------------


async def test_failures_are_grouped_by_their_cause(bench: Bench) -> None:
    """They can be those of all jobs, of a queue, of a job, and of a tag."""
    handles = await an_import(bench)
    [group] = await operate.failures()
    assert (group.count, group.error, group.jobs, group.sample) == (1, "ValueError: oh", {fail.name: 1}, handles["failed"].id)
    assert isinstance(group, FailureGroup)
    assert await operate.failures(job=fail) == await operate.failures(tag="import:42", ended_before=0.0) == [group]
    assert await operate.failures(queue="mail") == await operate.failures(tag="import:43") == []
    with pytest.raises(ValueError, match="limit=0: expected a whole number, at least 1"):
        await operate.failures(limit=0)


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ({}, ["plain", "other", "scheduled", "ready", "succeeded", "failed"]),
        ({"status": "failed"}, ["failed"]),
        ({"status": Status.FAILED}, ["failed"]),
        ({"status": ("failed", Status.READY), "tag": "import:42"}, ["ready", "failed"]),
        ({"tag": None, "queue": "mail", "status": None}, ["ready"]),
        ({"job": nothing}, ["scheduled"]),
        ({"job": nothing.name, "tag": "import:43"}, []),
        ({"tag": "import:42", "ended_before": timedelta(seconds=1)}, ["succeeded", "failed"]),
        ({"error": "VALUEERROR: oh"}, ["failed"]),
        ({"header": "from=nowhere"}, []),
        ({"tag": "import:42", "created_before": timedelta(seconds=3.5)}, ["ready", "succeeded", "failed"]),
        ({"tag": "import:42", "poison": True}, []),
    ],
    ids=str,
)
async def test_jobs_are_selected_by_all_that_is_given(bench: Bench, which: dict[str, Any], names: list[str]) -> None:
    handles = await an_import(bench)
    assert sorted(await ids(**which), reverse=True) == newest_first(handles, *names)
    assert await operate.count(**which) == len(names)


async def test_jobs_come_page_by_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_actions, "PAGE", 2)
    handles = await an_import(bench)
    everything = newest_first(handles, "scheduled", "ready", "succeeded", "failed")
    assert await ids(tag="import:42") == everything
    first = await operate.page(tag="import:42", limit=3)
    rest = await operate.page(tag="import:42", limit=3, cursor=first.cursor)
    assert [info.id for info in (*first.jobs, *rest.jobs)] == everything
    assert (first.examined, first.stopped_early, rest.cursor) == (3, False, None)


async def test_queues_and_workers_are_shown(bench: Bench) -> None:
    await an_import(bench)
    await operate.pause("mail")
    by_name = {queue.name: queue for queue in await operate.queues()}
    assert by_name["mail"] == QueueInfo(
        name="mail",
        is_paused=True,
        counts={status: int(status is Status.READY) for status in Status},
        oldest_ready_for=4.0,
        next_due_in=None,
    )
    assert (by_name["default"].counts[Status.FAILED], by_name["default"].next_due_in) == (1, 57.0)
    assert (await operate.metrics())["default"]["fail"] == 1
    await operate.resume("mail")
    assert not (await operate.queues())[-1].is_paused

    await bench.broker.register(
        Session(id=bytes(16), name="host:7", ttl=1e9, queues=("mail",), concurrency=3, jobs=("a", "b"), deploy="v7")
    )
    bench.clock.advance(2.0)
    [worker] = [worker for worker in await operate.workers() if worker.name == "host:7"]
    since = instant_of(bench.clock.wall()) - timedelta(seconds=2)
    shown = WorkerInfo(name="host:7", queues=("mail",), concurrency=3, running=0, busy=0, silent_for=2.0, is_lost=False, since=since)
    assert worker == replace(shown, jobs=("a", "b"), deploy="v7")


# --- acting ---------------------------------------------------------------------------------------------------------


async def test_an_import_is_cancelled(bench: Bench) -> None:
    """Ended jobs are unchanged, and so are all others."""
    handles = await an_import(bench)
    [lease] = await bench.world.claim(await bench.world.a_session(), ["mail"])

    foreseen = await operate.cancel(tag="import:42", dry_run=True)
    assert await handles["scheduled"].status() is Status.SCHEDULED
    done = await operate.cancel(tag="import:42")

    assert done == foreseen == ActionResult(changed=1, asked=1)
    assert await handles["scheduled"].status() is Status.CANCELLED
    info = await handles["ready"].info()
    assert info is not None
    assert (info.status, info.cancel_requested, lease.envelope.tags) == (Status.RUNNING, True, ("import:42", "tenant:7"))
    for name, status in (("failed", Status.FAILED), ("succeeded", Status.SUCCEEDED), ("other", Status.READY), ("plain", Status.READY)):
        assert await handles[name].status() is status


async def test_the_failed_jobs_of_an_import_are_retried(bench: Bench) -> None:
    handles = await an_import(bench)
    assert await operate.retry(tag="import:43") == ActionResult()
    assert await operate.retry(tag="import:42", dry_run=True) == ActionResult(changed=1)
    assert await handles["failed"].status() is Status.FAILED
    assert await operate.retry(tag="import:42") == ActionResult(changed=1)
    assert await handles["failed"].status() is Status.READY
    assert await ids(tag="import:42", status="ready") == newest_first(handles, "ready", "failed")


async def test_a_retry_has_enough_time_for_a_large_flow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a flow are retried in one call, which may take longer than other calls."""
    retry = EngineAdmin.retry

    async def slow(admin: EngineAdmin, ids: Sequence[bytes]) -> list[Redone]:
        await asyncio.sleep(0.3)
        return await retry(admin, ids)

    handles = await an_import(bench)
    monkeypatch.setattr(EngineAdmin, "retry", slow)
    configure(enqueue_timeout=0.1)
    assert await operate.retry(tag="import:42") == ActionResult(changed=1)
    assert await handles["failed"].status() is Status.READY


async def test_a_rate_is_set_with_enough_time_for_the_jobs_that_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them get new times, which may take longer than other calls."""
    set_limit = EngineAdmin.set_limit

    async def slow(admin: EngineAdmin, gate: Gate, *, is_set: bool) -> None:
        await asyncio.sleep(0.3)
        await set_limit(admin, gate, is_set=is_set)

    monkeypatch.setattr(EngineAdmin, "set_limit", slow)
    configure(enqueue_timeout=0.1)
    await limits.set(Limit("calls", Rate(1, per=60)), None, 100)
    assert [info.n for info in await limits.list("calls")] == [100]


async def test_scheduled_jobs_run_now(bench: Bench) -> None:
    later, retried = await add.options(after=60, tags=("late",)).delay(1), await fail.options(tags=("late",)).delay("word")
    await bench.run_all()
    assert await operate.run_now(tag="late", dry_run=True) == await operate.run_now(tag="late") == ActionResult(changed=2)
    assert [await handle.status() for handle in (later, retried)] == ["ready", "ready"]
    assert await operate.run_now(later, retried.id) == ActionResult(refused={"it is already ready": 2})
    with pytest.raises(ValueError, match="run-now cannot act on failed jobs: allowed statuses are scheduled"):
        await operate.run_now(status="failed")
    with pytest.raises(ValueError, match=r"operate.run_now\(\) needs to know which jobs"):
        await operate.run_now()


async def test_a_job_that_waits_again_meanwhile_is_run_now_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers may run the first jobs while the later pages are read."""
    monkeypatch.setattr(bulk_actions, "PAGE", 1)
    await enqueue([snooze.options(after=10).bind() for _ in range(3)])
    runs, changed = 0, list[int]()
    async for done in bulk_actions.act(default_app().client().call, "run-now", View(statuses=(Status.SCHEDULED,))):
        runs += len(await bench.run_all())
        changed.append(done.changed)
        assert runs <= 3
    assert (runs, changed[-1]) == (3, 3)


async def test_a_handle_runs_its_job_now(bench: Bench) -> None:
    handle = await add.options(after=60).delay(1, 2)
    assert await handle.run_now() is Status.SCHEDULED
    assert await handle.run_now() is Status.READY
    await bench.run_all()
    assert (await handle.run_now(), await handle.result()) == (Status.SUCCEEDED, 3)
    assert await JobHandle.of("00000000-0000-0000-0000-000000000000").run_now() is None


async def test_ended_jobs_are_purged_and_waiting_ones_on_demand(bench: Bench) -> None:
    handles = await an_import(bench)
    some = handles["failed"], handles["ready"].id
    assert await operate.purge(*some, dry_run=True) == ActionResult(changed=1, refused={"it is ready: cancel it first": 1})
    assert await operate.purge(tag="import:42", dry_run=True) == ActionResult(changed=2)
    assert await operate.purge(tag="import:42") == ActionResult(changed=2)
    assert await ids(tag="import:42") == newest_first(handles, "scheduled", "ready")
    assert await operate.purge(queue="mail", status="ready") == ActionResult(changed=1)
    assert await ids(tag="import:42") == [handles["scheduled"].id]


async def test_jobs_are_given_by_id_or_handle(bench: Bench) -> None:
    """Those that cannot be changed are counted by the reason; repeated ones count once."""
    handles = await an_import(bench)
    unknown = str(JobHandle.of("01890a5d-ac96-774b-bcce-b302099a8057").id)
    given: list[str | JobHandle[Any]] = [handles["plain"], handles["plain"].id, handles["succeeded"], unknown]
    refused = {"it has already succeeded": 1, "it is unknown or no longer kept": 1}
    assert await operate.cancel(*given, dry_run=True) == ActionResult(changed=1, refused=refused)
    assert await operate.cancel(*given) == ActionResult(changed=1, refused=refused)
    assert await operate.retry(handles["plain"], handles["failed"].id) == ActionResult(changed=2)
    why = {"it has not ended yet": 1, "it has succeeded": 1}
    assert await operate.retry(handles["plain"], handles["succeeded"], dry_run=True) == ActionResult(refused=why)
    assert await operate.retry(handles["plain"], handles["succeeded"]) == ActionResult(refused=why)


REFUSED: list[tuple[Callable[[], Awaitable[object]], type[Exception], str]] = [
    (
        lambda: operate.cancel(),
        ValueError,
        r"operate\.cancel\(\) needs to know which jobs: pass ids, a selection such as tag=, or everything",
    ),
    (lambda: operate.retry(poison=False), ValueError, "needs to know which jobs"),
    (lambda: operate.purge(), ValueError, r"operate\.purge\(\) needs to know which jobs: pass ids, a selection such as tag="),
    (lambda: operate.cancel(tag="a", everything=True), ValueError, "more than one of ids, a selection and everything=True"),
    (lambda: operate.cancel("nonsense"), InvalidJobId, "nonsense"),
    (lambda: operate.cancel(tag=""), ValueError, "tag '': expected 1 to 100 of"),
    (lambda: operate.cancel(queue="a b"), ValueError, "queue 'a b'"),
    (lambda: operate.cancel(status="ended"), ValueError, "status='ended': expected one of held, scheduled"),
    (lambda: operate.cancel(status="failed"), ValueError, "cancel cannot act on failed jobs: allowed statuses are held, ready"),
    (lambda: operate.purge(status=("failed", "running")), ValueError, "purge cannot act on running jobs"),
    (lambda: operate.purge(status="ready", error="oh"), ValueError, "purge cannot select waiting jobs by error"),
    (lambda: operate.page(limit=0), ValueError, "limit=0: expected a whole number, at least 1"),
    (lambda: operate.page(cursor="x"), ValueError, "the cursor is damaged"),
    (lambda: operate.page(cursor=5), TypeError, "cursor=5: expected the cursor of the previous page, which is a str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "says"), REFUSED, ids=[says for *_, says in REFUSED])
async def test_a_wrong_call_is_refused_and_changes_nothing(
    bench: Bench, call: Callable[[], Awaitable[object]], error: type[Exception], says: str
) -> None:
    handle = await add.delay(1)
    with pytest.raises(error, match=says):
        await call()
    assert await handle.status() is Status.READY


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tags": "a"}, r"operate\.cancel\(\) got an unexpected argument tags=; did you mean tag=\?"),
        ({"tag": 7}, "tag=7: expected a str"),
        ({"queue": b"a"}, "queue=b'a': expected a str"),
        ({"job": 7}, "job=7: expected a str"),
        ({"status": 7}, "status=7: expected one or more statuses"),
    ],
)
async def test_an_argument_of_the_wrong_type_is_refused(bench: Bench, given: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        await operate.cancel(**given)


FUNCTIONS: dict[str, Callable[..., Awaitable[object]]] = {
    "jobs": ids,
    **{name: getattr(operate, name) for name in ("page", "count", "cancel", "retry", "purge", "failures")},
}


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_an_empty_filter_is_refused(bench: Bench, function: str) -> None:
    """It would match every job, for example if a variable was not filled in."""
    handle = await add.delay(1)
    filters = ("queue", "job", "tag", "ended_before") if function == "failures" else JobSelection.__annotations__
    for name in filters:
        others: dict[str, list[Any]] = {"header": ["=", "=web"], "status": [[], [""]], "error": [" ", "\t\n"]}
        for empty in ["", *others.get(name, [])]:
            with pytest.raises((TypeError, ValueError), match=name):
                await FUNCTIONS[function](**{name: empty})
    assert await handle.status() is Status.READY
    assert await operate.count(header="absent=") == 0


# --- the audit log --------------------------------------------------------------------------------------------------


async def test_acts_are_recorded_with_who_and_why(bench: Bench) -> None:
    """This applies to operators' actions. An application's calls on a handle or `schedules` are recorded only with an actor or a reason."""
    handles = await an_import(bench)
    await operate.cancel(handles["ready"], by="ada", reason="wrong customer")
    await operate.retry(tag="import:42", reason="fixed")
    await operate.purge(tag="nothing")
    await operate.purge(everything=True, dry_run=True)
    await operate.pause("mail", by="ada")
    await operate.pause("mail", by="bob")
    await operate.resume("mail")
    await operate.resume("mail")
    await handles["plain"].cancel()
    call, every = add.bind(1), Every(3600.0)
    await schedules.put("own", call, every)
    await schedules.pause("own")
    await schedules.put("theirs", call, every, by="ada")
    await schedules.remove("theirs", reason="done")

    found = [record.action for record in reversed(await default_app().client().broker.admin.actions())]
    assert [(action.kind, action.names or action.which, action.affected, action.reason) for action in found] == [
        ("cancel", (handles["ready"].id,), 1, "wrong customer"),
        ("retry", {"tag": "import:42", "status": "failed"}, 1, "fixed"),
        ("pause", ("mail",), 1, ""),
        ("resume", ("mail",), 1, ""),
        ("schedules.put", ("theirs",), 1, ""),
        ("schedules.remove", ("theirs",), 1, "done"),
    ]
    assert [action.by for action in found] == ["ada", this_operator(), "ada", this_operator(), "ada", this_operator()]
    assert len({record.number for record in await default_app().client().broker.admin.actions()}) == 6


async def test_a_job_is_paused_by_its_names(bench: Bench) -> None:
    """Calls wait under its aliases, too."""
    renamed = taskflow.job(name="operate.new", aliases=("operate.old",))(another)
    await operate.pause(job=renamed, by="ada")
    await operate.pause(job="another")
    assert await operate.paused_jobs() == ["another", "operate.new", "operate.old"]
    await operate.resume(job=renamed)
    assert await operate.paused_jobs() == ["another"]
    for given in ({}, {"queue": "mail", "job": "another"}):
        with pytest.raises(TypeError, match="takes a queue or job="):
            await operate.pause(**given)
    acts = [(record.action.kind, record.action.names) for record in await default_app().client().broker.admin.actions()]
    assert acts[-1] == ("jobs.pause", ("operate.new", "operate.old"))


async def test_an_act_in_a_scope_that_is_cancelled_is_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a scope cancels each further wait, as when the client of a web application disconnects."""
    await enqueue(nothing.bind() for _ in range(3))
    monkeypatch.setattr(bulk_actions, "PAGE", 1)
    applied, batches = bulk_actions.apply, list[int]()
    with anyio.CancelScope() as scope:

        async def apply(*given: Any) -> list[str]:
            batches.append(1)
            if len(batches) == 2:
                scope.cancel()
                await asyncio.sleep(0.01)
            return await applied(*given)

        monkeypatch.setattr(bulk_actions, "apply", apply)
        await operate.cancel(everything=True)

    [record] = await default_app().client().broker.admin.actions()
    assert record.action.stopped == "interrupted"
    assert record.action.affected < 3


@pytest.mark.parametrize("given", [{"by": 7}, {"reason": None}])
async def test_by_and_reason_must_be_text(bench: Bench, given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"(by=7|reason=None): expected a str"):
        await operate.pause("mail", **given)
    with pytest.raises(TypeError, match=r"(by=7|reason=None): expected a str"):
        await schedules.pause("mail", **given)
