"""Errors and results that resist being described. Each run happens once, and its failure names the error."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import msgspec
import pytest

from taskflow import Backoff, Cancel, Discard, JobFailed, Retry, Worker, job
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory, parse_id
from taskflow.model.record import Record

AT_ONCE = Backoff(base=0.0)
ODD_PLACE: Any = [("file", "x", None, object(), 1, 2)]


class Runs:
    count = 0


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    Runs.count = 0


class BrokenGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise RuntimeError("no exceptions today")


def _no_notes(error: BaseException) -> Any:
    raise RuntimeError("no notes today")


def _no_class(error: BaseException) -> Any:
    raise RuntimeError("it has no class")


BrokenNotes: type[Exception] = type("BrokenNotes", (Exception,), {"__notes__": property(_no_notes), "__module__": __name__})
NoClass: type[Exception] = type("NoClass", (Exception,), {"__class__": property(_no_class)})


class ExitingText(Exception):
    def __str__(self) -> str:
        sys.exit(3)


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__name__", "__module__"):
            raise RuntimeError("it has no name")
        return super().__getattribute__(name)


class Hidden(Exception, metaclass=Nameless):
    pass


class Unequal(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("it does not know")


class Undecided(Exception, metaclass=Unequal):
    pass


def odd_error(which: str) -> BaseException:
    match which:
        case "group":
            return BrokenGroup("several", [ValueError("one")])
        case "notes":
            return BrokenNotes("noted")
        case "syntax":
            return SyntaxError("odd", *ODD_PLACE)
        case "text":
            return ExitingText()
        case "metaclass":
            return Hidden("hidden")
        case "class":
            return NoClass("classless")
        case "closed":
            return GeneratorExit("closed")
        case "no module":
            made: dict[str, Any] = {}
            exec("Made = type('Made', (Exception,), {})", made)
            error: BaseException = made["Made"]("made by a template")
            return error
    raise AssertionError(which)


EXPECTED = {
    "group": (f"{__name__}.BrokenGroup", "several"),
    "notes": (f"{__name__}.BrokenNotes", "noted"),
    "syntax": ("SyntaxError", "odd"),
    "text": (f"{__name__}.ExitingText", "its message cannot be shown: SystemExit"),
    "metaclass": (f"{__name__}.Hidden", "hidden"),
    "class": ("RuntimeError", "it has no class"),
    "closed": ("GeneratorExit", "closed"),
    "no module": ("Made", "made by a template"),
}


@job(name="tests.odd.async", max_attempts=2, retry=AT_ONCE)
async def raises(which: str) -> None:
    Runs.count += 1
    raise odd_error(which)


@job(name="tests.odd.plain", max_attempts=2, retry=AT_ONCE)
def raises_in_a_thread(which: str) -> None:
    Runs.count += 1
    raise odd_error(which)


@pytest.mark.parametrize("function", [raises, raises_in_a_thread], ids=["async", "plain"])
@pytest.mark.parametrize("which", EXPECTED)
async def test_an_unusual_error_fails_the_run_by_name_and_is_retried(broker: Broker, function: Any, which: str) -> None:
    handle = await function.delay(which)
    async with Worker():
        with pytest.raises(JobFailed) as failure:
            await handle.result(20)
    kind, message = EXPECTED[which]
    assert failure.value.type == kind
    assert message in failure.value.message
    assert "odd_error(which)" in failure.value.traceback or which == "class"
    assert Runs.count == 2


async def test_a_generator_exit_that_a_future_brings_is_a_failure(broker: Broker) -> None:
    """asyncio throws it into the task, which closes the coroutines within: none of them can catch it."""

    @job(name="tests.odd.future", max_attempts=2, retry=AT_ONCE)
    async def awaits() -> None:
        Runs.count += 1
        outcome = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(outcome.set_exception, GeneratorExit("from a future"))
        await outcome

    handle = await awaits.delay()
    async with Worker():
        with pytest.raises(JobFailed) as failure:
            await handle.result(20)
    assert failure.value.type == "GeneratorExit"
    assert Runs.count == 2


async def test_a_policy_that_cannot_judge_an_error_fails_the_run(broker: Broker) -> None:
    @job(name="tests.odd.policy", max_attempts=5, retry=AT_ONCE, discard_on=(Undecided,))
    async def fails() -> None:
        Runs.count += 1
        raise ValueError("the cause")

    handle = await fails.delay()
    async with Worker():
        with pytest.raises(JobFailed) as failure:
            await handle.result(20)
    assert failure.value.message == "it does not know"
    assert "the cause" in failure.value.traceback
    assert Runs.count == 1


@pytest.mark.parametrize(("signal", "field", "value"), [(Discard("why"), "reason", 3), (Retry(), "after", float("nan"))])
async def test_a_signal_with_a_changed_field_fails_the_run(broker: Broker, signal: Exception, field: str, value: Any) -> None:
    @job(name="tests.odd.signal", max_attempts=5)
    async def raises_it() -> None:
        Runs.count += 1
        setattr(signal, field, value)
        raise signal

    handle = await raises_it.delay()
    async with Worker():
        with pytest.raises(JobFailed):
            await handle.result(20)
    assert Runs.count == 1


# --- results and arguments ------------------------------------------------------------------------------------


class Slippery(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        if self.value > 1 and Runs.count:
            raise {2: KeyError, 3: RecursionError, 4: SystemExit, 5: GeneratorExit}[self.value]("odd")


@pytest.mark.parametrize("value", [2, 3, 4, 5])
async def test_a_result_whose_check_raises_anything_fails_after_one_run(broker: Broker, value: int) -> None:
    @job(name="tests.odd.result", max_attempts=5, retry=AT_ONCE)
    async def returns(value: int) -> Slippery:
        made = Slippery(1)
        made.value = value
        Runs.count += 1
        return made

    handle = await returns.delay(value)
    async with Worker():
        with pytest.raises(JobFailed, match="result"):
            await handle.result(20)
    assert Runs.count == 1


async def test_a_result_that_is_nested_too_deep_fails_after_one_run(broker: Broker) -> None:
    @job(name="tests.odd.deep", max_attempts=5, retry=AT_ONCE)
    async def returns() -> Any:
        Runs.count += 1
        nested: Any = []
        for _ in range(100_000):
            nested = [nested]
        return nested

    handle = await returns.delay()
    async with Worker():
        with pytest.raises(JobFailed):
            await handle.result(20)
    assert Runs.count == 1


@pytest.mark.parametrize("value", [2, 3, 4, 5])
async def test_an_argument_whose_check_raises_anything_fails_the_job(broker: Broker, value: int) -> None:
    @job(name="tests.odd.argument", max_attempts=5, retry=AT_ONCE)
    async def takes(value: Slippery) -> None:
        raise AssertionError("it is not called")

    handle = await takes.delay(Slippery(value))
    Runs.count = 1
    async with Worker():
        with pytest.raises(JobFailed) as failure:
            await handle.result(20)
    assert "odd" in failure.value.message
    [record] = await broker.read([parse_id(handle.id)])
    assert record is not None
    assert record.hand_backs == 0


async def run_once(broker: Broker, name: str, payload: bytes, **more: Any) -> Record:
    envelope = Envelope(id=IdFactory()(), job=name, payload=payload, **more)
    await broker.enqueue([envelope])
    async with Worker() as worker:
        await worker.drained()
    [record] = await broker.read([envelope.id])
    assert record is not None
    return record


# --- texts without a bound ---------------------------------------------------------------------------------------

LONG = "x" * 10_000_000


@job(name="tests.odd.verbose")
async def verbose(what: str) -> None:
    if what == "discard":
        raise Discard(LONG)
    if what == "cancel":
        raise Cancel(LONG)
    if what == "error":
        raise ValueError(LONG)


@pytest.mark.parametrize("what", ["discard", "cancel", "error"])
async def test_a_long_text_of_a_job_is_cut_off_in_store_and_log(broker: Broker, caplog: pytest.LogCaptureFixture, what: str) -> None:
    caplog.set_level(logging.INFO)
    record = await run_once(broker, verbose.name, verbose.codec.encode_arguments((what,), {}), max_attempts=1)
    assert_short(record, caplog)


async def test_a_job_that_discards_itself_is_logged_as_a_warning(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """It is the job's own decision, and no error of the worker or the code."""
    await run_once(broker, verbose.name, verbose.codec.encode_arguments(("discard",), {}))
    [logged] = [record for record in caplog.records if "discarded itself after" in record.getMessage()]
    assert logged.levelno == logging.WARNING


def assert_short(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    texts = [record.reason, record.waiting_for, *(part for error in record.errors for part in (error.type, error.message))]
    assert 4_096 <= max(len(text or "") for text in texts) <= 10_000
    assert all(len(error.traceback) <= 16_384 for error in record.errors)
    assert caplog.records
    assert all(len(logged.getMessage()) < 10_000 for logged in caplog.records)
