"""Chromium, a dashboard on each kind of store, and pages whose faults fail the test.

Playwright runs an event loop in the thread of the tests, so none of them is a coroutine: `Stage.run` runs what is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.browser.chromium import CHROMIUM, chromium
from tests.browser.scene import Scene, clock_for, fill
from tests.browser.stage import Stage
from tests.support import tiers
from tests.support.harnesses import BROKERS, MemoryHarness, StoreHarness
from tests.support.world import World

MINUTES = 20

REPORT_POLICY = "document.addEventListener('securitypolicyviolation', (event) => console.error('CSP', event.violatedDirective))"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip(f"{CHROMIUM} is not there: install Debian's chromium, or name one in TASKFLOW_CHROMIUM")
    with chromium() as browser:
        yield browser


class Filled(Stage):
    """A stage with the scene."""

    scene: Scene


def _filled(harness: type[StoreHarness]) -> Iterator[Filled]:
    now = datetime.now(UTC)
    with Filled(lambda: World(harness, clock=clock_for(now, MINUTES))) as stage:
        stage.scene = stage.run(lambda world: fill(world, now))
        yield stage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test of what pages do in a browser one kind of store, in turn: `tests.nightly` runs all of them on each store."""
    if "stage" not in metafunc.fixturenames:
        return
    name, is_on_each = metafunc.definition.name, any(mark.name == "each_store" for mark in metafunc.definition.iter_markers())
    kinds = BROKERS if is_on_each or os.environ.get(tiers.ALL) else [BROKERS[crc32(name.encode()) % len(BROKERS)]]
    params = [pytest.param(kind, marks=pytest.mark.xdist_group(kind.name), id=kind.name) for kind in kinds]
    metafunc.parametrize("stage", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest) -> Iterator[Filled]:
    """The scene on a kind of store. Tests of one kind share it: they may add to it, and change what they have added."""
    yield from _filled(request.param)


@pytest.fixture
def memory() -> Iterator[Filled]:
    yield from _filled(MemoryHarness)


NewContext = Callable[..., BrowserContext]


@pytest.fixture
def new_context(browser: Browser) -> Iterator[NewContext]:
    """Makes windows of other people. An error on the console, a script that fails or a breach of the policy fails the test."""
    contexts, faults = list[BrowserContext](), list[str]()

    def noted(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"{message.text} ({message.location.get('url')})")

    def made(**options: Any) -> BrowserContext:
        context = browser.new_context(**{"viewport": {"width": 1_280, "height": 800}, **options})
        context.set_default_timeout(15_000)
        context.add_init_script(REPORT_POLICY)
        context.on("console", noted)
        context.on("weberror", lambda error: faults.append(str(error.error)))
        contexts.append(context)
        return context

    yield made
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(new_context: NewContext) -> Page:
    return new_context().new_page()
