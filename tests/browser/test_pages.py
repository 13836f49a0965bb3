"""Each page and each action on each kind of store; without a script, and by keyboard alone, on one of them."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from taskflow.model.ids import id_text, parse_id
from taskflow.model.verdict import RunError
from tests.browser.conftest import Filled, NewContext
from tests.browser.screenshots import pages_of
from tests.support.verdicts import failed, succeeded
from tests.support.world import World

HEADINGS = {
    "overview": "Overview",
    "jobs": "Jobs",
    "job": "shop.images.thumbnail ready",
    "failed-job": "shop.imports.import_row failed",
    "failures": "Failures by cause",
    "preview": "Retry 12 jobs?",
    "queue": "Queue imports",
    "workers": "Workers",
    "schedules": "Schedules",
    "calendar": "Schedules",
    "charts": "Charts",
    "audit": "Audit log",
}


async def add(world: World, queue: str = "shelf", number: int = 1, after: float = 0.0) -> list[str]:
    """Add jobs that a test may change, in a queue that has no worker."""
    envelopes = [world.an_envelope(queue=queue, job="shop.shelf.fill", after=after) for _ in range(number)]
    await world.enqueue(*envelopes)
    return [id_text(envelope.id) for envelope in envelopes]


def row(page: Page, job_id: str) -> str:
    """Return the selector of the row of a job in the list."""
    return f"tr:has(input[value='{job_id}'])"


@pytest.mark.each_store
def test_each_page_is_live_and_fits_a_phone(stage: Filled, page: Page) -> None:
    for name, path in pages_of(stage.scene).items():
        answer = page.goto(stage.url + path)
        assert answer is not None
        assert answer.status == 200
        expect(page.locator("h1")).to_have_text(HEADINGS[name])
        if page.locator("main[data-live]").count():
            expect(page.locator("#live")).to_have_text("live")
        for width in (360, 1_280):
            page.set_viewport_size({"width": width, "height": 800})
            for _ in range(60):  # a plot follows the width after it is drawn
                if page.evaluate("document.documentElement.scrollWidth") <= width:
                    break
                page.wait_for_timeout(50)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            hidden = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
            assert page.evaluate(hidden) == 0, f"{name}: a part of a table is beside the window"


def test_each_page_works_without_a_script(stage: Filled, new_context: NewContext) -> None:
    page = new_context(java_script_enabled=False).new_page()
    page.goto(stage.url)
    for name in ("Jobs", "Failures", "Workers", "Schedules", "Charts", "Audit", "Overview"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.locator("[aria-current=page]").first).to_have_text(name)
    [first, second] = stage.run(lambda world: add(world, number=2))
    page.goto(f"{stage.url}/jobs?queue=shelf&status=ready")
    page.locator(row(page, first)).get_by_role("checkbox").check()
    page.get_by_label("Reason").fill("by hand")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("h1")).to_have_text("shop.shelf.fill cancelled")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator("h1")).to_have_text("Discard 1 job?")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("status")).to_contain_text("1 job was discarded")
    page.goto(f"{stage.url}/jobs?queue=shelf")
    expect(page.locator(row(page, first))).to_have_count(0)
    expect(page.locator(row(page, second))).to_be_visible()


@pytest.mark.each_store
def test_a_change_of_the_store_appears_by_itself(stage: Filled, page: Page) -> None:
    page.goto(f"{stage.url}/jobs?queue=soon")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator(".empty")).to_contain_text("No job matches")
    [job] = stage.run(lambda world: add(world, queue="soon"))
    expect(page.locator(row(page, job))).to_be_visible()
    page.goto(stage.url)
    assert "no worker takes it" in page.locator("tr", has_text="soon").inner_text()
    stage.run(lambda world: world.broker.admin.pause("soon"))
    expect(page.locator("tr", has_text="soon")).to_contain_text("paused")


def test_typing_and_selecting_keep_the_page_as_it_is(stage: Filled, page: Page) -> None:
    [job] = stage.run(lambda world: add(world, queue="kept"))
    page.goto(f"{stage.url}/jobs?queue=kept")
    expect(page.locator("#live")).to_have_text("live")
    page.locator(row(page, job)).get_by_role("checkbox").check()
    expect(page.locator("#live")).to_have_text("paused: jobs are selected")
    [other] = stage.run(lambda world: add(world, queue="kept"))
    page.wait_for_timeout(4_000)
    expect(page.locator(row(page, other))).to_have_count(0)
    expect(page.locator(row(page, job)).get_by_role("checkbox")).to_be_checked()
    expect(page.locator("#live")).to_have_text("paused: jobs are selected")
    page.locator(row(page, job)).get_by_role("checkbox").uncheck()
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator(row(page, other))).to_be_visible()


def test_a_refresh_keeps_the_focus_and_open_details(stage: Filled, page: Page) -> None:
    first, second = stage.run(lambda world: add(world, queue="focus", number=2))
    page.goto(f"{stage.url}/jobs?queue=focus")
    expect(page.locator("#live")).to_have_text("live")
    link = page.locator(row(page, first)).get_by_role("link").first
    link.focus()
    [third] = stage.run(lambda world: add(world, queue="focus"))
    expect(page.locator(row(page, third))).to_be_visible()
    expect(link).to_be_focused()
    stage.run(lambda world: world.broker.cancel([parse_id(second)]))
    expect(page.locator(row(page, second))).to_contain_text("cancelled")
    expect(link).to_be_focused()
    page.goto(f"{stage.url}/charts")
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_text("Table of these charts").click()
    page.evaluate("document.querySelector('h1').textContent = 'former'")
    stage.run(lambda world: add(world, queue="focus"))
    expect(page.locator("h1")).to_have_text("Charts")
    expect(page.get_by_role("region", name="Charts as a table")).to_be_visible()


@pytest.mark.each_store
def test_one_job_is_acted_on(stage: Filled, page: Page) -> None:
    """Run now, cancel, retry, and discard."""
    [job] = stage.run(lambda world: add(world, after=3_600.0))
    page.goto(f"{stage.url}/jobs/{job}")
    for button, status in (("Run now", "ready"), ("Cancel", "cancelled"), ("Retry", "ready"), ("Cancel", "cancelled")):
        page.get_by_label("Reason").fill(f"for {status}")
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.locator("h1")).to_have_text(f"shop.shelf.fill {status}")
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("status")).to_contain_text("1 job was discarded")
    page.goto(f"{stage.url}/audit")
    for reason in ("for ready", "for cancelled"):
        expect(page.locator("tr", has_text=reason).first).to_contain_text("ada")


@pytest.mark.each_store
def test_all_jobs_that_match_are_acted_on_after_a_preview(stage: Filled, page: Page) -> None:
    """Above 1,000 the name of the action is typed."""
    stage.run(lambda world: add(world, queue="bulk", number=1_001))
    page.goto(f"{stage.url}/jobs?queue=bulk&status=ready")
    page.get_by_role("link", name=re.compile("^Cancel")).click()
    expect(page.locator("h1")).to_have_text("Cancel 1,001 jobs?")
    page.get_by_role("button", name="Cancel").click()  # the browser asks for the word
    expect(page.locator("h1")).to_have_text("Cancel 1,001 jobs?")
    page.get_by_label("to confirm").fill("cancel")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_contain_text("1,001 jobs were cancelled", timeout=30_000)


@pytest.mark.each_store
def test_the_failures_of_a_cause_are_retried_one_first(stage: Filled, page: Page) -> None:
    page.goto(stage.url)
    page.get_by_role("link", name="httpx.ConnectTimeout").click()
    group = page.locator("article", has_text="httpx.ConnectTimeout")
    expect(group.locator(".count")).to_have_text("4")
    group.get_by_role("button", name=re.compile("^1 ")).click()
    expect(page.locator("h1")).to_have_text("Retry 1 job?")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("h1")).to_have_text("shop.payments.charge ready")
    page.goto(f"{stage.url}/failures")
    expect(group.locator(".count")).to_have_text("3")


@pytest.mark.each_store
def test_failures_that_match_are_retried_in_stages_until_one_fails_again(stage: Filled, page: Page) -> None:
    error = RunError("builtins.OSError", "the printer is on fire", "")

    async def end(world: World, bad: int) -> int:
        leases = await world.claim(await world.a_session(queues=("printer",)), ["printer"])
        await world.settle(*[failed(lease, error) for lease in leases[:bad]], *map(succeeded, leases[bad:]))
        return len(leases)

    stage.run(lambda world: add(world, queue="printer", number=14))
    stage.run(lambda world: end(world, 14))
    page.goto(f"{stage.url}/failures?queue=printer")
    page.get_by_role("button", name="in stages of 1, 10, the rest").click()
    expect(page.locator("main")).to_contain_text("The newest one first, then ten, then the rest.")
    page.get_by_role("button", name="Retry in stages").click()
    expect(page.locator("main")).to_contain_text("1 of 1 job of this stage has not ended yet")
    assert stage.run(lambda world: end(world, 0)) == 1
    expect(page.locator("main")).to_contain_text("10 of 10 jobs of this stage have not ended yet")
    stage.world.clock.advance(1.0)  # a run ends later than the one before
    assert stage.run(lambda world: end(world, 2)) == 10
    expect(page.locator("h1")).to_have_text("Retry in stages: stopped")
    expect(page.locator(".alert")).to_contain_text("2 of 10 failed again: builtins.OSError: the printer is on fire (0")
    expect(page.locator(".alert")).to_contain_text("); 3 of 14 were not retried")
    page.goto(f"{stage.url}/failures?queue=printer")
    expect(page.locator("article .count")).to_have_text("5")


@pytest.mark.each_store
def test_selected_jobs_run_now(stage: Filled, page: Page) -> None:
    jobs = stage.run(lambda world: add(world, queue="later", number=3, after=3_600.0))
    page.goto(f"{stage.url}/jobs?queue=later")
    for job in jobs[:2]:
        page.locator(row(page, job)).get_by_role("checkbox").check()
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_role("status")).to_contain_text("2 jobs were made due now")
    page.goto(f"{stage.url}/jobs?queue=later")
    for job, status in zip(jobs, ("ready", "ready", "scheduled"), strict=True):
        expect(page.locator(row(page, job)).locator(".status")).to_have_text(status)


@pytest.mark.each_store
def test_a_queue_and_a_schedule_are_paused_and_resumed(stage: Filled, page: Page) -> None:
    page.goto(f"{stage.url}/queues/mail")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("h1")).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1")).not_to_contain_text("paused")
    page.goto(f"{stage.url}/schedules")
    schedule = page.locator("tr", has_text="carts.remind")
    for button, shown in (("Pause", "Resume"), ("Resume", "Pause")):
        schedule.get_by_role("button", name=button).click()
        expect(schedule.get_by_role("button", name=shown)).to_be_visible()
    schedule.get_by_role("button", name="Run now").click()
    expect(page.locator("h1")).to_contain_text("shop.carts.remind")


def focused(page: Page) -> tuple[str, bool]:
    """Return the text of the element that has the focus, and whether one sees that it has."""
    text, style, width = page.evaluate(
        """() => {
            const one = document.activeElement, style = getComputedStyle(one);
            return [one.ariaLabel || one.innerText || one.value || one.name || "", style.outlineStyle, style.outlineWidth];
        }"""
    )
    return text.strip(), style != "none" and width != "0px"


def tab_to(page: Page, text: str, most: int = 60) -> None:
    """Press Tab until the element with this text has the focus. Each element on the way must show it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        found, is_seen = focused(page)
        assert is_seen, found
        if found == text:
            return
    raise AssertionError(f"Tab does not lead to {text}")


