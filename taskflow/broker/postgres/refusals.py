"""What a server, or the way to it, says no with, as errors of ours."""

from __future__ import annotations

from typing import Final

import asyncpg

from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, SessionLost

ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises, the third when a connection is cut under its hands; a timeout is an OSError."""

_LOST: Final = "TF001"

# Classes of errors, and single ones, that may well be gone soon: connection, resources, operator intervention, transaction rollback, locks.
_PASSING_CLASSES: Final = ("08", "53", "57", "40", "55")
_PASSING: Final = frozenset({"25006", "25P03", "XX000"})


# A prepared statement is not there, or is there already: it was another connection's of the server.
_OF_A_POOLER: Final = ("26000", "42P05")


class NoRoom(BrokerUnavailable):
    """The disk is full. Whoever enqueues is told StoreFull; to all others the store is away until there is room: no session ends by it."""


def in_our_words(error: Exception, place: str) -> BrokerError:
    """The error to raise from it. `place` names the server, without secrets."""
    if isinstance(error, BrokerError):
        return error
    if not isinstance(error, asyncpg.PostgresError):
        return BrokerUnavailable(f"PostgreSQL at {place} does not answer: {str(error) or type(error).__name__}")
    state = error.sqlstate or ""
    if state == _LOST:
        return SessionLost(str(error))
    if state == "53100":
        return NoRoom(f"PostgreSQL at {place} has no room: {error}")
    if state in _OF_A_POOLER:
        return BrokerRefused(f"PostgreSQL at {place} is behind a pooler that takes no prepared statements: add pooled=1 to the broker URL")
    if may_pass(error):
        return BrokerUnavailable(f"PostgreSQL at {place} cannot do it now: {error}")
    return BrokerRefused(f"PostgreSQL at {place} refuses: {error}")


def may_pass(error: Exception) -> bool:
    """The same, tried again in a while, may well be done."""
    if not isinstance(error, asyncpg.PostgresError):
        return True
    state = error.sqlstate or ""
    return state in _PASSING or state[:2] in _PASSING_CLASSES


def was_held_up(error: BaseException) -> bool:
    """Of an error of ours: somebody else's transaction has held a lock for longer than a verb waits."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


def is_read_only(error: Exception) -> bool:
    """The server behind the connection is no primary any more: what was sent has had no effect."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "25006"


def is_stale(error: Exception) -> bool:
    """The connection's session goes on with a function that a migration has dropped meanwhile, and would for good: the migration came while
    it looked the function up, and it has not heard of it. What was sent has had no effect; another connection will do."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "XX000" and "cache lookup failed" in str(error)


def is_lost(error: Exception) -> bool:
    """The way to the server has failed, and with it most likely the other connections."""
    return not isinstance(error, asyncpg.PostgresError) or isinstance(error, asyncpg.PostgresConnectionError)


def is_cut(error: Exception) -> bool:
    """The connection was gone before the statement got anywhere, as far as can be told; or two verbs got in each other's way."""
    if isinstance(error, TimeoutError):
        return False
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "") in ("57P01", "40001", "40P01", "23505") or is_lost(error)
    return True
