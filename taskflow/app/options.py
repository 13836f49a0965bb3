"""The options of jobs and calls. Precedence: `.options()`, then the decorator, then its preset, then the configured defaults."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

import msgspec

from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.job_schema import DEFAULT_QUEUE
from taskflow.model.rules import Backoff, RetryFunction

if TYPE_CHECKING:
    from taskflow.app.declared_key import DeclaredKey
    from taskflow.model.schedule_plan import CatchUp, Overlap
    from taskflow.model.timetable import Timetable


Conflict = Literal["keep", "replace", "raise"]
KeyScope = Literal["queue", "name"]
RunsIn = Literal["loop", "thread", "process"]

Errors = tuple[type[BaseException], ...]


@runtime_checkable
class BoundCall(Protocol):
    """A call made by `bind`."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def raises_on_conflict(self) -> bool: ...

    def _renewed(self) -> Envelope: ...


class SharedOptions(TypedDict, total=False):
    queue: str | None
    priority: int | None
    expires: float | timedelta | None
    max_attempts: int | None
    timeout: float | timedelta | None
    keep_result: float | timedelta | None


class KeyOptions(TypedDict, total=False):
    key: str | None
    key_scope: KeyScope | None
    on_conflict: Conflict | None
    on_failure: BoundCall | None
    tags: tuple[str, ...] | list[str] | None


class DefaultOptions(SharedOptions, total=False):
    """The options that ``configure(defaults=...)`` takes; see `job`."""

    retry: Backoff | RetryFunction | None
    retry_on: Sequence[type[BaseException]] | None
    discard_on: Sequence[type[BaseException]] | None
    stop_grace: float | timedelta | None


class PresetOptions(DefaultOptions, KeyOptions, total=False):
    """The options that `preset` takes; see `job`."""

    runs_in: RunsIn | None
    schedule: Timetable | Sequence[Timetable | None] | None
    overlap: Overlap | None
    catch_up: CatchUp | None
    max_delay: float | timedelta | None


class JobOptions(PresetOptions, total=False):
    """The options of the decorator; see `job`."""

    name: str | None
    aliases: Sequence[str] | None


class EnqueueOptions(SharedOptions, KeyOptions, total=False):
    """The options of `.options()`. None means "not given", except for `expires` and `timeout`, where it removes the limit.

    `queue`         the queue's name
    `priority`      -100 to 100; higher runs first
    `after`, `at`   when the job may start: seconds or a timedelta from now, or an aware
                    datetime. Up to a hundred years from now; the past means now
    `expires`       seconds or a timedelta from now, after which no run starts
    `max_attempts`  the number of attempts, including the first
    `retry`         the `Backoff` between attempts. It is sent with the call, so it cannot be a function
    `timeout`       seconds or a timedelta that one run may take
    `key`           up to 200 bytes; at most one live job with the same queue and name can have it. "" removes a key that the decorator or
                    an earlier `.options()` gave. The key is stored as text too, and shown to operators
    `key_scope`     "queue" (default), or "name": at most one live job with the same name can have the key, whatever its queue
    `on_conflict`   what to do if a live job has the key: "keep" that job (default), "replace" it, or "raise" KeyConflict. A running job
                    that was asked to stop does not block the key: the new job waits until it has ended
    `keep_result`   seconds or a timedelta for which a successful job is kept (default 3600 s; 0 keeps none)
    `tags`          up to 10 texts by which the job is found later; those of the decorator are added to these
    `headers`       a dict of str to str, up to 4 KiB in all, which is sent with the job
    `on_failure`    a call made by `bind`, which is sent when the job ends FAILED, in the same step; see `JobContext.caused_by`. It
                    has at most 32 KiB with its arguments and options
    `connection`    a database connection or session with an open transaction: the job exists if and only if that commits
    """

    after: float | timedelta | None
    at: datetime | None
    retry: Backoff | None
    headers: dict[str, str] | None
    connection: Connection | None


