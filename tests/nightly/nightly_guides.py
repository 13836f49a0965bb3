"""Both sides of the migration guides: a worker of the other tool runs the code of its side, and a worker of taskflow that of ours.

Needs the package index. The tools' versions are those of `benchmarks/peers/requirements`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import SCRIPT, blocks, files_of, write
from tests.support.environments import ROOT, TIMEOUT, Place, environment
from tests.support.postgres import shared_postgres
from tests.support.servers import RedisServer


@dataclass(frozen=True)
class Guide:
    """A page, with the commands that it shows."""

    tool: str
    worker: str
    shown: str
    """A pattern for the output of that worker when it has run a job."""
    call: str
    """A call of taskflow's side, which a worker of taskflow runs."""
    first: str = ""
    extra: tuple[str, ...] = ()
    """Packages that the page mentions beside the tool itself."""


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


@pytest.fixture(scope="session")
def taskflow_python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return environment(tmp_path_factory.mktemp("ours") / "venv", f"{wheel}[postgres]", "psycopg[binary]")


@pytest.fixture
def variables(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Yield the variables that taskflow, and clients of the other side's server, read: where both sides keep their jobs."""
    if "procrastinate" in request.node.name:
        shared = shared_postgres()
        name = shared.new_database()
        shared.execute("create table orders (id int)", name)
        url = urlsplit(shared.url(name))
        yield {
            "TASKFLOW_BROKER": url.geturl(),
            "PGHOST": "127.0.0.1",
            "PGPORT": f"{url.port}",
            "PGUSER": f"{url.username}",
            "PGDATABASE": name,
        }
        shared.drop_database(name)
    else:
        with RedisServer() as own:
            yield {"TASKFLOW_BROKER": f"{own.url}?namespace=ours", "RQ_REDIS_URL": own.url}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.tool)
def test_the_code_of_the_other_tool_runs(guide: Guide, variables: dict[str, str], tmp_path: Path) -> None:
    pinned = ROOT / f"benchmarks/peers/requirements/{guide.tool}.txt"
    place = Place(tmp_path, environment(tmp_path / "venv", "--requirement", pinned, *guide.extra), variables)
    take(guide, place, is_ours=False)
    place.run(guide.first)
    with place.running(guide.worker) as said:
        place.run(f"python {SCRIPT}")
        deadline = time.monotonic() + TIMEOUT
        while not re.search(guide.shown, said.read_text()):
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.tool)
def test_the_code_of_taskflow_runs(guide: Guide, variables: dict[str, str], tmp_path: Path, taskflow_python: Path) -> None:
    place = Place(tmp_path, taskflow_python, variables)
    take(guide, place, is_ours=True)
    with place.running("taskflow worker app.tasks"):
        place.run(f"python {SCRIPT}")
        sends = f"from app.tasks import *; from taskflow import run_sync; run_sync({guide.call}.result(timeout={TIMEOUT}))"
        place.run(f'python -c "{sends}"')
    assert place.run("taskflow jobs --status failed") == ""


def take(guide: Guide, place: Place, *, is_ours: bool) -> None:
    """Write the blocks of one side. Those of the other tool are `py`; ours are `python`, or `py` if they need PostgreSQL."""
    page = ROOT / f"docs/migrate/from-{guide.tool}.md"
    lines = page.read_text().splitlines()
    assert [command for command in (guide.worker, guide.first) if f"`{command}`" not in page.read_text() and command] == []
    parts = []
    for block in blocks(page, "py", "python"):
        label = next(line for line in reversed(lines[: block.line - 2]) if line)
        if is_ours == (block.language == "python" or label.startswith("taskflow")):
            parts.append(block)
    server = place.variables["TASKFLOW_BROKER"].rpartition("/")[0]
    write({name: text.replace("redis://localhost", server) for name, text in files_of(parts).items()}, place.folder)
