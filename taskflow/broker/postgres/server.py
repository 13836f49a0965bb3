"""Where a server is, and how it is spoken to."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

ANSWER_WITHIN: Final = 4.0
"""Seconds for one statement. Less than an application's patience with an enqueue (5 s), so that it hears of the trouble from here."""

CONNECT_WITHIN: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """One database of one server. `password` is never shown.

    `listen_host`, `listen_port`  where to listen for wake-ups, when the rest goes through a pooler that loses them
    `tls`                         "disable", "prefer", "require", "verify-ca" or "verify-full", as libpq has them
    `is_pooled`                   a pooler in between takes no prepared statements
    """

    host: str = "localhost"
    port: int = 5432
    database: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: str = "prefer"
    ca_file: str | None = None
    listen_host: str | None = None
    listen_port: int | None = None
    is_pooled: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self, *, for_listening: bool = False) -> asyncpg.Connection:
        host = self.listen_host or self.host if for_listening else self.host
        port = self.listen_port or self.port if for_listening else self.port
        return await asyncpg.connect(
            host=host,
            port=port,
            database=self.database,
            user=self.user,
            password=self.password,
            ssl=self._tls(),
            timeout=CONNECT_WITHIN,
            command_timeout=None,
            statement_cache_size=0 if self.is_pooled else 100,
            server_settings={} if self.is_pooled else {"application_name": "taskflow"},
        )

    def _tls(self) -> Any:
        if self.ca_file is None:
            return self.tls
        context = ssl.create_default_context(cafile=self.ca_file)
        context.check_hostname = self.tls == "verify-full"
        return context
