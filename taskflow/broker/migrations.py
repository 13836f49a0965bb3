"""The interface by which `taskflow migrate` upgrades a store. PostgreSQL and SQLite have it, because their tables have versions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


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


@runtime_checkable
class Migrating(Protocol):
    """All methods raise BrokerUnavailable and BrokerRefused as verbs do, and BrokerRefused for a store of a newer version."""

    async def pending(self) -> Upgrade:
        """Return what `migrate` would do now. Changes nothing."""
        ...

    async def migrate(self) -> Upgrade:
        """Apply all pending migrations or none, and return what was done. If several callers migrate at once, one does it.

        Raises BrokerUnavailable if another session holds locks on the tables for too long. It waits for them several times for a short
        time, so
        that nothing queues behind it for long.
        """
        ...

    async def sql(self) -> str:
        """Return the pending migrations as a script, which an administrator runs on the store in its present state. Changes nothing."""
        ...
