"""Charts show the values under the pointer and zoom, and keep their zoom while the page is refreshed."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from taskflow.model.measures import Measure, pack_measures
from tests.browser.conftest import Filled, NewContext
from tests.browser.scene import NEW
from tests.support.world import World


def plot_of(page: Page, title: str) -> Locator:
    plot = page.locator("live-plot", has_text=title)
    expect(plot.locator("canvas")).to_be_visible()
    return plot


def point_at(page: Page, plot: Locator, share: float) -> tuple[float, float]:
    """Move the pointer to this share of the plot's width, and return the place."""
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    place = box["x"] + share * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(*place)
    return place


def zoom(page: Page, plot: Locator) -> None:
    point_at(page, plot, 0.3)
    page.mouse.down()
    point_at(page, plot, 0.7)
    page.mouse.up()
    expect(plot.get_by_role("button", name="Show all")).to_be_visible()


def ends_of(page: Page, plot: Locator) -> tuple[str, str]:
    """Return the times at both ends of a plot."""
    legend = plot.locator(".u-legend .u-value").first
    found = []
    for share in (0.001, 0.999):
        point_at(page, plot, share)
        expect(legend).to_have_text(re.compile(r"\d"))
        found.append(legend.inner_text())
    return found[0], found[1]


def test_a_chart_shows_the_values_under_the_pointer(stage: Filled, page: Page) -> None:
    page.goto(f"{stage.url}/charts?queue=mail")
    plot = plot_of(page, "Runs per minute")
    assert plot.locator("svg").count() == 0
    point_at(page, plot, 0.9)
    expect(plot.locator(".u-legend")).to_contain_text(
        re.compile(r"From \(UTC\)\s*\d{4}-\d\d-\d\d \d\d:\d\d\s*all\s*[\d.]+\s*failed\s*[\d.]+")
    )
    page.goto(f"{stage.url}/queues/imports")
    waits = plot_of(page, "Waits in the last day")
    point_at(page, waits, 0.5)
    expect(waits.locator(".u-legend")).to_contain_text(re.compile(r"Below\s*[\d.]+m?s\s*before .*?\s*[\d.]+%\s*since .*?\s*[\d.]+%"))


def test_a_chart_marks_deploys(stage: Filled, page: Page) -> None:
    page.goto(f"{stage.url}/charts?queue=imports")
    expect(plot_of(page, "Runs per minute").locator(f".marks [title='deploy {NEW}']")).to_be_visible()


def test_a_chart_keeps_its_zoom_when_the_page_is_refreshed(stage: Filled, page: Page) -> None:
    page.goto(stage.url)
    expect(page.locator("#live")).to_have_text("live")
    plot = plot_of(page, "Runs per minute")
    whole = ends_of(page, plot)
    zoom(page, plot)
    part = ends_of(page, plot)
    assert whole[0] < part[0] < part[1] < whole[1]
    page.evaluate("document.querySelector('h1').textContent = 'former'")
    stage.run(lambda world: world.broker.admin.pause("zoom"))
    expect(page.locator("h1")).to_have_text("Overview", timeout=15_000)
    assert ends_of(page, plot) == part
    plot.get_by_role("button", name="Show all").click()
    expect(plot.get_by_role("button", name="Show all")).to_be_hidden()
    assert whole[0] <= ends_of(page, plot)[0] < part[0]  # the chart begins a minute later once a minute has passed


def test_a_chart_shows_hostile_names_as_text(memory: Filled, page: Page) -> None:
    name = "<img src=x onerror=alert(1)>\u202e"

    async def record(world: World) -> None:
        for number, deploy in enumerate(("v1", name)):
            measure = Measure(runs={"succeeded": 10}, waits={20: 10}, times={21: 10}, deploys={deploy: 10})
            await world.broker.admin.record_measures(bytes([number] * 16), pack_measures({("mail", name): measure}))
            world.clock.advance(600.0)

    memory.run(record)
    for path in ("/charts?hours=6", "/queues/mail"):
        page.goto(memory.url + path)
        expect(page.locator("canvas").first).to_be_visible()
        assert page.locator("main img").count() == 0


def test_a_chart_follows_the_theme_and_the_width(memory: Filled, new_context: NewContext) -> None:
    page = new_context(color_scheme="light").new_page()
    page.goto(memory.url + "/charts")
    plot = plot_of(page, "Runs per minute")
    marker = page.locator(".u-marker").nth(1)
    light = marker.evaluate("each => getComputedStyle(each).borderTopColor")
    page.emulate_media(color_scheme="dark")
    expect(marker).not_to_have_css("border-top-color", light)
    page.set_viewport_size({"width": 360, "height": 800})
    while page.locator(".u-wrap").first.evaluate("each => each.clientWidth") >= 360:  # the policy forbids what wait_for_function does
        page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(plot.locator("canvas")).to_be_visible()


def test_charts_without_a_script_are_drawings_with_a_table(memory: Filled, new_context: NewContext) -> None:
    page = new_context(java_script_enabled=False).new_page()
    page.goto(memory.url + "/charts")
    expect(page.get_by_role("img", name="Runs per minute")).to_be_visible()
    page.get_by_text("Table of these charts").click()
    expect(page.get_by_role("region", name="Charts as a table")).to_be_visible()
