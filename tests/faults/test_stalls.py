"""A blocked worker: what it reports about the job that blocks it, and what happens to its session."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import takewhile
from typing import Any

import pytest

from taskflow import BrokerUnavailable, JobContext, Status, Worker, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams, start_thread
from taskflow.model.session import Beat, BeatAnswer
from taskflow.worker import heartbeat, watchdog
from taskflow.worker.events import (
    BrokerCallFailed,
    InterpreterBlocked,
    LoopResumed,
    LoopStalled,
    SessionEnded,
    SessionOpened,
    StalledForGood,
)
from taskflow.worker.options import WorkerOptions
from tests.support.waiting import until
from tests.worker.scene import EventRecorder, FaultyBroker, Run, waits

TIMEOUT = 60.0


class ActingRecorder(EventRecorder):
    """Does something at the event with that number and kind, in the thread that emits it."""

    def __init__(self, on: type[Event], do: Callable[[], object], times: int = 1) -> None:
        super().__init__()
        self._on, self._do, self._times = on, do, times

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, self._on) and len(self.of(self._on)) == self._times:
            self._do()


def options(heard: EventRecorder, **more: Any) -> WorkerOptions:
    return WorkerOptions(subscribers=(heard,), **{"ttl": 20.0, "grace": 5.0, "stop_timeout": 0.5, **more})


def block() -> None:
    """Block until the test releases it, which it does after enough events."""
    assert Run.release_thread.wait(TIMEOUT)


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


@job(name="tests.stalls.blocks")
async def blocks(ctx: JobContext) -> str:
    await asyncio.sleep(0)
    block()
    return f"epoch {ctx.epoch}"


@job(name="tests.stalls.blocks_in_a_task")
async def blocks_in_a_task() -> None:
    async def inner() -> None:
        block()

    await asyncio.create_task(inner())


@job(name="tests.stalls.leaves_a_callback")
async def leaves_a_callback() -> None:
    asyncio.get_running_loop().call_soon(block)


# --- the loop ------------------------------------------------------------------------------------------------------------


async def test_a_job_that_blocks_the_loop_is_named_with_its_own_lines(broker: Broker) -> None:
    heard = ActingRecorder(LoopStalled, Run.release_thread.set)
    handle = await blocks.delay()
    async with Worker(options=options(heard)):
        assert await handle.result(TIMEOUT) == "epoch 1"
        await heard.wait_for(LoopResumed)
    [stalled] = heard.of(LoopStalled)
    assert stalled.lease is not None
    assert stalled.lease.envelope.job == "tests.stalls.blocks"
    assert stalled.seconds >= watchdog.FIRST_REPORT
    assert "in blocks\n    block()\n" in stalled.stack
    assert "taskflow/worker" not in stalled.stack


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a task's context cannot be read before")
async def test_a_task_that_a_job_has_begun_is_the_jobs(broker: Broker) -> None:
    heard = ActingRecorder(LoopStalled, Run.release_thread.set)
    handle = await blocks_in_a_task.delay()
    async with Worker(options=options(heard)):
        await handle.result(TIMEOUT)
    [stalled] = heard.of(LoopStalled)
    assert stalled.lease is not None
    assert stalled.lease.envelope.job == "tests.stalls.blocks_in_a_task"
    assert "in inner" in stalled.stack or "inner\n    block()" in stalled.stack


async def test_blocking_code_that_belongs_to_no_job_is_shown_too(broker: Broker) -> None:
    heard = ActingRecorder(LoopStalled, Run.release_thread.set)
    await leaves_a_callback.delay()
    async with Worker(options=options(heard)):
        await heard.wait_for(LoopStalled)
    [stalled] = heard.of(LoopStalled)
    assert stalled.lease is None
    assert "in block\n" in stalled.stack


@job(name="tests.stalls.runs_in_a_thread")
def runs_in_a_thread(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_plain_function_is_not_accused_when_the_loop_gets_no_time(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is in its own code, and makes no progress, as on an overloaded machine."""
    monkeypatch.setattr(watchdog.Watchdog, "_tick", lambda watch: setattr(watch, "_timer", watch._loop.call_later(60.0, int)))
    heard = EventRecorder()
    long = await runs_in_a_thread.delay(3.0)
    async with Worker(options=options(heard)):
        await heard.wait_for(LoopStalled)
        await long.result(TIMEOUT)
    assert {event.lease for event in heard.of(LoopStalled)} == {None}


