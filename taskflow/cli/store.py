"""Opens the store for a command, and closes it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from taskflow.app.app import App, default_app
from taskflow.broker.migrations import Migrating
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerRefused


def with_store(arguments: argparse.Namespace, work: Callable[[App, argparse.Namespace], Awaitable[int]]) -> int:
    """Run a command on the store that its options name, and return the exit code."""
    app = default_app()
    app.flag(broker=arguments.broker)

    async def run() -> int:
        try:
            return await work(app, arguments)
        finally:
            await app.close()

    return asyncio.run(run())


async def existing_broker(app: App) -> Broker:
    """Return the application's broker. Raises BrokerRefused if its SQLite file, its schema on PostgreSQL or
    its tables do not exist, because a command that looks for jobs must not create them."""
    broker = app.broker()  # raises for a wrong URL
    if (file := _missing_file(app.broker_url())) is not None:
        raise BrokerRefused(f"{file} {_MISSING}")
    if isinstance(broker, Migrating) and not (found := await broker.pending()).version:
        raise BrokerRefused(f"{found.place} {_MISSING}")
    return broker


def _missing_file(broker_url: str) -> str | None:
    """Return the SQLite file of the URL if it does not exist although its folder does, otherwise None."""
    url = urlsplit(broker_url)
    file = os.path.realpath(unquote(url.path.removeprefix("/")))
    return file if url.scheme == "sqlite" and not os.path.exists(file) and os.path.isdir(os.path.dirname(file)) else None


_MISSING: Final = "does not exist: the first job creates it, or `taskflow migrate` does; if the jobs are elsewhere, use --broker"
