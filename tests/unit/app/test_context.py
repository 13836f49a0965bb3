"""What a run knows about itself: JobContext, current_job, ctx.state."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskflow import JobContext, Progress, Status, TaskflowError, current_job, job
from taskflow.model.ids import parse_id
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import about_itself, add

contexts: list[JobContext] = []


def deep_down() -> JobContext:
    return current_job()


@job(queue="deep", max_attempts=3)
async def looks_around(ctx: JobContext) -> bool:
    contexts.append(ctx)
    if ctx.attempt == 1:
        raise ValueError("once more")
    return deep_down() is ctx


@pytest.fixture(autouse=True)
def _forget() -> None:
    contexts.clear()


async def test_each_attempt_has_its_own(bench: Bench) -> None:
    """attempt counts failures, epoch counts leases; the id is the same."""
    handle = await looks_around.options(headers={"a": "b"}).delay()
    await bench.run_all()
    await bench.pass_time(10)
    await bench.run_all()

    assert await handle.result() is True
    assert [(each.attempt, each.epoch, each.max_attempts) for each in contexts] == [(1, 1, 3), (2, 2, 3)]
    assert {each.job_id for each in contexts} == {handle.id}
    assert {each.queue for each in contexts} == {"deep"}
    assert [dict(each.headers) for each in contexts] == [{"a": "b"}] * 2
    record = await bench.world.record(parse_id(handle.id))
    assert {each.created_at for each in contexts} == {record.created_at}
    assert contexts[0].created_at.tzinfo is UTC


async def test_a_call_outside_gets_an_inert_one() -> None:
    """It has a fresh id, attempt 1, and discards progress."""
    first, second = await about_itself("a"), await about_itself("b")
    assert first[1:] == [about_itself.name, "default", 1, 1, 1, "a"]
    assert parse_id(str(first[0])) != parse_id(str(second[0]))
    inert = JobContext(job_name="x")
    await inert.progress(0.5, "half")
    assert (inert.state, dict(inert.headers), inert.cancelled.is_set()) == (None, {}, False)
    assert (datetime.now(UTC) - inert.created_at).total_seconds() < 60
    assert "attempt 1" in repr(inert)


async def test_outside_of_a_run_there_is_none(bench: Bench) -> None:
    with pytest.raises(TaskflowError, match=r"current_job\(\) was called outside of a running job"):
        current_job()
    assert current_job(default=None) is None
    assert current_job(7) == 7
    await add.delay(1)
    await bench.run_all()
    with pytest.raises(TaskflowError):
        current_job()


@pytest.mark.parametrize(
    ("fraction", "error", "words"),
    [
        (3, ValueError, "progress must be between 0 and 1, got 3"),
        (float("nan"), ValueError, "progress must be between 0 and 1, got nan"),
        (10**400, ValueError, "progress must be between 0 and 1, got 1000"),
        ("0.5", TypeError, "progress must be a number between 0 and 1, got str"),
        (None, TypeError, "progress must be a number between 0 and 1, got NoneType"),
    ],
)
def test_progress_says_what_fraction_it_takes(fraction: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        JobContext().progress(fraction)


@pytest.mark.parametrize("note", [Path("x"), 1, None, b"bytes"])
def test_a_progress_note_must_be_text(note: Any) -> None:
    with pytest.raises(TypeError, match=f"a progress note must be text, got {type(note).__name__}: convert it"):
        JobContext().progress(0.5, note)


def test_progress_keeps_plain_values_and_the_head_of_a_long_note() -> None:
    reported: list[Progress] = []
    context = JobContext(run=cast(Any, SimpleNamespace(report=reported.append)))
    context.progress(Fraction(1, 4), Status.READY)  # type: ignore[arg-type]
    context.progress(1, "x" * 10_000_000)
    assert reported == [Progress(0.25, "ready"), Progress(1.0, "x" * 4_096)]
    assert [(type(each.fraction), type(each.note)) for each in reported] == [(float, str)] * 2
