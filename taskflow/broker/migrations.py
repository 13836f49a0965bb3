"""Describes table migrations, and the interface through which `taskflow migrate` applies them to PostgreSQL and SQLite stores."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from taskflow.model.errors import BrokerRefused


class Migration(msgspec.Struct, frozen=True):
    """A migration to `version` from the previous version, with a one-line description."""

    version: int
    description: str


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """The migrations from a store's version to the version that the installed taskflow uses.

    `place`       the location of the tables: "schema 'taskflow'", "namespace 'taskflow' of /var/queue.db"
    `version`     the store's version before the migrations; 0 if there were no tables
    `migrations`  the migrations in order; empty if the store is up to date
    """

    place: str
    version: int
    migrations: tuple[Migration, ...] = ()

    @property
    def target(self) -> int:
        """The version after all migrations."""
        return self.migrations[-1].version if self.migrations else self.version

    def refuse_unless(self, migrates: bool, place: str | None = None) -> None:
        """Raise BrokerRefused if a migration is pending and `migrates` is False.
        The message names `place`, or by default the location of the tables."""
        if self.migrations and not migrates:
            stands = f"has version {self.version}" if self.version else "does not exist"
            raise BrokerRefused(
                f"{place or self.place} {stands}, this taskflow needs version {self.target}, "
                "and may not migrate it (migrate=0): run `taskflow migrate`"
            )


class Migrations:
    """The migrations in a folder: `2.sql` migrates from version 1 to version 2, and its first line reads ``-- 2: What it changes.``

    `newest` is read once, because a worker must know the version of the tables it uses even after its package has been replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest = max(int(file.stem) for file in folder.glob("*.sql"))

    def after(self, version: int, place: str) -> Upgrade:
        """Return the migrations that follow a version. If there are none, no
        file is read, because this user may not be allowed to read them."""
        numbers = range(version + 1, self.newest + 1)
        descriptions = (self.text(number).partition("\n")[0].partition(": ")[2] for number in numbers)
        return Upgrade(place=place, version=version, migrations=tuple(map(Migration, numbers, descriptions)))

    def text(self, version: int) -> str:
        return (self.folder / f"{version}.sql").read_text(encoding="utf-8")


@runtime_checkable
class Migrating(Protocol):
    """A broker that can migrate its store. If a method fails, it raises BrokerUnavailable
    or BrokerRefused, as verbs do. A store newer than the installed taskflow is refused."""

    async def pending(self) -> Upgrade:
        """Return the migrations that `migrate` would apply now. Changes nothing."""
        ...

    async def migrate(self) -> Upgrade:
        """Apply all pending migrations or none, and return those applied. If
        several callers migrate at once, only one of them applies the migrations.

        Raises BrokerUnavailable if another session holds locks on the tables for too long. The method makes several attempts and waits
        only briefly each time, so that other sessions do not queue behind it for long.
        """
        ...

    async def sql(self) -> str:
        """Return the pending migrations as a script for an administrator to run on the store in its current state. Changes nothing."""
        ...
