from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker


@pytest.fixture
def memory_broker() -> Iterator[MemoryBroker]:
    opened = MemoryBroker()
    with default_app().using(opened):
        yield opened
