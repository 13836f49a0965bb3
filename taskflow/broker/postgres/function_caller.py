"""The methods of the PostgreSQL broker by which settling and the console call SQL functions."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Protocol

import asyncpg


class FunctionCaller(Protocol):
    """Implemented by `PostgresBroker`."""

    async def call(self, name: str, *arguments: Any, columns: str = "*") -> list[asyncpg.Record]: ...

    async def call_one(self, name: str, *arguments: Any) -> asyncpg.Record: ...

    def tell_ended(self, ids: Set[bytes], *, are_awaited: bool) -> None: ...

    async def trouble_with_listening(self) -> str | None: ...

    def wall(self) -> int | None: ...

    def times(self) -> tuple[int | None, int | None]: ...
