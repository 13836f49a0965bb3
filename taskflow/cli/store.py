"""Opens the store for a command, and closes it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

from taskflow.app.app import App, default_app
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


def existing_broker(app: App) -> Broker:
    """Return the application's broker. Raises BrokerRefused if its SQLite file does not
    exist, because a command that looks for jobs must not create it."""
    broker = app.broker()  # raises for a wrong URL
    url = urlsplit(app.broker_url())
    file = os.path.realpath(unquote(url.path.removeprefix("/")))
    if url.scheme == "sqlite" and not os.path.exists(file) and os.path.isdir(os.path.dirname(file)):
        raise BrokerRefused(f"{file} does not exist: the first job creates it; if the jobs are elsewhere, use --broker")
    return broker
