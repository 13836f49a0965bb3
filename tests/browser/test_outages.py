"""A page says that it is not live, and recovers: after a dropped connection, and after its store has been away. And eight tabs at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

from taskflow import run_sync
from taskflow.app.app import default_app
from taskflow.dashboard import dashboard_wsgi, live
from taskflow.model.ids import id_text
from tests.browser.conftest import Filled, NewContext
from tests.browser.stage import ADA, PREFIX
from tests.support.harnesses import MemoryHarness
from tests.support.postgres import PostgresServer
from tests.support.servers import RedisServer
from tests.support.world import World

TABS = 8
PATIENCE = 45_000  # milliseconds: a stream ends after 20 s, and a busy server may take as long to restart


Server = RedisServer | PostgresServer


async def add(world: World, queue: str) -> str:
    return id_text((await world.add(queue=queue, job="shop.shelf.fill")).id)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A window in which requests may fail: the console has an error for each."""
    context = browser.new_context()
    yield context
    context.close()


def test_eight_tabs_of_a_browser_are_live_with_one_stream(stage: Filled, new_context: NewContext) -> None:
    context, streams = new_context(), list[str]()
    context.on("request", lambda request: streams.append(request.url) if request.url.endswith("/live") else None)
    tabs = [context.new_page() for _ in range(TABS)]
    for tab in tabs:
        tab.goto(f"{stage.url}/jobs?queue=tabs")
    for tab in tabs:
        expect(tab.locator("#live")).to_have_text("live")
    job = stage.run(lambda world: add(world, "tabs"))
    for tab in tabs:
        expect(tab.locator(f"input[value='{job}']")).to_be_visible()
    assert len(streams) <= 2  # a stream may have reached its end meanwhile
    tabs[0].close()
    other = stage.run(lambda world: add(world, "tabs"))
    for tab in tabs[1:]:
        expect(tab.locator(f"input[value='{other}']")).to_be_visible()


@contextmanager
def wsgi_host() -> Iterator[tuple[str, Callable[[str], str]]]:
    """Serve the dashboard by WSGI, where pages poll. Yields its URL, and a function that adds a job to a queue."""
    with ThreadPoolExecutor() as threads, default_app().using((world := World(MemoryHarness)).broker):
        mounts = {PREFIX: dashboard_wsgi(authorize=lambda request: ADA)}
        server = make_server("127.0.0.1", 0, DispatcherMiddleware(NotFound(), mounts), threaded=True)
        serving = threads.submit(server.serve_forever)
        # In another thread, since playwright's event loop is in this one.
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}", lambda queue: threads.submit(run_sync, add(world, queue)).result(30)
        server.shutdown()
        serving.result(30)
        server.server_close()
        threads.submit(asyncio.run, world.close()).result(30)


def test_one_tab_polls_for_eight_and_each_shows_a_change(new_context: NewContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_AGE", 1_000_000_000)  # pages change with the store alone
    context, answers = new_context(), list[tuple[Page, int]]()

    def note(answer: Response) -> None:
        if "x-taskflow-fragment" in answer.request.headers:
            answers.append((answer.frame.page, answer.status))

    context.on("response", note)
    with wsgi_host() as (url, sent):
        tabs = [context.new_page() for _ in range(TABS)]
        for tab in tabs:
            tab.goto(f"{url}/jobs?queue=polled")
        for tab in tabs:
            expect(tab.locator("#live")).to_have_text("live")
        answers.clear()
        tabs[0].wait_for_timeout(6_500)
        assert {status for _, status in answers} == {304}
        assert len({tab for tab, _ in answers}) == 1
        poller = answers[0][0]
        answers.clear()
        job = sent("polled")
        for tab in tabs:
            expect(tab.locator(f"input[value='{job}']")).to_be_visible()
        assert sorted(tabs.index(tab) for tab, status in answers if status == 200) == list(range(TABS))
        poller.close()
        other = sent("polled")
        for tab in tabs:
            if tab is not poller:
                expect(tab.locator(f"input[value='{other}']")).to_be_visible()
        context.close()


def test_a_dropped_connection_is_shown_and_taken_up_again(stage: Filled, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{stage.url}/jobs?queue=dropped")
    expect(page.locator("#live")).to_have_text("live")
    context.set_offline(True)
    job = stage.run(lambda world: add(world, "dropped"))
    expect(page.locator("#live")).to_have_text("not live", timeout=PATIENCE)
    context.set_offline(False)
    expect(page.locator(f"input[value='{job}']")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#live")).to_have_text("live")


@contextmanager
def command(broker: str) -> Iterator[str]:
    """Run `taskflow dashboard`. Yields the URL that it prints."""
    line = [sys.executable, "-m", "taskflow", "dashboard", "--broker", broker]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**os.environ, "TASKFLOW_ENQUEUE_TIMEOUT": "2"}) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(params=[RedisServer, PostgresServer], ids=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as server:
        yield server


def url_of(server: Server) -> str:
    return server.url if isinstance(server, RedisServer) else server.url()


def pause_a_queue(broker: str) -> None:
    """Make the store."""
    subprocess.run([sys.executable, "-m", "taskflow", "pause", "mail", "--broker", broker], check=True, capture_output=True)


def test_a_restarted_server_is_shown_and_taken_up_again(server: Server, context: BrowserContext) -> None:
    page, other = context.new_page(), context.new_page()
    pause_a_queue(url_of(server))
    with command(url_of(server)) as url:
        page.goto(url)
        expect(page.locator("#live")).to_have_text("live")
        server.stop()
        expect(page.locator("#live")).to_have_text("the store does not answer", timeout=PATIENCE)
        workers = url.partition("?")[0] + "workers"
        answer = other.goto(workers)
        assert answer is not None
        assert answer.status == 503
        expect(other.locator("main")).to_contain_text("The store does not answer")
        server.restart()
        expect(page.locator("#live")).to_have_text("live", timeout=PATIENCE)
        other.goto(workers)
        expect(other.locator("h1")).to_have_text("Workers")


def test_the_command_opens_to_one_browser(page: Page, browser: Browser, tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/queue.db"
    pause_a_queue(broker)
    with command(broker) as url:
        page.goto(url)
        expect(page.locator("h1")).to_have_text("Overview")
        page.get_by_role("link", name="Workers").first.click()
        expect(page.locator(".empty")).to_contain_text("taskflow worker MODULE")
        other = browser.new_context()
        answer = other.new_page().goto(url)
        assert answer is not None
        assert answer.status == 403
        other.close()
        page.close()
