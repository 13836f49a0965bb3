"""A sender's queries about its job: result, status, info, cancel."""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any

import pytest

from taskflow import (
    Cancel,
    DeclarationError,
    Discard,
    JobCancelled,
    JobContext,
    JobFailed,
    JobHandle,
    ResultExpired,
    Status,
    UnknownJob,
    job,
)
from taskflow.broker.engine.job import content_of, result_and_arguments
from taskflow.model.envelope import Lease
from taskflow.model.errors import DecodeError
from taskflow.model.ids import id_text
from taskflow.model.job_schema import MAX_PAYLOAD
from taskflow.model.verdict import Settlement
from tests.support.verdicts import succeeded
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, fail
from tests.unit.app.watched import Watched


@job(max_attempts=3)
async def discard_at_last(ctx: JobContext) -> None:
    if ctx.attempt == 2:
        raise Discard("enough")
    raise ValueError("not yet")


async def test_a_failure_has_type_message_and_traceback(bench: Bench) -> None:
    handle = await fail.options(max_attempts=1).delay("as asked")
    await bench.run_all()

    with pytest.raises(JobFailed, match=rf"{handle.id}.*attempt 1 of 1.*ValueError: as asked") as caught:
        await handle.result()

    error = caught.value
    assert (error.type, error.message, error.job_id) == ("ValueError", "as asked", handle.id)
    assert error.traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert "jobs.py" in error.traceback.splitlines()[1], "it begins in the job's own file"
    assert "raise ValueError(word)" in error.traceback


async def test_a_discarded_job_shows_its_own_reason(bench: Bench) -> None:
    """It does not show the error of an earlier attempt."""
    handle = await discard_at_last.delay()
    await bench.run_all()
    await bench.pass_time(10)
    await bench.run_all()
    with pytest.raises(JobFailed, match=r"attempt 2 of 3.*enough") as caught:
        await handle.result()
    assert (caught.value.type, caught.value.message) == ("taskflow.Discard", "enough")


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


async def test_a_result_that_is_no_longer_kept(bench: Bench) -> None:
    """The sender knows that the job existed: expired. A client that only has the id does not: unknown."""
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


async def test_a_timeout_is_seconds_or_a_timedelta_however_long(bench: Bench) -> None:
    handle = await add.delay(1)
    with pytest.raises(TimeoutError, match=r"still ready after 0.2 s"):
        await handle.result(timeout=timedelta(milliseconds=200))
    for wrong in ("5", True, b"5", [5]):
        with pytest.raises(TypeError, match=r"timeout=.*: expected seconds, as a number or a timedelta"):
            await handle.result(timeout=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"timeout=nan: expected seconds; 0 checks once"):
        await handle.result(timeout=math.nan)
    await bench.run_all()
    for long in (10**400, float("inf"), timedelta.max, None):
        assert await handle.result(long) == 2


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


