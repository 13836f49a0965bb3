"""What a sender asks of a job that it sent: result, status, info, cancel."""

from __future__ import annotations

import asyncio
import pickle
import uuid
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any

import pytest

from taskflow import (
    Backoff,
    Cancel,
    Discard,
    EncodeError,
    JobCancelled,
    JobContext,
    JobFailed,
    JobHandle,
    Progress,
    ResultExpired,
    RunEnding,
    Status,
    UnknownJob,
    job,
    send,
)
from taskflow.model.errors import DecodeError
from taskflow.model.ids import id_text
from taskflow.worker.options import WorkerOptions
from taskflow.worker.worker import Worker
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, fail, nothing
from tests.unit.app.watched import Watched


@job(max_attempts=3)
async def discard_at_last(ctx: JobContext) -> None:
    if ctx.attempt == 2:
        raise Discard("enough")
    raise ValueError("not yet")


@job
async def unsendable() -> Any:
    return object()


@job
async def half_way(ctx: JobContext) -> None:
    await ctx.progress(0.5, "half way")
    await asyncio.Event().wait()


async def test_the_result_is_there_after_the_end(bench: Bench) -> None:
    handles: list[JobHandle[Any]] = [await add.delay(1, 2), await nothing.delay()]
    await bench.run_all()
    assert [await handle.result() for handle in handles] == [3, None]


async def test_a_failure_tells_type_message_and_traceback(bench: Bench) -> None:
    handle = await fail.options(max_attempts=1).delay("as asked")
    await bench.run_all()

    with pytest.raises(JobFailed, match=rf"{handle.id}.*attempt 1 of 1.*ValueError: as asked") as caught:
        await handle.result()

    error = caught.value
    assert (error.type, error.message, error.job_id) == ("ValueError", "as asked", handle.id)
    assert error.traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert "jobs.py" in error.traceback.splitlines()[1], "it begins in the job's own file"
    assert "raise ValueError(word)" in error.traceback


async def test_a_failure_after_several_attempts_tells_the_last(bench: Bench) -> None:
    handle = await fail.delay("again")
    for _ in range(3):
        await bench.run_all()
        await bench.pass_time(10)
    with pytest.raises(JobFailed, match="attempt 3 of 3"):
        await handle.result()
    info = await handle.info()
    assert info is not None
    assert [(error.attempt, error.message) for error in info.errors] == [(1, "again"), (2, "again"), (3, "again")]


async def test_a_failure_that_is_not_retried_tells_its_attempt(bench: Bench) -> None:
    """It was the first of ten, not the second."""
    handle = await unsendable.delay()
    await bench.run_all()
    with pytest.raises(JobFailed, match="attempt 1 of 10") as caught:
        await handle.result()
    assert caught.value.type.endswith(EncodeError.__name__)
    info = await handle.info()
    assert info is not None
    assert info.attempt == 1


async def test_a_discarded_job_tells_its_own_reason(bench: Bench) -> None:
    """Not the error of an attempt before."""
    handle = await discard_at_last.delay()
    await bench.run_all()
    await bench.pass_time(10)
    await bench.run_all()
    with pytest.raises(JobFailed, match=r"attempt 2 of 3.*enough") as caught:
        await handle.result()
    assert (caught.value.type, caught.value.message) == ("taskflow.Discard", "enough")


async def test_a_cancelled_job_tells_why(bench: Bench) -> None:
    handle = await add.delay(1)
    assert await handle.cancel() is Status.READY
    with pytest.raises(JobCancelled, match=f"{handle.id}.*cancelled") as caught:
        await handle.result()
    assert caught.value.reason == "cancelled"


HOSTILE = "\x1b[2J\rover\nforged: all is well\u202e"


@job(name="tests.handles.says")
async def says(how: str) -> None:
    raise {"cancel": Cancel, "discard": Discard, "fail": ValueError}[how](HOSTILE)


@pytest.mark.parametrize(("how", "error"), [("cancel", JobCancelled), ("discard", JobFailed), ("fail", JobFailed)])
async def test_the_text_of_an_error_is_safe_to_print_and_its_fields_are_exact(
    bench: Bench, how: str, error: type[JobCancelled | JobFailed]
) -> None:
    handle = await says.options(max_attempts=1).delay(how)
    await bench.run_all()
    with pytest.raises(error) as caught:
        await handle.result()
    assert not set(str(caught.value)) & {"\x1b", "\r", "\u202e"}
    assert not any(line.startswith("forged") for line in str(caught.value).split("\n"))
    assert getattr(caught.value, "reason" if how == "cancel" else "message") == HOSTILE


async def test_an_expired_job_was_cancelled(bench: Bench) -> None:
    handle = await add.options(expires=5).delay(1)
    await bench.pass_time(6)
    with pytest.raises(JobCancelled, match="expired"):
        await handle.result()