DECORATOR_ONLY: Final = tuple(name for name in JobOptions.__annotations__ if name not in EnqueueOptions.__annotations__)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a call after checking. Durations are in seconds, and `at` is in microseconds since 1970."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    after: float = 0.0
    at: int | None = None
    expires: float | None = None
    max_attempts: int = 10
    retry: Backoff | None = None
    timeout: float | None = None
    key: str | DeclaredKey | None = None
    key_scope: KeyScope = "queue"
    on_conflict: OnConflict = OnConflict.KEEP
    raises_on_conflict: bool = False
    keep_result: float = 3600.0
    headers: dict[str, str] = {}
    on_failure: Any = None
    tags: tuple[str, ...] = ()
    declared_tags: tuple[str, ...] = ()
    connection: Any = None

    def envelope_fields(self, job: str) -> dict[str, Any]:
        """Return the fields of the envelopes of the job's calls, without those that have default values."""
        fields = {field: getattr(self, field) for field in Options.__struct_fields__ if field not in NOT_SENT}
        if self.key and isinstance(self.key, str):
            fields |= self.key_fields(job, self.key)
        if self.on_failure is not None:
            fields["on_failure"] = packed_follow_up(self.on_failure._renewed())
        return {field: value for field, value in fields.items() if value != getattr(_PLAIN, field)}

    def key_fields(self, job: str, key: str, text: str | None = None) -> dict[str, Any]:
        """Return the envelope fields of a call's key. `text` is stored and shown in place of a key with secrets.
        Raises ValueError for an invalid key."""
        return {"key": key_digest("" if self.key_scope == "name" else self.queue, job, key), "key_text": key if text is None else text}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules by which workers retry and stop the runs of a job. It is retried after errors in `retry_on`, except those in
    `discard_on`. In a child process, a run has `stop_grace` seconds between being asked to stop and being killed."""

    retry: Backoff | RetryFunction = Backoff()
    retry_on: Errors = (Exception,)
    discard_on: Errors = ()
    stop_grace: float = 0.0


NOT_SENT: Final = ("key", "key_scope", "declared_tags", "raises_on_conflict", "on_failure", "connection")
"""The fields of `Options` that are not fields of the envelope."""
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


def packed_follow_up(follow_up: Envelope) -> bytes:
    """Return the packed call that is to be sent on failure."""
    from taskflow.model.envelope import pack_follow_up

    try:
        return pack_follow_up(follow_up)
    except ValueError as error:
        raise ValueError(f"on_failure=: {error}") from None


class _Commits(Protocol):
    """A connection or session of psycopg, psycopg2, sqlite3, aiosqlite, SQLAlchemy, SQLModel or Django."""

    def commit(self) -> Any: ...

    def rollback(self) -> Any: ...


class _Proxy(Protocol):
    """``django.db.connection``, if Django's stubs are not installed."""

    def __getattr__(self, item: Any, /) -> Any: ...

    def __contains__(self, key: Any, /) -> Any: ...


class _IsInTransaction(Protocol):
    """A connection of asyncpg."""

    def is_in_transaction(self) -> bool: ...


@runtime_checkable
class RunsStatement(Protocol):
    """A connection of a driver that taskflow does not know. Implement this to send jobs in its transactions.

    The connection must be in a transaction, which taskflow cannot check.
    """

    def run_statement(self, statement: str, parameters: Sequence[Any], /) -> Iterable[Iterable[Any]] | Awaitable[Iterable[Iterable[Any]]]:
        """Run one SQL statement in the caller's transaction, and return its rows, each as an iterable of values. Must be an
        ``async def`` if the driver is used with `await`.

        `statement`   contains a placeholder for each parameter, ``%s`` for PostgreSQL and ``?`` for SQLite, and no other ``%`` or ``?``
        `parameters`  the values: one str for PostgreSQL; int, str, bytes or None for SQLite
        """
        ...


Connection: TypeAlias = _Commits | _Proxy | _IsInTransaction | RunsStatement
