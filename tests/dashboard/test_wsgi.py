"""The dashboard in WSGI hosts: the same pages and actions, by the same code, and polling in place of a stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from starlette.requests import Request
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, TestResponse

from taskflow import run_sync
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.dashboard import Access, dashboard_wsgi, live
from taskflow.dashboard.guard import Authorize
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.ids import id_text
from taskflow.model.record import Status
from tests.dashboard.site import ADA
from tests.support.forks import run_in_fork
from tests.support.harnesses import BROKERS, MemoryHarness
from tests.support.world import World

SAME = {"Sec-Fetch-Site": "same-origin"}
FORM = {**SAME, "Content-Type": "application/x-www-form-urlencoded"}
FRAGMENT = {"X-Taskflow-Fragment": "1"}


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world that no event loop of the test uses."""
    world = World(request.param)
    with default_app().using(world.broker):
        yield world
    asyncio.run(world.close())


@pytest.fixture
def memory() -> Iterator[World]:
    with default_app().using((world := World(MemoryHarness)).broker):
        yield world
    asyncio.run(world.close())


def site(authorize: Authorize | None = lambda request: ADA) -> Client:
    """A client of the dashboard below /ops/jobs."""
    return Client(DispatcherMiddleware(flask.Flask(__name__), {"/ops/jobs": dashboard_wsgi(authorize=authorize)}))


def test_pages_actions_and_the_api_are_those_of_asgi(world: World) -> None:
    client = site()
    job = id_text(run_sync(world.add(queue="a/../bücher", after=60.0)).id)
    for path in ("/", "/jobs", f"/jobs/{job}", "/failures", "/workers", "/schedules", "/charts", "/audit", "/queues/a%2F..%2Fb%C3%BCcher"):
        page = client.get(f"/ops/jobs{path}")
        assert (page.status_code, page.headers["Cache-Control"]) == (200, "no-store")
        assert 'href="/ops/jobs/workers"' in page.text
    assert client.get("/ops/jobs").headers["Location"].endswith("/ops/jobs/")
    moved = client.post("/ops/jobs/act", data={"action": "run-now", "id": job, "reason": "größer"}, headers=SAME)
    assert (moved.status_code, moved.headers["Location"]) == (303, f"/ops/jobs/jobs/{job}?said=run-now")
    [queue] = client.get("/ops/jobs/api/v1/queues").get_json()
    assert (queue["name"], queue["counts"][Status.READY]) == ("a/../bücher", 1)
    [record] = client.get("/ops/jobs/api/v1/audit").get_json()
    assert (record["action"]["by"], record["action"]["reason"]) == ("ada", "größer")
    assert client.head("/ops/jobs/").get_data() == b""