async def test_cancel_tells_what_it_found(bench: Bench) -> None:
    ended, waiting, scheduled = await add.delay(1), await add.delay(2), await add.options(after=60).delay(3)
    [first, _] = await bench.claim()
    await bench.run(first)
    assert [await handle.cancel() for handle in (ended, waiting, scheduled)] == [Status.SUCCEEDED, Status.RUNNING, Status.SCHEDULED]
    assert [await handle.status() for handle in (ended, waiting, scheduled)] == [Status.SUCCEEDED, Status.RUNNING, Status.CANCELLED]
    assert await JobHandle.of(str(uuid.uuid4())).cancel() is None


async def test_a_result_that_is_no_longer_kept(bench: Bench) -> None:
    """The sender knows that the job was there: expired. Whoever has an id only does not: unknown."""
    handle = await add.options(keep_result=10).delay(1)
    await bench.run_all()
    await bench.pass_time(11)

    assert await handle.status() is None
    assert await handle.info() is None
    with pytest.raises(ResultExpired, match=f"{handle.id}.*keep_result=") as expired:
        await handle.result()
    assert expired.value.job_id == handle.id
    with pytest.raises(UnknownJob, match=handle.id) as unknown:
        await JobHandle.of(handle.id, job=add).result()
    assert isinstance(unknown.value, LookupError)


async def test_a_result_that_does_not_come_in_time(bench: Bench) -> None:
    handle = await add.delay(1)
    with pytest.raises(TimeoutError, match=f"{handle.id}.*still ready after 0.2 s"):
        await handle.result(timeout=0.2)


async def test_a_timeout_of_zero_looks_once(bench: Bench) -> None:
    handle = await add.delay(1)
    with pytest.raises(TimeoutError, match=f"{handle.id}.*still ready after 0 s"):
        await handle.result(timeout=0)
    await bench.run_all()
    assert await handle.result(timeout=0) == 2


async def test_a_timeout_is_seconds_or_a_timedelta_however_long(bench: Bench) -> None:
    handle = await add.delay(1)
    with pytest.raises(TimeoutError, match=r"still ready after 0.2 s"):
        await handle.result(timeout=timedelta(milliseconds=200))
    for wrong in ("5", True, b"5", [5]):
        with pytest.raises(TypeError, match=r"timeout=.*: expected seconds, as a number or a timedelta"):
            await handle.result(timeout=wrong)  # type: ignore[arg-type]
    await bench.run_all()
    for long in (10**400, float("inf"), timedelta.max, None):
        assert await handle.result(long) == 2


async def test_a_store_that_does_not_answer_does_not_outlast_the_timeout(bench: Bench) -> None:
    handle = await add.delay(1)
    watched = Watched(bench.broker)
    watched.is_away = True
    with bench.app.using(watched.as_broker), pytest.raises(TimeoutError, match="could not be read from the broker"):
        await handle.result(timeout=0.05)


async def test_info_is_the_record(bench: Bench) -> None:
    handle = await add.options(queue="math", priority=7, max_attempts=4, headers={"a": "b"}, expires=60).delay(1, 2)
    waiting = await handle.info()
    await bench.run_all()
    info = await handle.info()

    assert waiting is not None
    assert info is not None
    assert (waiting.status, waiting.result, waiting.started_at, waiting.ended_at) == (Status.READY, None, None, None)
    assert (info.id, info.job, info.queue, info.priority) == (handle.id, add.name, "math", 7)
    assert (info.status, info.result, info.attempt, info.max_attempts) == (Status.SUCCEEDED, 3, 1, 4)
    assert (info.failures, info.crashes, info.snoozes, info.errors) == (0, 0, 0, ())
    assert (info.headers, info.worker, info.cancel_requested) == ({"a": "b"}, "worker", False)
    assert info.expires_at is not None
    assert info.expires_at.timestamp() - info.created_at.timestamp() == 60
    for instant in (info.created_at, info.due_at, info.started_at, info.ended_at):
        assert instant is not None
        assert instant.tzinfo is UTC


async def test_info_of_a_job_whose_result_cannot_be_decoded_has_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await add.delay(1, 2)
    monkeypatch.setattr(add.codec, "encode_result", lambda value: b"\xff spoilt")
    await bench.run_all()
    info = await handle.info()
    assert info is not None
    assert (info.status, info.result) == (Status.SUCCEEDED, None)
    with pytest.raises(DecodeError):
        await handle.result()


