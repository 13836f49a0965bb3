from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskflow.app.current import default_app
from taskflow.app.registry import Registry
from tests.cli.inprocess import URL, Cli
from tests.cli.processes import Shell
from tests.cli.stock import Stock, a_stock


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line as a fresh process would find it: no jobs, no settings, nothing connected."""
    app = default_app()
    monkeypatch.setattr(app, "registry", Registry())
    monkeypatch.setattr(app, "_settings", None)
    for state in ("_configured", "_flags", "_brokers", "_connections"):
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
    return cli.with_broker(a_stock)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Processes in a folder of their own; what a test leaves running is killed."""
    opened = Shell(tmp_path)
    try:
        yield opened
    finally:
        opened.kill_all()


@pytest.fixture
def unshare() -> str:
    """Its flags for a space of process ids, where we may make one."""
    for flags in ("--pid --fork --kill-child", "--user --map-root-user --pid --fork --kill-child"):
        try:
            if subprocess.run(["unshare", *flags.split(), "true"], capture_output=True).returncode == 0:
                return flags
        except OSError:
            break
    pytest.skip("no space of process ids can be made here")
