"""Translates errors of the server, the driver and the network into taskflow's errors."""

from __future__ import annotations

import ssl
from typing import Final

import asyncpg

from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, SessionLost

ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Errors raised by the driver. InternalClientError is raised if a connection breaks while it is in use. A TimeoutError is an OSError."""

_LOST: Final = "TF001"

# Classes and codes of errors that are usually temporary: connection, resources, operator intervention, transaction rollback, locks.
_PASSING_CLASSES: Final = ("08", "53", "57", "40", "55")
_PASSING: Final = frozenset({"25006", "25P03", "XX000"})


# A prepared statement is missing or already exists, because a pooler has switched to another connection to the server.
_OF_A_POOLER: Final = ("26000", "42P05")


class NoRoom(BrokerUnavailable):
    """The server's disk is full. `enqueue` raises StoreFull instead. Other operations treat it as BrokerUnavailable, so that sessions
    survive until there is space again."""


class Unsuitable(ConnectionError):
    """The server cannot be used with this URL, and another attempt would fail too. The message completes "PostgreSQL at PLACE"."""


def connect_error(error: Exception, tls: str, within: float) -> Exception:
    """Return the error to raise in place of one that the driver raised while connecting."""
    if isinstance(error, TimeoutError):
        return TimeoutError(f"no answer within {within:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unsuitable(
            f"has an invalid certificate: {error.verify_message}; set tls_ca= in the broker URL to its authority's certificate, "
            "and use the host name in the server's certificate"
        )
    if isinstance(error, ConnectionError) and _NO_TLS in str(error):
        if tls == "prefer":  # the driver continues without TLS if a PostgreSQL server offers none
            return Unsuitable("does not speak PostgreSQL: check host and port in the broker URL")
        return Unsuitable(f"offers no TLS, which tls={tls} in the broker URL requires, or does not speak PostgreSQL")
    if isinstance(error, asyncpg.ConnectionDoesNotExistError | ConnectionResetError):
        return ConnectionError("it closed the connection before answering; perhaps it is not a PostgreSQL server")
    return error


_NO_TLS: Final = "rejected SSL upgrade"
"""The driver's message if the server's answer to its TLS request is neither "yes" nor a "no" that it may accept."""


def broker_error(error: Exception, place: str, schema: str = "", role: str | None = None) -> BrokerError:
    """Return the BrokerError to raise in place of the driver's error. `place` names the server, without secrets. `schema` and `role` are
    for advice on rights. The driver's error, which a traceback shows as the cause, loses its DETAIL, because that may be a whole row."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None
    if isinstance(error, Unsuitable):
        return BrokerRefused(f"PostgreSQL at {place} {error}")
    if not isinstance(error, asyncpg.PostgresError):
        return BrokerUnavailable(f"PostgreSQL at {place} does not answer: {str(error) or type(error).__name__}")
    state = error.sqlstate or ""
    if state == _LOST:
        return SessionLost(str(error))
    if state == "53100":
        return NoRoom(f"PostgreSQL at {place} has no room: {error}")
    if state in _OF_A_POOLER:
        return BrokerRefused(f"PostgreSQL at {place} is behind a pooler that lacks prepared statements: add pooled=1 to the broker URL")
    if isinstance(error, asyncpg.LockNotAvailableError):
        return BrokerUnavailable(
            f"PostgreSQL at {place}: another open transaction holds a lock that this call needs, for example on a key ({error}): "
            "find it in pg_stat_activity (state 'idle in transaction'), and end it"
        )
    if may_pass(error):
        return BrokerUnavailable(f"PostgreSQL at {place} cannot run this now: {error}")
    if isinstance(error, asyncpg.InsufficientPrivilegeError) and schema:
        return BrokerRefused(f"PostgreSQL at {place} refuses: {error}. {_advice(error, schema, role)}")
    return BrokerRefused(f"PostgreSQL at {place} refuses: {error}")


def _advice(error: Exception, schema: str, role: str | None) -> str:
    """Return advice for an administrator: the statements that grant a role the missing rights."""
    to = f"TO {_quoted(role)}" if role else "TO the role in the broker URL"
    _, _, database = str(error).partition("for database ")
    if database:
        return (
            "Let the owner of the database create the schema (`taskflow migrate`), or run: "
            f"GRANT CREATE ON DATABASE {_quoted(database)} {to};"
        )
    return f"""\
A role for workers needs:
GRANT USAGE ON SCHEMA "{schema}" {to};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" {to};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" {to};"""


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def may_pass(error: Exception) -> bool:
    """Return True if the same call may succeed later."""
    if not isinstance(error, asyncpg.PostgresError):
        return not isinstance(error, Unsuitable)
    state = error.sqlstate or ""
    return state in _PASSING or state[:2] in _PASSING_CLASSES


def was_held_up(error: BaseException) -> bool:
    """Return True if an operation stopped waiting for a lock that another program's transaction was holding."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


def was_dropped(error: BaseException) -> bool:
    """Return True if an operation failed because the schema has been dropped, or has not been created yet."""
    return isinstance(error.__cause__, asyncpg.InvalidSchemaNameError | asyncpg.UndefinedTableError)


def was_about_a_value(error: BaseException) -> bool:
    """Return True if the server rejected a value, such as one that is too large for its
    column, or overflows when added to a stored value. Another attempt would fail too."""
    state = getattr(error.__cause__, "sqlstate", None) or ""
    return state[:2] in ("22", "54") or state in ("23502", "23514")


def is_read_only(error: Exception) -> bool:
    """Return True if the server is no longer a primary. The statement had no effect."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "25006"


def is_stale(error: Exception) -> bool:
    """Return True if the session looked up a function just as another session dropped it. The statement had no effect."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "XX000" and "cache lookup failed" in str(error)


def was_cancelled(error: BaseException) -> bool:
    """Return True if the server cancelled the statement, because of statement_timeout or at an operator's request, without any effect.

    The connection still works, and its session keeps its plans, so a second attempt there takes less time.
    """
    return isinstance(error, asyncpg.QueryCanceledError)


def is_lost(error: Exception) -> bool:
    """Return True if the connection to the server was lost, and most likely all other connections too."""
    return not isinstance(error, asyncpg.PostgresError) or isinstance(error, asyncpg.PostgresConnectionError)


def is_cut(error: Exception) -> bool:
    """Return True if the connection was probably lost before the statement arrived, or the statement conflicted with another one."""
    if isinstance(error, TimeoutError | Unsuitable):
        return False
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "") in ("57P01", "40001", "40P01", "23505") or is_lost(error)
    return True
