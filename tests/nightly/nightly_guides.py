"""Both sides of the guides for a move: a worker of the other tool runs the code of its side, and a worker of taskflow that of ours.

Needs the package index. The versions of the tools are those of `benchmarks/peers/requirements`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import SCRIPT, blocks, files_of, write
from tests.support.environments import ROOT, environment, run
from tests.support.postgres import shared_postgres
from tests.support.servers import RedisServer

TIMEOUT: Final = 60.0


@dataclass(frozen=True)
class Guide:
    """A page, with commands as it has them."""

    tool: str
    worker: str
    shown: str
    """A pattern for the output of that worker when it has run a job."""
    call: str
    """A call of taskflow's side, which a worker of taskflow runs."""
    first: str = ""
    extra: tuple[str, ...] = ()
    """Packages of which the page speaks beside the tool itself."""


GUIDES: Final = (
    Guide("celery", "celery --app app.tasks worker --concurrency 8", r"PoolWorker-\d+\] 7\n", "receipt.delay_sync(7)"),
    Guide(
        "rq", "rq worker high default", "result is kept for 500 seconds", "count_words.delay_sync('a/b')", extra=("rq-scheduler==0.14.0",)
    ),
    Guide("arq", "arq app.tasks.WorkerSettings", r"download ● 31", "download.delay_sync('a')"),
    Guide("dramatiq", "dramatiq app.tasks --processes 4 --threads 8", r"count_words None", "count_words.delay_sync('a/b')"),
    Guide("huey", "huey_consumer app.tasks.huey --workers 4", r"count_words: .+ executed", "count_words.delay_sync('a/b')"),
    Guide("taskiq", "taskiq worker app.tasks:broker", r"Executing task count_words", "count_words.delay_sync('a/b')"),
    Guide(
        "procrastinate",
        "procrastinate --app=app.tasks.app worker",
        r"ended with status: Success",
        "add.delay_sync(1, 2)",
        first="procrastinate --app=app.tasks.app schema --apply",
    ),
)


@dataclass(frozen=True)
class Server:
    """Where both sides keep their jobs. `url` is taskflow's, `environment` that of a client of PostgreSQL."""

    url: str
    redis: str
    environment: dict[str, str]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if "procrastinate" in request.node.name:
        shared = shared_postgres()
        name = shared.new_database()
        shared.execute("create table orders (id int)", name)
        url = shared.url(name)
        user, port = re.findall(r"//(\w+)@.+:(\d+)/", url)[0]
        yield Server(url, "", {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": user, "PGDATABASE": name})
        shared.drop_database(name)
    else:
        with RedisServer() as own:
            yield Server(f"{own.url}?namespace=ours", own.url.removesuffix("/0"), {"RQ_REDIS_URL": own.url})


@pytest.fixture(scope="session")
def taskflow_python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return environment(tmp_path_factory.mktemp("ours") / "venv", f"{wheel}[postgres]", "psycopg[binary]")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.tool)
def test_the_code_of_the_other_tool_runs(guide: Guide, server: Server, tmp_path: Path) -> None:
    pinned = ROOT / f"benchmarks/peers/requirements/{guide.tool}.txt"
    python = environment(tmp_path / "venv", "--requirement", pinned, *guide.extra)
    place = Place(tmp_path / "theirs", python, server)
    place.take(guide, "py")
    if guide.first:
        place.run(*guide.first.split())
    with place.worker(guide.worker) as said:
        place.run("python", SCRIPT)
        wait_for(guide.shown, said)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.tool)
def test_the_code_of_taskflow_runs(guide: Guide, server: Server, tmp_path: Path, taskflow_python: Path) -> None:
    place = Place(tmp_path / "ours", taskflow_python, server)
    place.take(guide, "python")
    with place.worker("taskflow worker app.tasks"):
        place.run("python", SCRIPT)
        place.run(
            "python", "-c", f"from app.tasks import *; from taskflow import run_sync; run_sync({guide.call}.result(timeout={TIMEOUT}))"
        )
    assert place.run("taskflow", "jobs", "--status", "failed") == ""


@dataclass(frozen=True)
class Place:
    """A folder with the code of one side of a page, and the environment in which it runs."""

    folder: Path
    python: Path
    server: Server

    def take(self, guide: Guide, language: str) -> None:
        """Write the blocks of one side: those of the other tool are `py`, ours are `python`, or `py` if they need PostgreSQL."""
        page = ROOT / f"docs/migrate/from-{guide.tool}.md"
        lines = page.read_text().splitlines()
        for command in filter(None, (guide.worker, guide.first)):
            assert f"`{command}`" in page.read_text()
        parts = []
        for block in blocks(page, "py", "python"):
            label = next(line for line in reversed(lines[: block.line - 2]) if line)
            is_ours = block.language == "python" or label.startswith("taskflow")
            if is_ours == (language == "python"):
                parts.append(block)
        write({name: text.replace("redis://localhost", self.server.redis) for name, text in files_of(parts).items()}, self.folder)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.python.parent}:{os.environ['PATH']}"
        return {"PATH": path, "PYTHONPATH": ".", "TASKFLOW_BROKER": self.server.url, "PYTHONUNBUFFERED": "1", **self.server.environment}

    def run(self, *command: str) -> str:
        return run(self.python.with_name(command[0]), *command[1:], cwd=self.folder, **self.environment)

    @contextmanager
    def worker(self, command: str) -> Iterator[Path]:
        """Run a worker in the block. Yield the file of its output."""
        program, *arguments = command.split()
        said = self.folder / "worker.log"
        with said.open("w") as output:
            started = subprocess.Popen(
                [self.python.with_name(program), *arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield said
                assert started.poll() is None, said.read_text()
            finally:
                started.terminate()
                try:
                    started.wait(TIMEOUT)
                finally:
                    with suppress(ProcessLookupError):  # those whom it has left behind
                        os.killpg(started.pid, signal.SIGKILL)


def wait_for(pattern: str, said: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not re.search(pattern, said.read_text()):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
