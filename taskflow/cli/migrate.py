"""`taskflow migrate`: migrates the store's tables to the version that the installed taskflow uses."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from taskflow.app.app import App
from taskflow.broker.migrations import Migrating, Upgrade
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import with_store
from taskflow.model.errors import ConfigurationError
from taskflow.model.printable import one_line


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _migrate)


async def _migrate(app: App, arguments: argparse.Namespace) -> int:
    if arguments.sql and arguments.json:
        raise ConfigurationError("migrate takes --sql or --json, not both")
    broker = app.broker()
    if not isinstance(broker, Migrating):
        scheme = urlsplit(app.broker_url()).scheme
        if arguments.json:
            _print_as_json(Upgrade(place=f"{scheme}://", version=0, migrations=()), is_done=False)
        else:
            print(f"{'-- ' if arguments.sql else ''}{scheme}:// needs no migrations: the first use creates everything")
    elif arguments.sql:
        print(await broker.sql(), end="")
    else:
        upgrade = await (broker.pending() if arguments.plan else broker.migrate())
        if arguments.json:
            _print_as_json(upgrade, is_done=not arguments.plan)
        else:
            (_print_plan if arguments.plan else _print_done)(upgrade)
    return Exit.OK


def _print_as_json(upgrade: Upgrade, *, is_done: bool) -> None:
    migrations = [{"version": migration.version, "description": migration.description} for migration in upgrade.migrations]
    told = {"place": upgrade.place, "version": upgrade.version, "target": upgrade.target, "migrations": migrations, "done": is_done}
    print_json(told)


def _print_plan(upgrade: Upgrade) -> None:
    if not upgrade.migrations:
        _print_done(upgrade)
        return
    print(f"{one_line(upgrade.place)} {f'has version {upgrade.version}' if upgrade.version else 'does not exist yet'}; pending:")
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
        print(f"{place}: created, version {upgrade.target}")
