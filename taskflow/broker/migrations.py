"""Describes table migrations, and the interface through which `taskflow migrate` applies them to PostgreSQL and SQLite stores."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import msgspec

from taskflow.model.errors import BrokerRefused

ADDITIONS: Final = "New tables and indexes."
"""The description of a migration that only adds tables or indexes."""


class Migration(msgspec.Struct, frozen=True):
    """A migration to `version` from the previous version, with a one-line description."""

    version: int
    description: str


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """The migrations from a store's version to the version that the installed taskflow uses.

    `place`       the location of the tables: "schema 'taskflow'", "namespace 'taskflow' of /var/queue.db"
    `version`     the store's version before the migrations; 0 if there were no tables
    `migrations`  the migrations in order; empty if the store is up to date
    `missing`     on SQLite, the statements that create missing tables and indexes; empty if there are no tables yet
    """

    place: str
    version: int
    migrations: tuple[Migration, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def target(self) -> int:
        """The version after all migrations."""
        return self.migrations[-1].version if self.migrations else self.version

    def refuse_unless(self, migrates: bool, place: str | None = None) -> None:
        """Raise BrokerRefused if a migration is pending and `migrates` is False. The message names `place`, or else `self.place`."""
        if self.migrations and not migrates:
            if self.version == self.target:
                stands = "lacks tables or indexes that taskflow needs"
            else:
                stands = f"{f'has version {self.version}' if self.version else 'does not exist'}, but taskflow needs version {self.target}"
            raise BrokerRefused(f"{place or self.place} {stands}. It isn't migrated because of migrate=0: run `taskflow migrate`")


@runtime_checkable
class Migrating(Protocol):
    """A broker that can migrate its store. If a method fails, it raises BrokerUnavailable
    or BrokerRefused, as operations do. A store newer than the installed taskflow is refused."""

    async def pending(self) -> Upgrade:
        """Return the migrations that `migrate` would apply now. Changes nothing."""
        ...

    async def migrate(self) -> Upgrade:
        """Apply all pending migrations or none, and return those applied. If
        several callers migrate at once, only one of them applies the migrations.

        Raises BrokerUnavailable if another session holds a needed lock for over 2 s (on SQLite, for the broker's timeout).
        """
        ...

    async def sql(self) -> str:
        """Return the pending migrations as a script for an administrator to run on the store in its current state. Changes nothing."""
        ...
