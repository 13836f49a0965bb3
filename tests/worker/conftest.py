"""A worker on each broker, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.worker.scene import Run


@pytest.fixture(params=["memory", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """Provide the broker through which the test sends and works."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'queue.db'}"
    opened = connect(url)
    with default_app().using(opened):
        yield opened
    await opened.close()


@pytest.fixture
def memory_broker() -> Iterator[MemoryBroker]:
    opened = MemoryBroker()
    with default_app().using(opened):
        yield opened


@pytest.fixture(autouse=True)
def _fresh_run() -> None:
    Run.started, Run.release, Run.release_thread = asyncio.Event(), asyncio.Event(), threading.Event()
