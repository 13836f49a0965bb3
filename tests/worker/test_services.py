"""A session's services go on until their block ends, whatever happens to their tasks."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest

from taskflow.app.events import Event, Events
from taskflow.worker.events import ServiceFailed
from taskflow.worker.services import Service, Services
from tests.support.waiting import until


class Scene:
    """Two services: each records its starts, and waits."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.started: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.error: BaseException | None = None

    def running(self, *services: Service) -> Services:
        return Services(Events(self.events.append), random.Random(1), lambda: None, *services)

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
        await until(lambda: len(self.started) >= times)


async def test_a_service_that_a_job_cancels_starts_again_and_disturbs_no_other() -> None:
    scene = Scene()
    async with scene.running(scene.first, scene.second):
        await scene.until_started(2)
        scene.tasks["first"].cancel()
        await scene.until_started(3)
    assert scene.started == ["first", "second", "first"]
    assert scene.events == []


@pytest.mark.parametrize("error", [ValueError("one odd row"), BaseException("as none does")], ids=["an error", "no Exception"])
async def test_a_service_that_fails_is_reported_and_starts_again_after_a_pause(error: BaseException) -> None:
    scene = Scene()
    scene.error = error
    async with scene.running(scene.first, scene.second):
        await scene.until_started(3)
    assert scene.started == ["first", "second", "first"]
    [event] = scene.events
    assert isinstance(event, ServiceFailed)
    assert (event.service, event.error) == ("Scene.first", error)
    assert event.pause > 0


async def test_services_end_with_their_block() -> None:
    scene = Scene()
    async with scene.running(scene.first, scene.second):
        await scene.until_started(2)
    assert all(task.done() for task in scene.tasks.values())


async def test_a_service_that_is_woken_in_each_turn_of_the_loop_ends_with_its_block() -> None:
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
    async with scene.running(busy):
        await asyncio.sleep(0.01)
        ended_at = turns
    assert turns - ended_at < 10
    waking.cancel()


async def test_a_service_that_is_cancelled_before_its_first_step_starts_again() -> None:
    scene, before = Scene(), asyncio.all_tasks()
    async with scene.running(scene.first, scene.second):
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await scene.until_started(2)
    assert sorted(scene.started) == ["first", "second"]
    gc.collect()  # Python would warn about coroutines that were never awaited
