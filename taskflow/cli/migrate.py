"""`taskflow migrate`: brings the store's tables to the version that this taskflow uses."""

from __future__ import annotations

import argparse
import asyncio
from urllib.parse import urlsplit

from taskflow.app.app import App, default_app
from taskflow.broker.migrations import Migrating, Upgrade
from taskflow.cli.exits import Exit
from taskflow.model.printable import one_line


def run(arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)
    return asyncio.run(_migrate(app, arguments))


async def _migrate(app: App, arguments: argparse.Namespace) -> int:
    try:
        broker = app.broker()
        if not isinstance(broker, Migrating):
            print(f"{'-- ' if arguments.sql else ''}{_needs_none(app)}")
        elif arguments.sql:
            print(await broker.sql(), end="")
        elif arguments.plan:
            _print_plan(await broker.pending())
        else:
            _print_done(await broker.migrate())
    finally:
        await app.close()
    return Exit.OK


def _needs_none(app: App) -> str:
    return f"{urlsplit(app.broker_url()).scheme}:// needs no migrations: the first use creates everything"


def _print_plan(upgrade: Upgrade) -> None:
    if not upgrade.migrations:
        _print_done(upgrade)
        return
    print(f"{one_line(upgrade.place)} {f'is of version {upgrade.version}' if upgrade.version else 'is not there yet'}; pending:")
    for migration in upgrade.migrations:
        print(f"  {migration.version}  {migration.description}")
    print("to apply: taskflow migrate; to see the SQL: taskflow migrate --sql")


def _print_done(upgrade: Upgrade) -> None:
    place = one_line(upgrade.place)
    if not upgrade.migrations:
        print(f"{place} is up to date (version {upgrade.version})")
    elif upgrade.version:
        print(f"{place}: version {upgrade.version} -> {upgrade.target}")
    else:
        print(f"{place}: made, version {upgrade.target}")
