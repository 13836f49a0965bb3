"""The applications on the page about web frameworks, started by the commands that stand there, and Litestar's plugin."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Response, get
from litestar.params import FromQuery
from litestar.testing import TestClient

from taskflow import BrokerUnavailable, JobContext, UnknownJob, Worker, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.litestar import TaskflowPlugin
from tests.cli.processes import Shell, until
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs/how-to/use-with-web-frameworks.md"
COMMANDS = [block.text.split() for block in blocks(PAGE, "bash")]
WORKERS = [command[2] for command in COMMANDS if command[0] == "taskflow"]
"""The modules of applications whose worker is a separate process."""


def module_of(command: list[str]) -> str:
    return next(word.removesuffix(":app") for word in command if word.startswith("with_"))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        for block in blocks(PAGE, "python"):
            if found := re.match(r"# ((?:jobs|with_\w+)\.py)\n", block.text):
                shell.write(found[1], block.text)
        yield shell


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] != "taskflow"], ids=module_of)
def test_a_command_starts_the_application_and_its_jobs_run(shell: Shell, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = shell.start("-m", *command, "--port", str(port))
    running.wait_for(rf"http://127\.0\.0\.1:{port}")
    module = module_of(command)
    if module in WORKERS:
        shell.taskflow("worker", module).wait_for("working as")
    retrying = httpx.HTTPTransport(retries=10)  # Quart names its address before it listens
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, transport=retrying) as http:
        job_id = http.post("/reports/2026-01").raise_for_status().json()["id"]
        until(lambda: http.get(f"/reports/{job_id}").json()["status"] == "succeeded", running)
        assert http.get(f"/reports/{job_id}").json()["result"].startswith("report of 2026-01")
        assert http.get("/reports/1").status_code == 404


@job(name="tests.frameworks.loop")
async def loop_of() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_a_worker_runs_in_a_loop_of_uvloop(memory: None) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> str:
        async with Worker():
            return await (await loop_of.delay()).result(timeout=10)

    assert uvloop.run(main()) == "uvloop"


# --- Litestar's plugin ----------------------------------------------------------------------------------------------


@job(name="tests.litestar.note")
async def note(ctx: JobContext) -> list[str]:
    events: list[str] = ctx.state.events
    events.append("the job runs")
    return events


@get("/fails")
async def fails(kind: FromQuery[str]) -> None:
    raise BrokerUnavailable("redis://10.0.0.1 does not answer") if kind == "away" else UnknownJob("no longer kept", job_id="")


@pytest.fixture
def memory() -> Iterator[None]:
    with default_app().using(MemoryBroker()):
        yield


@pytest.mark.usefixtures("memory")
async def test_the_worker_runs_inside_everything_that_the_application_opens() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def pool(app: Litestar) -> AsyncIterator[None]:
        yield
        events.append("the pool closes")

    async def warm_up(app: Litestar) -> None:
        app.state.events = events
        events.append("the application starts")

    app = Litestar(lifespan=[pool], on_startup=[warm_up], logging_config=None, plugins=[TaskflowPlugin(concurrency=2, grace=5)])
    handle = await note.delay()
    for _ in range(2):  # a test client enters the same application again
        async with app.lifespan():
            await handle.result(timeout=10)
        assert await default_app().broker().admin.workers() == []
    assert events == ["the application starts", "the job runs", "the pool closes", "the application starts", "the pool closes"]


@pytest.mark.usefixtures("memory")
async def test_an_application_whose_worker_is_elsewhere_runs_no_job() -> None:
    async with Litestar(logging_config=None, plugins=[TaskflowPlugin(worker=False)]).lifespan():
        assert await default_app().broker().admin.workers() == []


def test_errors_are_answered_without_the_address_of_the_broker(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(Litestar([fails], logging_config=None, plugins=[TaskflowPlugin(worker=False)]))
    assert [client.get("/fails", params={"kind": kind}).status_code for kind in ("old", "away")] == [404, 503]
    with caplog.at_level(logging.ERROR, "taskflow.litestar"):
        assert "10.0.0.1" not in client.get("/fails", params={"kind": "away"}).text
    assert "GET /fails: redis://10.0.0.1 does not answer" in caplog.text


def test_the_applications_own_handlers_take_precedence() -> None:
    def teapot(*_: Any) -> Response[str]:
        return Response("", status_code=418)

    app = Litestar([fails], logging_config=None, plugins=[TaskflowPlugin(worker=False)], exception_handlers={UnknownJob: teapot})
    assert TestClient(app).get("/fails", params={"kind": "old"}).status_code == 418