async def test_a_notebook_shows_a_handle_as_its_job_stands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """This works from inside the notebook's running loop. Stored text cannot add HTML, and a store that hangs delays the cell only for a
    moment."""
    handle, failing = await add.delay(1, 2), await fail.options(max_attempts=1).delay("<script>")
    assert f"<tr><th>id</th><td>{handle.id}</td></tr><tr><th>status</th><td>ready</td></tr>" in handle._repr_html_()
    await bench.run_all()
    assert "<td>succeeded</td>" in JobHandle.of(handle.id)._repr_html_()
    assert "<tr><th>reason</th><td>ValueError: &lt;script&gt;</td></tr>" in failing._repr_html_()
    assert "unknown to the store" in JobHandle.of(add.bind(1).id)._repr_html_()

    async def hang(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("taskflow.app.handle.NOTEBOOK_TIMEOUT", 0.01)
    monkeypatch.setattr(JobHandle, "info", hang)
    assert "could not be read (TimeoutError)" in handle._repr_html_()


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


@job(name="tests.handles.deliver", aliases=("tests.handles.send_off",), keep_arguments=True)
def deliver(order: Order, *, fast: bool = False) -> int:
    return order.number


@pytest.mark.parametrize("name", ["tests.handles.deliver", "tests.handles.send_off"])
async def test_a_success_has_its_arguments_and_its_result_if_its_job_says_so(bench: Bench, name: str) -> None:
    order = Order(7, date(2026, 1, 2))
    payload = deliver.bind(order).envelope.payload
    sent, plain = await bench.world.add(job=name, payload=payload), await add.delay(1)
    await bench.run_all()
    handle = JobHandle.of(id_text(sent.id), job=deliver)
    assert (await handle.result(), await arguments_of(handle)) == (7, {"order": order, "fast": False})
    assert await arguments_of(plain) is None
    with pytest.raises(DeclarationError, match="keep_arguments='yes': expected True or False"):
        job(name="tests.handles.wrong", keep_arguments="yes")(deliver.function)  # type: ignore[call-overload]


def test_arguments_too_large_to_keep_with_the_result_are_dropped() -> None:
    half = bytes(MAX_PAYLOAD // 2)
    assert result_and_arguments(content_of(half, half)) == (half, half)
    assert content_of(half, half + b"1") == half


async def test_info_of_arguments_that_are_no_payload_has_none(bench: Bench) -> None:
    envelope = await bench.world.add(payload=b"\xff spoilt")
    assert await arguments_of(JobHandle.of(id_text(envelope.id))) is None


async def test_an_info_with_arguments_can_be_pickled(bench: Bench) -> None:
    info = await (await ship.delay(Order(7, date(2026, 1, 2)))).info()
    assert info is not None
    copied = pickle.loads(pickle.dumps(info))
    assert (copied.id, copied.arguments) == (info.id, {"order": {"number": 7, "due": date(2026, 1, 2)}})


# --- waiting without polling ------------------------------------------------------------------------------------------


A_WHILE = 4.0
"""Seconds in which a polling waiter would have read again, and a nudged one has long been woken."""


async def waiters_of(handles: list[JobHandle[int]], watched: Watched) -> list[asyncio.Task[int]]:
    """Return tasks that have read once, and wait."""
    tasks = [asyncio.ensure_future(handle.result(timeout=60)) for handle in handles]
    while sum(len(ids) for ids in watched.reads) < len(set(handles)):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)  # the writer's thread is returning the answers
    return tasks


async def test_a_waiter_looks_once_before_and_once_after(bench: Bench) -> None:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        handle = await add.delay(1, 2)
        [waiting] = await waiters_of([handle], watched)
        await asyncio.sleep(0.2)
        assert len(watched.reads) == 1, "it does not poll"

        began = time.monotonic()
        await bench.run_all()
        assert await waiting == 3
        assert time.monotonic() - began < A_WHILE
        assert len(watched.reads) == 2


async def test_a_hundred_waiters_for_a_hundred_jobs_share_their_reads(bench: Bench) -> None:
    """They do so if the jobs end together, like those of one settled batch."""
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        handles = await asyncio.gather(*(add.delay(n, n) for n in range(100)))
        waiting = await waiters_of(handles, watched)
        looked = len(watched.reads)
        await bench.broker.settle([_settlement(lease) for lease in await bench.claim()])
        assert await asyncio.gather(*waiting) == [2 * n for n in range(100)]
    assert looked <= 2
    assert len(watched.reads) - looked <= 4


def _settlement(lease: Lease) -> Settlement:
    (x, y), _ = add.codec.decode_arguments(lease.envelope.payload)
    return succeeded(lease, add.codec.encode_result(x + y))


async def test_a_job_that_ended_before_the_listening_is_not_missed(bench: Bench) -> None:
    """Since the waiter listens before its first read, nothing is lost in between."""
    watched = Watched(bench.broker)
    handle = await add.delay(1)
    with bench.app.using(watched.as_broker):
        waiting = asyncio.ensure_future(handle.result(timeout=60))
        await bench.run_all()
        assert await waiting == 2
