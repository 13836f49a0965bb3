"""The port by which `taskflow migrate` upgrades a store. PostgreSQL and SQLite have it: their tables have versions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


class Migration(msgspec.Struct, frozen=True):
    """One step: from the version before to `version`. What it changes, in a line."""

    version: int
    description: str


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """What leads, or has led, from the version that a store had to the one that this taskflow works with.

    `place`       what has the version: "schema 'taskflow'", "namespace 'taskflow' of /var/queue.db"
    `version`     the one that it had; 0 where there was nothing yet
    `migrations`  in order; none when it was up to date
    """

    place: str
    version: int
    migrations: tuple[Migration, ...] = ()

    @property
    def target(self) -> int:
        """The version at the end."""
        return self.migrations[-1].version if self.migrations else self.version


@runtime_checkable
class Migrating(Protocol):
    """All raise BrokerUnavailable and BrokerRefused as verbs do; the second also when the store is of a newer version."""

    async def pending(self) -> Upgrade:
        """What `migrate` would do now. Changes nothing."""
        ...

    async def migrate(self) -> Upgrade:
        """Applies what is pending, as a whole or not at all, and says what it did. However many do it at once, one does it.

        Raises BrokerUnavailable when somebody holds locks on the tables for too long: it waits for them a little, several times, so that
        nobody else waits behind it for long.
        """
        ...

    async def sql(self) -> str:
        """What `migrate` would do, as a script for an administrator, who runs it on this store as it is now. Changes nothing."""
        ...
