from __future__ import annotations

from tests.cli.conftest import cli, new_store, shell, stock, unshare
from tests.support.outages import outage
from tests.worker.conftest import _fresh_run, broker

__all__ = ["_fresh_run", "broker", "cli", "new_store", "outage", "shell", "stock", "unshare"]
