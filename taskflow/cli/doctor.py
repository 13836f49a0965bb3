"""`taskflow doctor | migrate`: checks whether jobs are safe in the store, and migrates its tables to this version of taskflow."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from taskflow.app.app import App
from taskflow.app.bulk_actions import CallBrokerOnce, recorded
from taskflow.app.package_conflict import advice
from taskflow.broker.admin import Admin, Finding
from taskflow.broker.migrations import Migrating, Upgrade
from taskflow.broker.url import masked
from taskflow.cli.command import existing_broker, on_store, operator
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import GREEN, RED, YELLOW, confirmed, only, painted, show
from taskflow.model.errors import BrokerError, BrokerRefused, ConfigurationError
from taskflow.model.printable import message, one_line

OF_LEVEL: Final = {"ok": GREEN, "note": YELLOW, "problem": RED}


@on_store
async def doctor(app: App, arguments: argparse.Namespace) -> int:
    """Print the findings. Return 1 if any of them is a problem. If the store fails, raise the error after printing the findings so far."""
    if arguments.rebuild:
        return await _rebuild(app, arguments)
    findings = [] if (says := advice()) is None else [Finding("installation", "problem", says)]
    trouble: BrokerError | None = None
    try:
        admin = (await existing_broker(app)).admin
        findings += await admin.examine()
        try:
            findings += await _of_workers(admin)
        except BrokerRefused:
            if not _has_problem(findings):  # otherwise the findings say why
                raise
    except BrokerError as error:
        trouble = error
    if findings or trouble is None:
        broker = masked(app.broker_url())
        lines = [f"{painted(f'{found.level:<8}', OF_LEVEL[found.level])} {found.topic}: {message(found.says)}" for found in findings]
        show(arguments, {"broker": broker, "findings": findings}, [f"broker   {one_line(broker)}", *lines])
    if trouble is not None:
        raise trouble
    return Exit.FAILED if _has_problem(findings) else Exit.OK


async def _rebuild(app: App, arguments: argparse.Namespace) -> int:
    broker, place = await existing_broker(app), masked(app.broker_url())
    if not confirmed(f"compute the indexes and counts of {one_line(place)} from its records?", arguments):
        return Exit.FAILED
    await broker.admin.workers()  # if the store doesn't answer at this point, there is nothing to record
    async with recorded(CallBrokerOnce(broker), "rebuild", **operator(arguments)) as progress:
        done = await broker.admin.rebuild()
        progress.affected = sum(done.corrected.values())
    where = ", ".join(f"{number:,} in {name}" for name, number in sorted(done.corrected.items()))
    lines = [f"{done.records:,} records read; " + (f"corrected {progress.affected:,}: {where}" if where else "nothing to correct")]
    if done.unreadable:
        lines.append(f"{done.unreadable:,} cannot be read and were left as they are")
    return show(arguments, {"broker": place, **only(done, "corrected", "records", "unreadable")}, lines)


def _has_problem(findings: list[Finding]) -> bool:
    return any(finding.level == "problem" for finding in findings)


async def _of_workers(admin: Admin) -> list[Finding]:
    """Return findings about the trouble that workers report, because a store may answer this command but not their calls."""
    workers = [worker.session for worker in await admin.workers()]
    troubled = [Finding(f"worker {one_line(worker.name)}", "problem", worker.trouble) for worker in workers if worker.trouble]
    return troubled or [Finding("workers", "ok", f"no trouble reported by {len(workers):,}")] * bool(workers)


@on_store
async def migrate(app: App, arguments: argparse.Namespace) -> int:
    if arguments.sql and arguments.json:
        raise ConfigurationError("migrate takes --sql or --json, not both")
    broker, scheme = app.broker(), urlsplit(app.broker_url()).scheme
    if arguments.sql and isinstance(broker, Migrating):
        print(await broker.sql(), end="")
        return Exit.OK
    is_done = isinstance(broker, Migrating) and not arguments.plan
    if not isinstance(broker, Migrating):
        upgrade = Upgrade(place=f"{scheme}://", version=0, migrations=())
        lines = iter([f"{'-- ' if arguments.sql else ''}{scheme}:// needs no migrations: the first use creates everything"])
    else:
        upgrade = await (broker.migrate() if is_done else broker.pending())
        lines = _upgrade_lines(upgrade, is_done=is_done)
    migrations = [only(migration, "version", "description") for migration in upgrade.migrations]
    return show(arguments, only(upgrade, "place", "version", "target") | {"migrations": migrations, "done": is_done}, lines)


def _upgrade_lines(upgrade: Upgrade, *, is_done: bool) -> Iterator[str]:
    place = one_line(upgrade.place)
    if not upgrade.migrations:
        yield f"{place} is up to date (version {upgrade.version})"
    elif not is_done:
        yield f"{place} {f'has version {upgrade.version}' if upgrade.version else 'does not exist yet'}; pending:"
        yield from (f"  {migration.version}  {migration.description}" for migration in upgrade.migrations)
        yield "to apply: taskflow migrate; to see the SQL: taskflow migrate --sql"
    else:
        yield f"{place}: {f'version {upgrade.version} ->' if upgrade.version else 'created, version'} {upgrade.target}"
