from __future__ import annotations

from tests.cli.conftest import new_store, shell

__all__ = ["new_store", "shell"]
