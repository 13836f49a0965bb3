"""Accessibility of each page in both themes, and stored text that would change a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from taskflow.dashboard import Access
from tests.browser.conftest import Filled, NewContext
from tests.browser.screenshots import pages_of
from tests.browser.stage import Stage
from tests.dashboard.hostile import TEXTS, HostileStore
from tests.support.harnesses import MemoryHarness
from tests.support.world import World

THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
EMPTY = ("/", "/jobs", "/failures", "/workers", "/schedules", "/charts", "/audit")
AXE = Axe()


def assert_accessible(page: Page) -> None:
    """By the rules of axe-core, for both themes."""
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        found = AXE.run(page).response["violations"]
        seen = [(fault["id"], [node["html"] for node in fault["nodes"]][:3]) for fault in found]
        assert seen == [], f"{page.url}, {theme}"


def test_each_page_is_accessible(memory: Filled, page: Page) -> None:
    for path in pages_of(memory.scene).values():
        page.goto(memory.url + path)
        for details in page.locator("details").all():
            details.evaluate("one => one.open = true")
        assert_accessible(page)


def test_pages_without_anything_are_accessible(page: Page) -> None:
    with Stage(lambda: World(MemoryHarness)) as stage:
        for path in EMPTY:
            page.goto(stage.url + path)
            assert_accessible(page)


def test_a_reader_sees_no_action(page: Page) -> None:
    with Stage(lambda: World(MemoryHarness), lambda request: Access("eve")) as stage:
        for path in EMPTY:
            page.goto(stage.url + path)
            assert page.locator("form[method=post], .danger").count() == 0
        assert_accessible(page)


@pytest.fixture(params=TEXTS)
def hostile(request: pytest.FixtureRequest) -> Iterator[Stage]:
    text = TEXTS[request.param]
    with Stage(lambda: HostileStore(text), lambda request: Access(text, actions=True, show_arguments=True)) as stage:
        yield stage


def test_hostile_text_is_shown_as_text(hostile: Stage, new_context: NewContext) -> None:
    """It runs nothing, opens nothing, adds no element, and no page is wider than a phone."""
    page = new_context(viewport={"width": 360, "height": 800}).new_page()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    requested = list[str]()
    page.on("request", lambda request: requested.append(request.url))
    jobs = [f"/jobs/{record.id.hex()}" for record in hostile.world.records if len(record.id) == 16]
    for path in [*EMPTY, "/charts?hours=24", "/jobs?status=failed", *jobs]:
        page.goto(hostile.url + path)
        assert page.locator("img, iframe, object, [onerror], [style]:not(.uplot, .uplot *)").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    assert_accessible(page)
    assert [url for url in requested if not url.startswith(hostile.url)] == []
