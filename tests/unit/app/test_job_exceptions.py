"""The outcomes that a run can raise, and how the decorator's policy treats errors."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest

from taskflow import Backoff, Cancel, DeclarationError, Discard, JobFailed, Retry, Snooze, Status, configure, job, preset
from taskflow.model.verdict import Cancelled, Failed, Retried, Snoozed
from tests.unit.app.bench import Bench

EXACT = Backoff(base=1, factor=3, max=600, jitter=False)


class Left(OSError):
    pass


ERRORS: dict[str, type[BaseException]] = {
    "os": OSError,
    "left": Left,
    "value": ValueError,
    "key": KeyError,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
}


@job(retry=EXACT, max_attempts=5)
async def retries(after: float | None) -> None:
    raise Retry(after=after)


@job(retry=EXACT, max_attempts=5)
def retries_in_a_thread() -> None:
    raise Retry(after=timedelta(minutes=1))


@job
async def snoozes() -> None:
    raise Snooze(after=3600)


@job
async def discards() -> None:
    raise Discard("no such user")


@job(retry=EXACT, retry_on=(OSError,), discard_on=(Left,))
async def breaks(how: str) -> None:
    raise ERRORS[how]("broken")


@job(retry=EXACT)
async def breaks_as_it_likes(how: str) -> None:
    raise ERRORS[how]("broken")


async def test_an_error_is_retried_until_the_last_attempt(bench: Bench) -> None:
    """The waits between failures are base x factor ** failures; then the job is kept as FAILED."""
    handle = await breaks_as_it_likes.options(max_attempts=4).delay("value")
    waits: list[float] = []
    while await handle.status() is not Status.FAILED:
        await bench.run_all()
        if await handle.status() is Status.SCHEDULED:
            waits.append(await bench.seconds_until_due(handle))
            await bench.pass_time(waits[-1])
    assert waits == [1.0, 3.0, 9.0]
    info = await handle.info()
    assert info is not None
    assert (info.failures, len(info.errors)) == (4, 4)


async def test_retry_waits_as_it_says(bench: Bench) -> None:
    explicit, by_policy, threaded = await retries.delay(30.0), await retries.delay(None), await retries_in_a_thread.delay()
    await bench.run_all()
    assert [await bench.seconds_until_due(handle) for handle in (explicit, by_policy, threaded)] == [30.0, 1.0, 60.0]
    info = await explicit.info()
    assert info is not None
    assert (info.status, info.failures, info.attempt) == (Status.SCHEDULED, 1, 2)


async def test_snooze_costs_no_attempt(bench: Bench) -> None:
    handle = await snoozes.options(max_attempts=1).delay()
    for snoozed in (1, 2, 3):
        await bench.run_all()
        assert await bench.seconds_until_due(handle) == 3600.0
        info = await handle.info()
        assert info is not None
        assert (info.snoozes, info.failures, info.attempt) == (snoozed, 0, 1)
        await bench.pass_time(3600)


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("os", Retried),  # named by retry_on
        ("left", Failed),  # discard_on takes precedence
        ("value", Failed),  # named by neither: fails at once
        ("key", Failed),
        ("exit", Retried),  # an error that usually ends a process is a failure like others
        ("interrupt", Retried),
        ("cancelled", Retried),  # a cancellation that taskflow did not send
    ],
)
async def test_each_error_leads_to_its_verdict(bench: Bench, how: str, verdict: type) -> None:
    await breaks.delay(how)
    [found] = await bench.run_all()
    assert isinstance(found, verdict)


async def test_exceptions_of_taskflow_take_precedence_over_discard_on(bench: Bench) -> None:
    @job(name="says", discard_on=(Exception,))
    async def says(how: str) -> None:
        raise {"retry": Retry("wait", after=30), "snooze": Snooze(after=30), "cancel": Cancel("no"), "other": KeyError()}[how]

    for how in ("retry", "snooze", "cancel", "other"):
        await says.delay(how)
    assert [type(verdict) for verdict in await bench.run_all()] == [Retried, Snoozed, Cancelled, Failed]


# --- retry= as a function -------------------------------------------------------------------------------------------


def _wait_of(attempt: int, error: Exception) -> float | timedelta | None:
    match str(error):
        case "long":
            return timedelta(minutes=attempt)
        case "never":
            return None
        case "broken":
            raise SystemExit("a mistake in the function")
    return 10.0 * attempt


@job(retry=_wait_of)
async def waits(how: str) -> None:
    raise Retry if how == "retry" else KeyboardInterrupt if how == "interrupt" else Left(how)


@job(retry=_wait_of)
def waits_in_a_thread(how: str) -> None:
    raise Left(how)


async def test_a_function_decides_when_a_run_is_retried(bench: Bench) -> None:
    handles = [await waits.delay("short"), await waits.delay("long"), await waits_in_a_thread.delay("short")]
    await bench.run_all()
    assert [await bench.seconds_until_due(handle) for handle in handles] == [10.0, 60.0, 10.0]
    await bench.pass_time(60)
    await bench.run_all()
    assert [await bench.seconds_until_due(handle) for handle in handles] == [20.0, 120.0, 20.0]
    call = await waits.options(retry=EXACT).delay("never")
    await bench.run_all()
    assert await bench.seconds_until_due(call) == 1.0


async def test_a_function_that_returns_none_fails_the_job_unless_the_job_asks_for_a_retry(bench: Bench) -> None:
    never, asked = await waits.delay("never"), await waits.options(max_attempts=2).delay("retry")
    await bench.run_all()
    assert [await never.status(), await asked.status()] == [Status.FAILED, Status.SCHEDULED]
    with pytest.raises(JobFailed, match="never"):
        await never.result()


@pytest.mark.parametrize("answer", [-1, math.nan, math.inf, "5", True, timedelta(-1), SystemExit(), ValueError("hunter2")])
async def test_a_mistake_of_the_function_is_logged_and_the_default_backoff_applies(
    bench: Bench, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    def wrong(attempt: int, error: Exception) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @job(name="wrong", retry=wrong)
    async def fails() -> None:
        raise OSError

    handle = await fails.delay()
    await bench.run_all()
    assert await handle.status() is Status.SCHEDULED
    assert await bench.seconds_until_due(handle) <= 1.0
    [record] = caplog.records
    assert f"job {handle.id} (wrong): its retry= function failed after attempt 1; the default back-off" in record.getMessage()


async def test_a_function_is_a_default_and_an_option_of_a_preset_but_not_of_a_call(bench: Bench) -> None:
    assert preset(retry=_wait_of)(name="of_preset")(waits.function).policy.retry is _wait_of
    configure(defaults={"retry": _wait_of})
    assert discards.policy.retry is _wait_of
    with pytest.raises(TypeError, match=r"retry=.*: expected a Backoff; pass a function to the decorator, as in @job\(retry=\.\.\.\)"):
        waits.options(retry=_wait_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("retry", [3, Backoff, snoozes.function, lambda attempt: 1, lambda attempt, error, *, more: 1])
def test_retry_must_be_a_function_of_attempt_and_exception(retry: Any) -> None:
    with pytest.raises(DeclarationError, match=r"retry=.*: expected a Backoff, or a plain function \(attempt, exception\) that returns"):
        job(name="refused", retry=retry)(discards.function)
