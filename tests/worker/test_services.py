"""The services of a session go on until their block ends, whatever happens to their tasks."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest

from taskflow.worker.events import ServiceFailed, WorkerEvent
from taskflow.worker.services import Services


class Scene:
    """Two services: each notes its starts, and waits."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.started: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.error: BaseException | None = None

    def services(self) -> Services:
        return Services(self, random.Random(1), on_end=lambda: None)  # type: ignore[arg-type]

    def emit(self, event: WorkerEvent) -> None:
        self.events.append(event)

    async def first(self) -> None:
        self._note("first")
        if (error := self.error) is not None:
            self.error = None
            raise error
        await asyncio.Event().wait()

    async def second(self) -> None:
        self._note("second")
        await asyncio.Event().wait()

    def _note(self, name: str) -> None:
        self.started.append(name)
        task = asyncio.current_task()
        assert task is not None
        self.tasks[name] = task

    async def until_started(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.started) < times:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.001)


async def test_a_service_that_a_job_cancels_starts_again_and_disturbs_no_other() -> None:
    scene = Scene()
    async with scene.services().running(scene.first, scene.second):
        await scene.until_started(2)
        scene.tasks["first"].cancel()
        await scene.until_started(3)
    assert scene.started == ["first", "second", "first"]
    assert scene.events == []


@pytest.mark.parametrize("error", [ValueError("one odd row"), BaseException("as none does")], ids=["an error", "no Exception"])
async def test_a_service_that_fails_is_reported_and_starts_again_after_a_pause(error: BaseException) -> None:
    scene = Scene()
    scene.error = error
    async with scene.services().running(scene.first, scene.second):
        await scene.until_started(3)
    assert scene.started == ["first", "second", "first"]
    [event] = scene.events
    assert isinstance(event, ServiceFailed)
    assert (event.service, event.error) == ("Scene.first", error)
    assert event.pause > 0


async def test_services_end_with_their_block() -> None:
    scene = Scene()
    async with scene.services().running(scene.first, scene.second):
        await scene.until_started(2)
    assert all(task.done() for task in scene.tasks.values())


async def test_a_service_that_is_woken_in_each_turn_of_the_loop_ends_with_its_block() -> None:
    """anyio alone passes over it: whenever it would cancel the task, that is about to run."""
    scene, woken, turns = Scene(), asyncio.Event(), 0

    async def busy() -> None:
        while True:
            woken.clear()
            await woken.wait()

    async def wake() -> None:
        nonlocal turns
        while turns < 10_000:
            turns += 1
            woken.set()
            await asyncio.sleep(0)

    waking = asyncio.create_task(wake())
    async with scene.services().running(busy):
        await asyncio.sleep(0.01)
        ended_at = turns
    assert turns - ended_at < 10
    waking.cancel()


async def test_a_block_whose_service_is_cancelled_before_its_first_step_is_cut_short_and_says_so() -> None:
    """anyio's group would end the block in silence, and the session would go on as if it had been asked to end."""
    scene, before, has_gone_on = Scene(), asyncio.all_tasks(), False

    async def live() -> None:
        nonlocal has_gone_on
        async with scene.services().running(scene.first, scene.second):
            for task in asyncio.all_tasks() - {*before, asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(10)
        has_gone_on = True

    living = asyncio.create_task(live())
    await asyncio.wait([living], timeout=5)
    assert living.cancelled()
    assert not has_gone_on
    del living
    gc.collect()  # Python would warn of coroutines that were never awaited