def test_a_long_action_continues_after_its_request(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflow.dashboard.acts.PATIENCE", 0.0)
    run_sync(memory.enqueue(*[memory.an_envelope(queue="mail") for _ in range(900)]))
    client = site()
    begun = client.post("/ops/jobs/act", data={"action": "cancel", "queue": "mail"}, headers=SAME)
    page = client.get(begun.headers["Location"])
    for _ in range(100):
        page = client.get(begun.headers["Location"])
        if "Cancel: done" in page.text:
            break
        run_sync(asyncio.sleep(0.05))
    assert "900 jobs were cancelled" in page.text


def test_it_is_closed_without_authorize_and_to_other_sites(memory: World) -> None:
    assert site(None).get("/ops/jobs/").status_code == 403
    assert site(lambda request: None).get("/ops/jobs/").status_code == 403
    client = site()
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil"}):
        assert client.post("/ops/jobs/queues/mail", data={"action": "pause"}, headers=headers).status_code == 403
    assert client.post("/ops/jobs/queues/mail", data={"action": "pause"}, headers={"Origin": "http://localhost"}).status_code == 303
    assert client.post("/ops/jobs/act", data={"action": "x" * 70_000}, headers=SAME).status_code == 413
    assert client.post("/ops/jobs/act", json={"action": "retry"}, headers=SAME).status_code == 415
    assert client.post("/ops/jobs/act", headers=FORM, environ_overrides={"CONTENT_LENGTH": "9" * 5_000}).status_code == 400


def test_authorize_may_be_plain_or_async(memory: World) -> None:
    """A plain one is called in the request's thread, where the application's connections and sessions are."""
    threads = list[int]()

    def plain(request: Request) -> Access | None:
        threads.append(threading.get_ident())
        return ADA if request.scope["wsgi.environ"]["HTTP_X_USER"] == "ada" else None

    async def later(request: Request) -> Access | None:
        await asyncio.sleep(0)
        return ADA if request.headers["x-user"] == "ada" else None

    for authorize in (plain, later):
        client = site(authorize)
        codes = [client.get("/ops/jobs/", headers={"X-User": user}).status_code for user in ("ada", "eve")]
        assert codes == [200, 403]
    assert set(threads) == {threading.get_ident()}
    wrong: Any = lambda request: "ada"  # noqa: E731
    assert site(wrong).get("/ops/jobs/").status_code == 500


def test_an_authorize_that_fails_opens_nothing(memory: World, caplog: pytest.LogCaptureFixture) -> None:
    answer = site(lambda request: ADA if request.scope["wsgi.environ"]["HTTP_X_USER"] else None).get("/ops/jobs/")
    assert (answer.status_code, "Its log has the error" in answer.text) == (500, True)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "KeyError: 'HTTP_X_USER'" in caplog.text


def test_authorize_reads_the_session_of_flask(memory: World) -> None:
    app = flask.Flask(__name__)
    app.secret_key = "secret"

    @app.get("/sign-in")
    def sign_in() -> str:
        flask.session["user"] = "ada"
        return "signed in"

    def authorize(request: Request) -> Access | None:
        with app.request_context(request.scope["wsgi.environ"]):
            user = flask.session.get("user")
        return None if user is None else Access(user)

    mounts = {"/jobs": dashboard_wsgi(authorize=authorize)}
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
    client = app.test_client()
    assert client.get("/jobs/").status_code == 403
    client.get("/sign-in")
    assert "ada (read-only)" in client.get("/jobs/").text


FORKS = """
import os, warnings
from werkzeug.test import Client
from taskflow.dashboard import Access, dashboard_wsgi

warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
client = Client(dashboard_wsgi(authorize=lambda request: Access("ada")))
fragment = {"X-Taskflow-Fragment": "1"}
print(client.get("/").status_code, client.get("/", headers=fragment).status_code)
if (child := os.fork()) == 0:
    codes = [client.get("/").status_code, client.get("/", headers=fragment).status_code]
    os._exit(0 if codes == [200, 200] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.get("/").status_code)
"""


def test_it_works_in_processes_that_are_forked_after_it_was_used(tmp_path: Path) -> None:
    """Servers that load the application first do this. The child has none of the parent's threads."""
    assert run_in_fork(FORKS, tmp_path, {"TASKFLOW_BROKER": "sqlite:///queue.db"}) == (0, "200 200\n0 200\n")


ENDS = """
from werkzeug.test import Client
from taskflow import enqueue, job, run_sync
from taskflow.dashboard import Access, acts, dashboard_wsgi

@job(queue="mail")
async def work(number: int) -> None: ...

acts.PATIENCE = 0.0
for _ in range(3):
    run_sync(enqueue([work.bind(number) for number in range(1_000)]))
form = {"action": "cancel", "queue": "mail", "confirm": "cancel"}
answer = Client(dashboard_wsgi(authorize=lambda request: Access("ada", actions=True))).post(
    "/act", data=form, headers={"Sec-Fetch-Site": "same-origin"}
)
print(answer.status_code)
"""


async def test_an_action_that_ends_with_its_process_is_recorded(tmp_path: Path) -> None:
    broker = connect(f"sqlite:///{tmp_path}/queue.db")
    assert run_in_fork(ENDS, tmp_path, {"TASKFLOW_BROKER": "sqlite:///queue.db"}) == (0, "303\n")
    [record] = await broker.admin.actions()
    assert (record.action.by, record.action.stopped) == ("ada", "stopped by the end of its process")
    await broker.close()


# --- polling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request reads the store, and pages have no age."""
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    monkeypatch.setattr(live, "TIMES", 0)
    monkeypatch.setattr(live, "MAX_AGE", 1_000_000_000)


def poll(client: Client, path: str, tag: str = "") -> TestResponse:
    return client.get(f"/ops/jobs{path}", headers={**FRAGMENT, "If-None-Match": tag})


@pytest.mark.usefixtures("_still")
def test_a_page_is_sent_again_only_after_a_change(world: World) -> None:
    client = site()
    assert 'data-live="" data-name="/ops/jobs/"' in client.get("/ops/jobs/").text
    first = poll(client, "/")
    tag = first.headers["ETag"]
    assert "<html" not in first.text
    again = poll(client, "/", tag)
    assert (again.status_code, again.get_data(), again.headers["ETag"]) == (304, b"", tag)
    run_sync(world.add(queue="mail"))
    changed = poll(client, "/", tag)
    assert (changed.status_code, "mail" in changed.text, changed.headers["ETag"] != tag) == (200, True, True)
    assert poll(client, "/jobs", changed.headers["ETag"]).status_code == 304


def test_a_page_is_never_older_than_its_tag(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_AGE", 1_000_000_000)
    monkeypatch.setattr(live, "INTERVAL", 30.0)
    monkeypatch.setattr(live, "TIMES", 0)
    client = site()
    tag = poll(client, "/").headers["ETag"]
    run_sync(memory.add(queue="mail"))
    assert poll(client, "/", tag).status_code == 304  # looked at a moment ago
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    assert "mail" in poll(client, "/", tag).text


@pytest.mark.usefixtures("_still")
def test_a_store_that_is_away_is_503_with_no_tag(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(self: Any) -> Any:
        raise BrokerUnavailable("it is away")

    client = site()
    tag = poll(client, "/").headers["ETag"]
    monkeypatch.setattr(type(memory.broker.admin), "queues", away)
    answer = poll(client, "/", tag)
    assert (answer.status_code, answer.headers.get("ETag")) == (503, None)


def test_there_is_no_stream(memory: World) -> None:
    """It would occupy a thread of the server."""
    assert site().get("/ops/jobs/live").status_code == 404
