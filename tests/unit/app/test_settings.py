"""The layers: flag, configure(), TASKFLOW_*, [tool.taskflow], default."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskflow import ConfigurationError, JobHandle, TooLarge, configure, job
from taskflow.app.app import App
from taskflow.app.settings import layered
from tests.unit.app.bench import Bench


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def app(folder: Path) -> AsyncIterator[App]:
    app = App()
    yield app
    await app.close()


def write(folder: Path, table: str) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.taskflow]\n{table}\n")


def test_each_layer_comes_before_the_next(app: App, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tested from the last to the first."""

    def in_force() -> tuple[str, float]:
        app.configure()  # reads the layers again
        return app.broker_url(), app.settings.enqueue_timeout

    assert in_force() == ("sqlite:///taskflow.db", 5.0)
    write(folder, 'broker = "memory://?namespace=pyproject"\nenqueue_timeout = 1')
    assert in_force() == ("memory://?namespace=pyproject", 1.0)
    monkeypatch.setenv("TASKFLOW_BROKER", "memory://?namespace=environment")
    monkeypatch.setenv("TASKFLOW_ENQUEUE_TIMEOUT", "2")
    assert in_force() == ("memory://?namespace=environment", 2.0)
    app.configure(broker="memory://?namespace=configured", enqueue_timeout=3)
    assert in_force() == ("memory://?namespace=configured", 3.0)
    app.flag(broker="memory://?namespace=flag", enqueue_timeout=4)
    assert in_force() == ("memory://?namespace=flag", 4.0)
    app.configure(broker="memory://?namespace=late")
    assert in_force() == ("memory://?namespace=flag", 4.0), "a flag wins also when it came before"


def test_a_parents_pyproject_counts(folder: Path) -> None:
    """The nearest folder that has one counts."""
    write(folder, 'broker = "memory://"')
    (folder / "deeper").mkdir()
    assert layered({}, environ={}, folder=folder / "deeper").broker == "memory://"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, app: App) -> None:
    monkeypatch.setenv("TASKFLOW_BROKER", "")
    assert app.settings.broker is None


async def test_the_implicit_default_is_logged_once_with_its_absolute_path(app: App, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not reported for each use, nor for each connection."""
    with caplog.at_level(logging.INFO, "taskflow"):
        first = app.broker()
        assert app.broker() is first
        await app.close()
        assert app.broker() is not first
    [record] = caplog.records
    assert str(folder / "taskflow.db") in record.getMessage()
    assert "TASKFLOW_BROKER" in record.getMessage()


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        ({"middleware": 5}, ["middleware=5", "list of Middleware"]),
        ({"middleware": [int]}, ["<class 'int'>", "instance"]),
        ({"subscribers": print}, ["subscribers=<built-in function print>", "a list of functions"]),
        ({"subscribers": [5]}, ["[... 5 ...]", "plain functions"]),
        ({"enqueue_timeout": "soon"}, ["enqueue_timeout='soon'", "a number, 0 or more"]),
        ({"enqueue_timeout": float("nan")}, ["enqueue_timeout=nan"]),
        ({"max_payload": 0}, ["max_payload=0", "a whole number from 1 to 62,914,560"]),
        ({"max_payload": True}, ["max_payload=True"]),
        ({"broker": 7}, ["broker=...", "a URL, for example 'sqlite:///taskflow.db', got int"]),
        ({"broker": ""}, ["a URL", "got an empty string"]),
        ({"lifespan": "resources"}, ["lifespan='resources'", "context manager"]),
    ],
    ids=str,
)
def test_configure_names_what_is_wrong(given: dict[str, object], fragments: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure(**given)  # type: ignore[arg-type]
    for fragment in ("configure(", *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("TASKFLOW_ENQUEUE_TIMEOUT", "soon", "a number, 0 or more"),
        ("TASKFLOW_MAX_PAYLOAD", "62914561", "a whole number from 1 to 62,914,560"),
        ("TASKFLOW_MAX_PAYLOAD", "1e6", "a whole number from 1 to 62,914,560"),
    ],
)
def test_a_wrong_variable_is_named(folder: Path, name: str, text: str, fragment: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is '{text}': expected {fragment}"):
        layered({}, environ={name: text}, folder=folder)


@pytest.mark.parametrize(
    ("table", "fragments"),
    [
        ("borker = 'memory://'", ["unknown setting 'borker'", "broker"]),
        ("max_payload = 'many'", ["max_payload", "'many'", "a whole number"]),
        ("broker = ", ["cannot be read"]),
        ("broker = 7", ["broker", "a URL, for example 'sqlite:///taskflow.db', got int"]),
        ("max_payload = 62_914_561", ["max_payload", "is 62914561", "a whole number from 1 to 62,914,560"]),
    ],
)
def test_a_wrong_pyproject_is_named(folder: Path, table: str, fragments: list[str]) -> None:
    write(folder, table)
    with pytest.raises(ConfigurationError) as caught:
        layered({}, environ={}, folder=folder)
    for fragment in (str(folder / "pyproject.toml"), *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize("text", ["tool = 7", "[tool]\ntaskflow = 'memory://'"])
def test_a_pyproject_without_a_table_for_us_is_named(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"pyproject.toml: \[tool.taskflow\] must be a table"):
        layered({}, environ={}, folder=folder)


async def test_more_than_the_default_may_be_sent_and_returned(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_payload` applies to arguments and results, and to a client that reads a result without its job."""

    @job(name="sends back")
    async def back(data: bytes) -> bytes:
        return data

    large = bytes(2 << 20)
    with bench.app.using(bench.broker):
        with pytest.raises(TooLarge, match="raise max_payload="):
            await back.delay(large)
        monkeypatch.setenv("TASKFLOW_MAX_PAYLOAD", str(3 << 20))
        configure()
        handle = await back.delay(large)
        await bench.run_all()
        assert await handle.result() == large
        assert await JobHandle.of(handle.id).result() == large
