"""A web application whose lifespan has a worker, served by uvicorn in a process."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import Running, Shell

APPLICATION = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from taskflow import job, worker_lifespan

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

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def send(request):
    handle = await work.options(after=int(request.query_params.get("after", 0))).delay(1)
    return JSONResponse({"id": handle.id, "name": request.state.name})

app = Starlette(routes=[Route("/send", send)], lifespan=worker_lifespan(own=own, concurrency=5))
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        shell.write("web.py", APPLICATION)
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


def test_stopping_lets_a_run_end_and_leaves_the_rest_to_the_next_worker(shell: Shell, served: Running, http: httpx.Client) -> None:
    """The worker winds down before the application's own lifespan closes what jobs use."""
    assert http.get("/send").json()["name"] == "its own", "the state of the application's own lifespan is passed on"
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
