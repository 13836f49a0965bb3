"""A web application whose lifespan has a worker, served by uvicorn in a process, on both frameworks."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import TIMEOUT, Running, Shell

COMMON = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from taskflow import JobHandle, job, worker_lifespan

@job(name="served.work")
async def work(number: int) -> int:
    print("a job has begun", flush=True)
    while not Path("open").exists():
        await asyncio.sleep(0.01)
    return number + 1

@asynccontextmanager
async def own(app):
    yield {"name": "its own"}
    print("the application has closed", flush=True)

lifespan = worker_lifespan(own=own, concurrency=5)

async def send(request):
    handle = await work.options(after=int(request.query_params.get("after", 0))).delay(1)
    return {"id": handle.id, "name": request.state.name}

async def show(request):
    info = await JobHandle.of(request.query_params["id"], job=work).info()
    return {"status": info.status, "result": info.result}
"""

APPLICATIONS = {
    "starlette": """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

def route(path, answer):
    async def respond(request):
        return JSONResponse(await answer(request))
    return Route(path, respond)

app = Starlette(routes=[route("/send", send), route("/show", show)], lifespan=lifespan)
""",
    "fastapi": """
from fastapi import FastAPI, Request

app = FastAPI(lifespan=lifespan)
for path, answer in (("/send", send), ("/show", show)):
    answer.__annotations__["request"] = Request
    app.get(path)(answer)
""",
}


@pytest.fixture(params=APPLICATIONS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        shell.write("web.py", COMMON + APPLICATIONS[request.param])
        yield shell


@pytest.fixture
def served(shell: Shell) -> Running:
    running = shell.start("-m", "uvicorn", "web:app", "--port", "0", "--lifespan", "on")
    running.wait_for("Uvicorn running on")
    return running


@pytest.fixture
def http(served: Running) -> Iterator[httpx.Client]:
    found = re.search(r"Uvicorn running on (http://[\d.:]+)", served.said)
    assert found is not None
    with httpx.Client(base_url=found[1], timeout=60) as http:
        yield http


def ended_well(served: Running) -> None:
    """After its shutdown uvicorn raises the signal once more, for whoever started it to see."""
    assert served.end() == -signal.SIGTERM, served.said
    assert "Application shutdown complete" in served.said
    assert "Traceback" not in served.said


def test_a_request_is_answered_while_its_job_runs(shell: Shell, served: Running, http: httpx.Client) -> None:
    sent = http.get("/send").json()
    assert sent["name"] == "its own", "the state of the application's own lifespan is passed on"
    served.wait_for("a job has begun")
    assert http.get("/show", params={"id": sent["id"]}).json() == {"status": "running", "result": None}
    shell.write("open", "")
    give_up_at = time.monotonic() + TIMEOUT
    while (shown := http.get("/show", params={"id": sent["id"]}).json())["status"] == "running":
        assert time.monotonic() < give_up_at
    assert shown == {"status": "succeeded", "result": 2}


def test_stopping_lets_a_run_end_and_leaves_the_rest_to_the_next_worker(shell: Shell, served: Running, http: httpx.Client) -> None:
    """The worker winds down before the application's own lifespan closes what jobs use."""
    http.get("/send")
    http.get("/send", params={"after": 1})
    served.wait_for("a job has begun")
    served.signal(signal.SIGTERM)
    served.wait_for("Waiting for application shutdown")
    assert "the application has closed" not in served.said
    shell.write("open", "")
    ended_well(served)
    assert "the application has closed" in served.said

    worker = shell.taskflow("worker", "web", "--drain")
    assert worker.end() == 0
    assert worker.said.count("a job has begun") == 1