async def test_each_error_in_info_has_the_times_and_the_worker_of_its_run(bench: Bench) -> None:
    """An instant as the others are, so that they can be set beside each other."""
    handle = await discard_at_last.options(max_attempts=2, retry=Backoff(base=0.0)).delay()
    await bench.run_all()
    info = await handle.info()
    assert info is not None
    [error] = info.errors
    assert (error.type, error.message, error.attempt) == ("ValueError", "not yet", 1)
    assert 'raise ValueError("not yet")' in error.traceback
    assert error.at.tzinfo is UTC
    assert error.started_at is not None
    assert error.ran_for is not None
    assert error.started_at <= error.at
    assert info.created_at <= error.at <= bench.now
    assert (error.ending, error.worker) == (RunEnding.FAILED, "worker")


async def test_info_has_the_progress_of_a_run(bench: Bench) -> None:
    """The worker's beat carries it up while the job runs."""
    handle = await half_way.delay()
    async with Worker(options=WorkerOptions(ttl=0.2, subscribers=())):
        while (info := await handle.info()) is None or info.progress is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a heartbeat wakes no one who waits for the job
        assert (info.status, info.progress) == (Status.RUNNING, Progress(0.5, "half way"))
        assert await handle.cancel() is Status.RUNNING
        with pytest.raises(JobCancelled):
            await handle.result(timeout=30)


async def test_a_handle_from_an_id(bench: Bench) -> None:
    sent = await add.delay(1, 2)
    await bench.run_all()
    typed, bare = JobHandle.of(sent.id, job=add), JobHandle.of(sent.id)
    assert typed == bare == sent
    assert len({typed, bare, sent}) == 1
    assert [await typed.result(), await bare.result()] == [3, 3]
    assert add.name in repr(typed)
    assert sent.id in repr(bare)


async def test_a_job_that_must_not_be_asked_twice_is_harmless(bench: Bench) -> None:
    """The result may be asked for as often as one likes."""
    handle = await add.delay(1)
    await bench.run_all()
    assert [await handle.result() for _ in range(3)] == [2, 2, 2]


# --- info().arguments -------------------------------------------------------------------------------------------------


@dataclass
class Order:
    number: int
    due: date


@job(name="tests.handles.ship", max_attempts=1)
async def ship(order: Order, *labels: str, fast: bool = False) -> None:
    raise ValueError("no")


async def arguments_of(handle: JobHandle[Any]) -> Any:
    info = await handle.info()
    assert info is not None
    assert "Order" not in repr(info)
    return info.arguments


async def test_info_has_the_arguments_as_the_function_gets_them(bench: Bench) -> None:
    order = Order(7, date(2026, 1, 2))
    handle = await ship.delay(order, "a", "b")
    expected = {"order": order, "labels": ("a", "b"), "fast": False}
    assert await arguments_of(handle) == await arguments_of(JobHandle.of(handle.id)) == expected
    await bench.run_all()
    assert (await handle.status(), await arguments_of(handle)) == (Status.FAILED, expected)


async def test_info_of_a_job_that_is_not_declared_here_has_the_arguments_without_annotations(bench: Bench) -> None:
    handle = await send("tests.handles.elsewhere", order={"number": 7, "due": date(2026, 1, 2)}, tags=("a",))
    assert await arguments_of(handle) == {"order": {"number": 7, "due": date(2026, 1, 2)}, "tags": ("a",)}


async def test_info_of_arguments_that_do_not_fit_the_job_here_has_them_without_annotations(bench: Bench) -> None:
    handle = await ship.delay(Order(7, date(2026, 1, 2)), fast=True)
    name = ship.name

    @job(name="tests.handles.renamed")
    async def changed(order: int) -> None: ...

    known = bench.app.registry
    known._jobs[name] = changed
    try:
        assert await arguments_of(JobHandle.of(handle.id)) == {"order": {"number": 7, "due": date(2026, 1, 2)}, "fast": True}
    finally:
        known._jobs[name] = ship


async def test_info_has_no_arguments_once_the_job_has_succeeded(bench: Bench) -> None:
    handle = await add.delay(1, 2)
    await bench.run_all()
    assert (await handle.status(), await arguments_of(handle)) == (Status.SUCCEEDED, None)


async def test_info_of_arguments_that_are_no_payload_has_none(bench: Bench) -> None:
    envelope = await bench.world.add(payload=b"\xff spoilt")
    assert await arguments_of(JobHandle.of(id_text(envelope.id))) is None


async def test_an_info_with_arguments_can_be_pickled(bench: Bench) -> None:
    info = await (await ship.delay(Order(7, date(2026, 1, 2)))).info()
    assert info is not None
    copied = pickle.loads(pickle.dumps(info))
    assert (copied.id, copied.arguments) == (info.id, {"order": {"number": 7, "due": date(2026, 1, 2)}})


async def test_a_call_without_arguments_has_an_empty_mapping(bench: Bench) -> None:
    assert await arguments_of(await send("tests.handles.elsewhere")) == {}