async def test_a_stall_is_reported_less_and_less_often(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported after 1 s, 10 s, 100 s: here after a twentieth of that."""
    monkeypatch.setattr(watchdog, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(watchdog, "FIRST_REPORT", 0.05)
    heard = ActingRecorder(LoopStalled, Run.release_thread.set, times=2)
    handle = await blocks.delay()
    async with Worker(options=options(heard)):
        await handle.result(TIMEOUT)
    first, second = heard.of(LoopStalled)
    assert 0.05 <= first.seconds < 0.5 <= second.seconds


async def test_in_an_application_a_loop_that_stands_still_for_good_ends_the_session_and_not_the_process() -> None:
    """No heartbeat is sent for it any more. If the loop moves again after all, the worker goes on under a new session."""

    class Counted(MemoryBroker):
        beats = 0

        async def beat(self, beat: Beat) -> BeatAnswer:
            Counted.beats += 1
            return await super().beat(beat)

    @job(name="tests.stalls.blocks_for_good")
    async def blocks_for_good() -> tuple[int, int]:
        block()
        stand_still(0.5)  # a beat may have been under way
        before = Counted.beats
        stand_still(1.0)
        return before, Counted.beats

    with default_app().using(Counted()):
        heard = ActingRecorder(StalledForGood, Run.release_thread.set)
        handle = await blocks_for_good.delay()
        async with Worker(options=options(heard, stall_limit=1.5, ttl=1.0)):
            before, after = await handle.result(TIMEOUT)
            assert before == after
            await heard.wait_for(SessionOpened, times=2)
            Run.release.set()
            assert await (await waits.delay()).result(TIMEOUT) == "epoch 1"
    [told] = heard.of(StalledForGood)
    assert told.lease is not None
    assert told.lease.envelope.job == "tests.stalls.blocks_for_good"
    assert "taskflow-heartbeat" in told.stacks
    assert "in blocks_for_good" in told.stacks or "blocks_for_good\n" in told.stacks
    assert "was blocked for 1.5 s" in heard.of(SessionEnded)[0].why


async def test_a_subscriber_that_hangs_does_not_keep_the_limit_from_being_heeded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log hangs like this if the blocking job holds its lock."""
    monkeypatch.setattr(watchdog, "EMIT_TIMEOUT", 0.1)
    told = list[bool]()

    def on_limit(is_delivered: bool) -> None:
        told.append(is_delivered)
        Run.release_thread.set()

    heard = ActingRecorder(StalledForGood, block)
    handle = await blocks.delay()
    async with Worker(options=options(heard, stall_limit=1.5, on_stall_limit=on_limit)):
        await handle.result(TIMEOUT)
    assert told == [False]


# --- the heartbeat ----------------------------------------------------------------------------------------------------------


BeatIt = Callable[[Beat], Awaitable[BeatAnswer]]


class WithHeartbeat(FaultyBroker):
    """A broker whose heartbeats go through `beats`, which is given the real beat."""

    def __init__(self, beats: Callable[[BeatIt, Beat], Awaitable[BeatAnswer]]) -> None:
        super().__init__()
        self._beats = beats

    async def beat(self, beat: Beat) -> BeatAnswer:
        return await (super().beat(beat) if beat.leaving else self._beats(super().beat, beat))


async def test_another_session_follows_if_the_heartbeat_thread_ends() -> None:
    errors = [SystemExit("as no broker says")]

    async def fails_once(beat: BeatIt, told: Beat) -> BeatAnswer:
        if errors:
            raise errors.pop()
        return await beat(told)

    Run.release.set()
    with default_app().using(WithHeartbeat(fails_once)):
        heard = EventRecorder()
        async with Worker(options=options(heard)):
            await heard.wait_for(SessionOpened, times=2)
            assert await (await waits.delay()).result(TIMEOUT) is not None
    assert "its heartbeat thread has failed" in heard.of(SessionEnded)[0].why


async def test_a_heartbeat_thread_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat's call never returns, so that not even the thread's own deadline passes."""
    monkeypatch.setattr(heartbeat, "STOP_TIMEOUT", 0.1)
    beats, released = list[Beat](), threading.Event()

    async def hangs_at_first(beat: BeatIt, told: Beat) -> BeatAnswer:
        beats.append(told)
        if told.session == beats[0].session:
            released.wait(TIMEOUT)
            raise BrokerUnavailable("the test is over")
        return await beat(told)

    Run.release.set()
    with default_app().using(WithHeartbeat(hangs_at_first)):
        heard = EventRecorder()
        async with Worker(options=options(heard, ttl=0.4)):
            await heard.wait_for(SessionOpened, times=2)
            assert await (await waits.delay()).result(TIMEOUT) is not None
        released.set()
    assert "has sent nothing" in heard.of(SessionEnded)[0].why


async def test_beats_that_are_answered_slowly_keep_the_session() -> None:
    """Each answer comes within the ttl of the beat before it."""
    answered = list[float]()

    async def answers_slowly(beat: BeatIt, told: Beat) -> BeatAnswer:
        answer = await beat(told)
        await asyncio.sleep(0.6)
        answered.append(time.monotonic())
        return answer

    with default_app().using(WithHeartbeat(answers_slowly)):
        heard = EventRecorder()
        async with Worker(options=options(heard, ttl=1.5)):
            handle = await waits.delay()
            await until(lambda: len(answered) == 4)
            Run.release.set()
            assert await handle.result(TIMEOUT) == "epoch 1"
    assert not heard.of(SessionEnded)


async def test_a_beat_that_a_suspended_thread_sends_after_the_ttl_keeps_the_session() -> None:
    """If the store answers it, however long that takes, no other worker has the jobs."""
    beats = list[Beat]()

    async def is_suspended_after_the_first(beat: BeatIt, told: Beat) -> BeatAnswer:
        beats.append(told)
        if len(beats) == 1:
            asyncio.get_running_loop().call_later(0.01, time.sleep, 0.7)
        elif len(beats) == 2:
            await asyncio.sleep(0.2)
        return await beat(told)

    with default_app().using(WithHeartbeat(is_suspended_after_the_first)):
        heard = EventRecorder()
        async with Worker(options=options(heard, ttl=0.5)):
            handle = await waits.delay()
            await until(lambda: len(beats) == 3)
            Run.release.set()
            assert await handle.result(TIMEOUT) == "epoch 1"
    assert not heard.of(SessionEnded)


async def test_a_heartbeat_that_no_thread_can_be_had_for_is_tried_again(broker: Broker) -> None:
    """The previous session has ended; a worker that gave up now would live on and do nothing."""
    refusals, starts = [RuntimeError("can't start new thread")] * 2, list[str]()

    def start(target: Callable[[], None], name: str) -> threading.Thread:
        starts.append(name)
        if refusals and starts.count("taskflow-heartbeat") > 1 and name == "taskflow-heartbeat":
            raise refusals.pop()
        return start_thread(target, name)

    heard = EventRecorder()
    async with Worker(options=options(heard), seams=Seams(start_thread=start)):
        [worker] = await broker.admin.workers()
        await broker.beat(Beat(session=worker.session.id, leaving=True))
        await waits.delay()
        await heard.wait_for(SessionEnded)
        await Run.started.wait()
        Run.release.set()
    assert [event.why for event in heard.of(BrokerCallFailed) if event.operation == "a new session"] == ["can't start new thread"] * 2


async def test_a_worker_winds_down_when_jobs_have_taken_all_of_the_loops_own_threads(broker: Broker) -> None:
    """Waiting for its heartbeat needs none of them."""

    @job(name="tests.stalls.takes_threads")
    async def takes_threads() -> None:
        for _ in range(64):
            asyncio.get_running_loop().run_in_executor(None, block)

    handle = await takes_threads.delay()
    async with Worker(options=options(EventRecorder())):
        await handle.result(TIMEOUT)
        began_at = time.monotonic()
    assert time.monotonic() - began_at < heartbeat.STOP_TIMEOUT
    Run.release_thread.set()


# --- the interpreter -----------------------------------------------------------------------------------------------------


def compute_in_c() -> None:
    """Make one call of C code that keeps the interpreter lock for a second and a half of CPU time."""
    ends_at = time.thread_time() + watchdog.FIRST_REPORT + 2 * watchdog.CHECK_INTERVAL
    deque(takewhile(ends_at.__gt__, iter(time.thread_time, None)), maxlen=0)


@job(name="tests.stalls.computes")
async def computes() -> None:
    compute_in_c()
    await asyncio.sleep(0)


@job(name="tests.stalls.computes_in_a_thread")
def computes_in_a_thread() -> None:
    compute_in_c()
    block()


@job(name="tests.stalls.sleeps_in_c")
async def sleeps_in_c() -> None:
    ctypes.PyDLL(None).usleep(int((watchdog.FIRST_REPORT + 4 * watchdog.CHECK_INTERVAL) * 1e6))  # a PyDLL's function keeps the lock


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a thread has computed")
@pytest.mark.parametrize("culprit", [computes, computes_in_a_thread], ids=["in the loop", "in a thread"])
async def test_c_code_that_keeps_the_interpreter_is_named_afterwards(broker: Broker, culprit: Any) -> None:
    heard = ActingRecorder(InterpreterBlocked, Run.release_thread.set)
    handle = await culprit.delay()
    async with Worker(options=options(heard)):
        await handle.result(TIMEOUT)
        while not (named := [held for held in heard.of(InterpreterBlocked) if held.is_computed and held.lease]):
            await heard.wait_for(InterpreterBlocked, len(heard.of(InterpreterBlocked)) + 1)
    [held, *_] = named
    assert held.seconds >= watchdog.FIRST_REPORT
    assert held.lease.envelope.job == culprit.name


async def test_a_process_that_was_stopped_blames_no_job(broker: Broker) -> None:
    heard = EventRecorder()
    handle = await sleeps_in_c.delay()
    async with Worker(options=options(heard)):
        await handle.result(TIMEOUT)
        await heard.wait_for(InterpreterBlocked)
        assert await handle.status() is Status.SUCCEEDED
    [held, *_] = heard.of(InterpreterBlocked)
    assert not held.is_computed
