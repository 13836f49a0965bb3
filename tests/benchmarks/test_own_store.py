"""`python -m benchmarks.own_store` measures a store in a throw-away namespace, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis

ROOT: Final = Path(__file__).parents[2]
URLS: Final[dict[str, Callable[[Path], str]]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/jobs.db",
    "redis": lambda folder: f"redis://127.0.0.1:{shared_redis().port}",
    "postgres": lambda folder: shared_postgres().url(shared_postgres().new_database()),
}


@pytest.mark.parametrize("kind", URLS)
def test_every_figure_is_measured_and_the_namespace_is_dropped(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "benchmarks.own_store", "--broker", URLS[kind](tmp_path), "--jobs", "20", "--json"]
    told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert all(told[rate] > 0 for rate in ("enqueue_rate", "delay_rate", "drain_rate"))
    for latency in ("to_start", "to_result"):
        assert 0 < told[latency][0] <= told[latency][1] < 30
    assert "taskflow-bench-" in told["broker"]
    assert list(tmp_path.iterdir()) == []
    if kind == "redis":
        with shared_redis().client() as client:
            assert list(client.scan_iter("{taskflow-bench-*")) == []
