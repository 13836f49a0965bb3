"""`taskflow bench`: measures a store in a throw-away namespace, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from taskflow.cli.bench import Figures, _lines
from tests.cli.inprocess import Cli
from tests.cli.json_output import check
from tests.cli.processes import Shell, on_each_broker
from tests.support.servers import shared_redis


def left_behind(url: str, folder: Path) -> list[str]:
    """The throw-away folders, keys and schemas that are still there."""
    if url.startswith("redis"):
        client = shared_redis().client()
        try:
            return [key.decode() for key in client.scan_iter("{taskflow-bench-*")]
        finally:
            client.close()
    if url.startswith("postgresql"):
        return asyncio.run(_schemas(url))
    return [str(path) for path in folder.glob(".taskflow-bench-*")]


async def _schemas(url: str) -> list[str]:
    import asyncpg

    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        return [row[0] for row in await connection.fetch("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'taskflow-bench-%'")]
    finally:
        await connection.close()


@on_each_broker
def test_every_figure_is_measured_and_the_namespace_is_dropped(shell: Shell) -> None:
    url = shell.environment["TASKFLOW_BROKER"]
    said = shell.run("-m", "taskflow", "bench", "--jobs", "20", "--json")
    told = json.loads(said[said.index("{\n") : said.rindex("}") + 1])  # a log line of the worker may come before
    check(["bench"], told)
    assert all(told[rate] > 0 for rate in ("enqueue_rate", "delay_rate", "drain_rate"))
    for latency in ("to_start", "to_result"):
        assert 0 < told[latency][0] <= told[latency][1] < 30
    assert "taskflow-bench-" in told["broker"]
    assert left_behind(url, shell.folder) == []
    assert not (shell.folder / "queue.db").exists()


@on_each_broker
def test_a_signal_drops_the_namespace_too(shell: Shell) -> None:
    url = shell.environment["TASKFLOW_BROKER"]
    number = signal.SIGTERM if url.startswith("sqlite") else signal.SIGINT
    benching = shell.start("-m", "taskflow", "bench", "--jobs", "100000")
    benching.wait_for("measuring how fast jobs are sent")
    assert left_behind(url, shell.folder)
    benching.signal(number)
    assert benching.end() == 128 + number
    assert "Traceback" not in benching.said
    assert left_behind(url, shell.folder) == []


def test_what_cannot_be_measured_is_refused(cli: Cli) -> None:
    assert "a broker memory:// belongs to one process" in cli("bench", "--broker", "memory://", code=2).err
    (cli.folder / "locked").write_text("")
    told = cli("bench", "--broker", "sqlite:///locked/queue.db", code=3).err
    assert told.startswith(f"taskflow: no folder can be made in {os.path.realpath(cli.folder)}/locked: ")


def test_the_closing_sentences_are_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Figures(broker="", jobs=1, concurrency=1, enqueue_rate=1.0, delay_rate=1.0, to_start=[0.1, 0.2], to_result=[0.1, 0.2])
    whole = [*_lines(figures)]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = [*_lines(figures)]
    assert max(map(len, whole)) > 80 >= max(map(len, lines))
    assert " ".join(whole) == " ".join(lines)
