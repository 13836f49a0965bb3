from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from tests.cli.inprocess import URL, Cli
from tests.cli.processes import Shell
from tests.cli.stock import RULES, Stock, a_stock
from tests.support.namespaces import unshare_flags
from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis

_numbers = itertools.count()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line as a fresh process would find it: no jobs, no settings, no connection."""
    app = default_app()
    monkeypatch.setattr(app, "registry", Registry())
    monkeypatch.setattr(app, "_settings", None)
    for state in ("_configured", "_flags", "_brokers", "_clients"):
        monkeypatch.setattr(app, state, {})
    monkeypatch.setenv("TASKFLOW_BROKER", URL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    opened = Cli(tmp_path, capsys)
    try:
        yield opened
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        opened.forget_modules()


@pytest.fixture
def stock(cli: Cli) -> Stock:
    """A store with jobs in every state."""
    return cli.with_broker(a_stock, RULES)


@pytest.fixture
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Creates a new store, of the kind that `on_each_broker` names, and returns its URL."""
    kind = getattr(request, "param", "sqlite")
    databases: list[str] = []

    def make() -> str:
        if kind == "redis":
            return f"{shared_redis().url}?namespace=cli-{os.getpid()}-{next(_numbers)}"
        if kind == "postgres":
            databases.append(shared_postgres().new_database())
            return shared_postgres().url(databases[-1])
        return f"sqlite:///{tmp_path}/queue-{next(_numbers)}.db"

    yield make
    for database in databases:
        shared_postgres().drop_database(database)


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path, new_store: Callable[[], str]) -> Iterator[Shell]:
    """Processes in a separate folder."""
    with Shell(tmp_path) as opened:
        if "new_store" in getattr(getattr(request.node, "callspec", None), "params", {}):
            opened.environment["TASKFLOW_BROKER"] = new_store()
        yield opened


@pytest.fixture
def unshare() -> str:
    """The command's flags for a separate space of process ids, where we may create one."""
    flags = unshare_flags("--pid --fork --kill-child")
    return flags or pytest.skip("this machine lets us make no PID namespace")