def test_the_keyboard_is_enough(stage: Filled, page: Page) -> None:
    [job] = stage.run(lambda world: add(world, queue="keys"))
    page.goto(stage.url)
    tab_to(page, "Skip to the content", 1)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(stage.url)
    tab_to(page, "Jobs", 10)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Jobs")
    page.goto(f"{stage.url}/jobs?queue=keys")
    tab_to(page, f"Job {job}")
    page.keyboard.press("Space")
    expect(page.locator(row(page, job)).get_by_role("checkbox")).to_be_checked()
    tab_to(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("shop.shelf.fill cancelled")


def test_keys_move_select_open_and_filter(stage: Filled, page: Page) -> None:
    stage.run(lambda world: add(world, queue="rows", number=2))
    page.goto(f"{stage.url}/jobs?queue=rows")
    expect(page.locator("#live")).to_have_text("live")
    links, boxes = page.locator("tbody td:nth-child(2) a"), page.get_by_role("checkbox")
    for key, place in (("j", 0), ("j", 1), ("j", 1), ("k", 0), ("k", 0), ("j", 1)):
        page.keyboard.press(key)
        expect(links.nth(place)).to_be_focused()
    page.keyboard.press("x")
    expect(boxes.nth(1)).to_be_checked()
    expect(boxes.nth(0)).not_to_be_checked()
    page.keyboard.press("x")
    expect(boxes.nth(1)).not_to_be_checked()
    page.keyboard.press("/")
    expect(page.get_by_label("Id", exact=True)).to_be_focused()
    page.keyboard.type("jkx?")
    expect(page.get_by_label("Id", exact=True)).to_have_value("jkx?")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.goto(f"{stage.url}/jobs?queue=rows")
    page.keyboard.press("j")
    path = links.first.get_attribute("href")
    page.keyboard.press("Enter")
    expect(page).to_have_url(stage.origin + str(path))


def test_a_dialog_explains_the_keys(stage: Filled, page: Page) -> None:
    page.goto(f"{stage.url}/jobs")
    dialog = page.get_by_role("dialog", name="Keys")
    page.keyboard.press("?")
    expect(dialog).to_contain_text("next or previous row")
    page.keyboard.press("j")  # the page behind it does not move
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
