from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Processes in a folder of their own; what a test leaves running is killed."""
    opened = Shell(tmp_path)
    try:
        yield opened
    finally:
        opened.kill_all()
