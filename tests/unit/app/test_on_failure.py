"""`on_failure=`: the call that is sent when a job ends FAILED, in the step that ends it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from taskflow import Cancel, DeclarationError, Discard, JobContext, Snooze, Status, current_job, job
from taskflow.app.app import App
from taskflow.app.job import Declared
from taskflow.broker.admin import View
from taskflow.model.envelope import CAUSED_BY, MAX_FOLLOW_UP, job_of
from taskflow.model.record import Record
from tests.support.listing import listed
from tests.unit.app.bench import Bench

any_job: Any = job
seen: list[tuple[str, str | None]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@job(name="tests.follow.restore", max_attempts=7, queue="restores")
async def restore(ctx: JobContext, backup: str) -> None:
    seen.append((backup, ctx.caused_by))


@job(name="tests.follow.broken", max_attempts=1)
async def broken(how: str = "raise") -> object:
    assert current_job().caused_by is None
    match how:
        case "discard":
            raise Discard("half done")
        case "cancel":
            raise Cancel("not needed")
        case "snooze":
            raise Snooze(after=60)
        case "encode":
            return object()
        case "return":
            return 1
    raise ValueError("broken")


async def follow_ups(bench: Bench) -> list[Record]:
    """Return the follow-ups that the store has, oldest first."""
    return (await listed(bench.broker.admin, View(job="tests.follow.restore")))[::-1]


@pytest.mark.parametrize("how", ["raise", "discard", "encode"])
async def test_a_failure_sends_the_call(bench: Bench, how: str) -> None:
    handle = await broken.options(on_failure=restore.bind("b1")).delay(how)
    await bench.run_all()

    assert await handle.status() is Status.FAILED
    assert seen == [("b1", handle.id)]
    [sent] = await follow_ups(bench)
    assert (sent.queue, sent.max_attempts, sent.headers) == ("restores", 7, {CAUSED_BY: handle.id})


@pytest.mark.parametrize("how", ["cancel", "snooze", "return"])
async def test_other_outcomes_send_nothing(bench: Bench, how: str) -> None:
    await broken.options(on_failure=restore.bind("b1")).delay(how)
    await bench.run_all()
    assert await follow_ups(bench) == []


async def test_an_unknown_job_and_undecodable_arguments_send_it_too(bench: Bench) -> None:
    """An unknown job fails after a week; bytes that are no arguments fail at once."""
    call = broken.options(on_failure=restore.bind("b1")).bind()
    spoilt = msgspec.structs.replace(call.envelope, payload=b"\x01\x00\x00\x01\xc1")
    await bench.broker.enqueue([spoilt])
    await bench.run_all()
    assert len(seen) == 1
    unknown = msgspec.structs.replace(call.envelope, id=bench.world.an_id(), job="tests.follow.gone")
    await bench.broker.enqueue([unknown])
    for _ in range(200):
        await bench.run_all()
        await bench.world.pass_time(3_600)
    assert len(seen) == 2


# --- the decorator, and what is refused ------------------------------------------------------------------------------


async def test_the_decorator_takes_a_call_to_a_job_declared_before(bench: Bench) -> None:
    @job(name="tests.follow.declared", max_attempts=1, on_failure=restore.bind("declared"))
    async def declared() -> None:
        raise ValueError

    handle = await declared.delay()
    other = await declared.options(on_failure=restore.bind("given")).delay()
    await bench.run_all()
    assert sorted(seen) == [("declared", handle.id), ("given", other.id)]


@pytest.mark.parametrize("value", [restore, "tests.follow.restore", lambda: None])
def test_anything_but_a_bound_call_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"on_failure=.*expected a call, as made by on_failure=restore\.bind"):
        broken.options(on_failure=value)
    with pytest.raises(DeclarationError, match="on_failure"):
        any_job(name="tests.follow.wrong", on_failure=value)(lambda: None)


def test_a_call_that_raises_on_conflict_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "keep" or "replace"'):
        broken.options(on_failure=restore.options(key="k", on_conflict="raise").bind("b"))


def test_a_call_of_another_app_is_refused() -> None:
    async def other(x: int) -> None: ...

    foreign: Declared[..., Any] = any_job(name="tests.follow.foreign")(other)
    foreign.app = App()
    with pytest.raises(ValueError, match="belongs to another App"):
        broken.options(on_failure=foreign.bind(1))


def test_a_call_that_is_too_large_is_refused_where_it_is_given() -> None:
    broken.options(on_failure=restore.bind("x" * (MAX_FOLLOW_UP - 400)))
    with pytest.raises(ValueError, match=r"restore has 33,\d+ bytes .* expected at most 32,768: pass a reference"):
        broken.options(on_failure=restore.bind("x" * 33_000))
    with pytest.raises(ValueError, match=r"have 4142 bytes .* at most 4096 \(including the 48 bytes that taskflow adds for tf-caused-by\)"):
        broken.options(on_failure=restore.options(headers={"h": "x" * 4093}).bind("b"))


def test_a_stored_call_names_its_job_only() -> None:
    packed = broken.options(on_failure=restore.bind("secret")).bind().envelope.on_failure
    assert packed is not None
    assert job_of(packed) == "tests.follow.restore"
    with pytest.raises(ValueError, match=r"."):
        job_of(b"\x81\xa3job\x01")


async def test_a_stored_call_that_cannot_be_read_fails_the_job_without_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    envelope = msgspec.structs.replace(broken.bind().envelope, on_failure=b"\xc1")
    await bench.broker.enqueue([envelope])
    await asyncio.wait_for(bench.run_all(), 10)
    assert await bench.world.status(envelope) is Status.FAILED
    assert "its on_failure call cannot be read, and is not sent" in caplog.text
