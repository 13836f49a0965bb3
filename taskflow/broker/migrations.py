"""Versions of tables, and the interface by which `taskflow migrate` upgrades a store. PostgreSQL and SQLite have it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from taskflow.model.errors import BrokerRefused


class Migration(msgspec.Struct, frozen=True):
    """One step to `version` from the version before, with a line that says what changes."""

    version: int
    description: str


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """The migrations from the version of a store to the version that this taskflow uses.

    `place`       what has the version: "schema 'taskflow'", "namespace 'taskflow' of /var/queue.db"
    `version`     the version before; 0 if there was nothing yet
    `migrations`  in order; empty if the store is up to date
    """

    place: str
    version: int
    migrations: tuple[Migration, ...] = ()

    @property
    def target(self) -> int:
        """The version after all migrations."""
        return self.migrations[-1].version if self.migrations else self.version

    def refuse_unless(self, migrates: bool, place: str | None = None) -> None:
        """Raise BrokerRefused if something is pending in a store that must not be migrated on the way. `place` is for the message."""
        if self.migrations and not migrates:
            stands = f"is of version {self.version}" if self.version else "is not there"
            raise BrokerRefused(
                f"{place or self.place} {stands}, this taskflow needs version {self.target}, "
                "and must not migrate by itself (migrate=0): run `taskflow migrate`"
            )


class Migrations:
    """The migrations in a folder: `2.sql` leads from version 1 to version 2, and its first line reads ``-- 2: What it changes.``

    `newest` is read once: a worker looks at the version of its tables when its package has been replaced, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest = max(int(file.stem) for file in folder.glob("*.sql"))

    def after(self, version: int, place: str) -> Upgrade:
        """Return what leads on from a version. Up-to-date tables need no file, which this user may not be able to read."""
        numbers = range(version + 1, self.newest + 1)
        descriptions = (self.text(number).partition("\n")[0].partition(": ")[2] for number in numbers)
        return Upgrade(place=place, version=version, migrations=tuple(map(Migration, numbers, descriptions)))

    def text(self, version: int) -> str:
        return (self.folder / f"{version}.sql").read_text(encoding="utf-8")


@runtime_checkable
class Migrating(Protocol):
    """All methods raise BrokerUnavailable and BrokerRefused as verbs do, and BrokerRefused for a store of a newer version."""

    async def pending(self) -> Upgrade:
        """Return what `migrate` would do now. Changes nothing."""
        ...

    async def migrate(self) -> Upgrade:
        """Apply all pending migrations or none, and return what was done. If several callers migrate at once, one does it.

        Raises BrokerUnavailable if another session holds locks on the tables for too long. It waits for them several times for a short
        time, so that nothing queues behind it for long.
        """
        ...

    async def sql(self) -> str:
        """Return the pending migrations as a script, which an administrator runs on the store in its present state. Changes nothing."""
        ...
