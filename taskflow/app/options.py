"""The options of jobs and calls. Precedence: `.options()`, then the decorator, then its preset, then the configured defaults."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypedDict, cast, get_args, runtime_checkable

import msgspec

from taskflow.app.connections.types import Connection
from taskflow.app.execution_mode import RunsIn
from taskflow.app.unknown_options import unknown_option
from taskflow.model.backoff import Backoff
from taskflow.model.clock import instant_of, microseconds_of, to_microseconds
from taskflow.model.envelope import OWN_HEADERS, Envelope, OnConflict, check_envelope
from taskflow.model.ids import check_key, key_digest
from taskflow.model.job_schema import DEFAULT_QUEUE, bare_text, check_tags
from taskflow.model.printable import shown
from taskflow.model.rules import LONGEST

if TYPE_CHECKING:  # loaded only by jobs that use them
    from taskflow.app.declared_key import DeclaredKey
    from taskflow.model.schedule_plan import CatchUp, Overlap
    from taskflow.model.timetable import Timetable

Conflict = Literal["keep", "replace", "raise"]
KeyScope = Literal["queue", "name"]

Errors = tuple[type[BaseException], ...]

MOST_ATTEMPTS: Final = 1_000_000


@runtime_checkable
class BoundCall(Protocol):
    """A call made by `bind`."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def raises_on_conflict(self) -> bool: ...

    def _renewed(self) -> Envelope: ...


class _SharedOptions(TypedDict, total=False):
    queue: str | None
    priority: int | None
    expires: float | timedelta | None
    max_attempts: int | None
    retry: Backoff | None
    timeout: float | timedelta | None
    keep_result: float | timedelta | None


class _KeyOptions(TypedDict, total=False):
    key: str | None
    key_scope: KeyScope | None
    on_conflict: Conflict | None
    on_failure: BoundCall | None
    tags: tuple[str, ...] | list[str] | None


class DefaultOptions(_SharedOptions, total=False):
    """The options that ``configure(defaults=...)`` takes; see `job`."""

    retry_on: Sequence[type[BaseException]] | None
    discard_on: Sequence[type[BaseException]] | None
    stop_grace: float | timedelta | None


class PresetOptions(DefaultOptions, _KeyOptions, total=False):
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


class EnqueueOptions(_SharedOptions, _KeyOptions, total=False):
    """The options of `.options()`. None means "not given", except for `expires` and `timeout`, where it removes the limit.

    `queue`         the queue's name
    `priority`      -100 to 100; higher runs first
    `after`, `at`   when the job may start: seconds or a timedelta from now, or an aware
                    datetime. Up to a hundred years from now; the past means now
    `expires`       seconds or a timedelta from now, after which no run starts
    `max_attempts`  the number of attempts, including the first
    `retry`         the `Backoff` between attempts
    `timeout`       seconds or a timedelta that one run may take
    `key`           up to 200 bytes; at most one live job with the same queue and name can have it. "" removes a key that the decorator or
                    an earlier `.options()` gave. The key is stored as text too, and shown to operators
    `key_scope`     "queue" (default), or "name": at most one live job with the same name can have the key, whatever its queue
    `on_conflict`   what to do if a live job has the key: "keep" that job (default), "replace" it, or "raise" KeyConflict. A running job
                    that was asked to stop does not block the key: the new job waits until it has ended
    `keep_result`   seconds or a timedelta for which a successful job is kept
    `tags`          up to 10 texts by which the job is found later; those of the decorator are added to these
    `headers`       a dict of str to str, up to 4 KiB in all, which is sent with the job
    `on_failure`    a call made by `bind`, which is sent when the job ends FAILED, in the same step; see `JobContext.caused_by`. It
                    has at most 32 KiB with its arguments and options
    `connection`    a database connection or session with an open transaction: the job exists if and only if that commits
    """

    after: float | timedelta | None
    at: datetime | None
    headers: dict[str, str] | None
    connection: Connection | None


OF_THE_DECORATOR: Final = tuple(name for name in JobOptions.__annotations__ if name not in EnqueueOptions.__annotations__)


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
    keep_result: float = 300.0
    headers: dict[str, str] = {}
    on_failure: Any = None
    tags: tuple[str, ...] = ()
    declared_tags: tuple[str, ...] = ()
    connection: Any = None

    def envelope_fields(self, job: str) -> dict[str, Any]:
        """Return the fields of the envelopes of the job's calls, without those that have default values."""
        fields = {field: getattr(self, field) for field in Options.__struct_fields__ if field not in _NOT_SENT}
        if self.key and isinstance(self.key, str):
            fields |= self.key_fields(job, self.key)
        if self.on_failure is not None:
            fields["on_failure"] = _packed(self.on_failure._renewed())
        return {field: value for field, value in fields.items() if value != getattr(_PLAIN, field)}

    def key_fields(self, job: str, key: str) -> dict[str, Any]:
        """Return the envelope fields of a call's key. Raises ValueError for an invalid key."""
        return {"key": key_digest("" if self.key_scope == "name" else self.queue, job, key), "key_text": key}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules by which workers retry and stop the runs of a job. It is retried after errors in `retry_on`, except those in
    `discard_on`. In a child process, a run has `stop_grace` seconds between being asked to stop and being killed."""

    retry: Backoff = Backoff()
    retry_on: Errors = (Exception,)
    discard_on: Errors = ()
    stop_grace: float = 0.0


_NOT_SENT: Final = ("key", "key_scope", "declared_tags", "raises_on_conflict", "on_failure", "connection")
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")
_OF_CALLS: Final = tuple(name for name in (*_SharedOptions.__annotations__, *_KeyOptions.__annotations__) if name != "retry")
_OF_POLICY: Final = Policy.__struct_fields__
_CONFLICTS: dict[str, tuple[OnConflict, bool]] = {
    "keep": (OnConflict.KEEP, False),
    "replace": (OnConflict.REPLACE, False),
    "raise": (OnConflict.KEEP, True),
}
_DURATIONS = ("after", "expires", "timeout", "keep_result")
LIFTED_BY_NONE: Final = ("expires", "timeout")
_KINDS: dict[str, type] = {"priority": int, "max_attempts": int, "queue": str, "key": str, "headers": dict, "retry": Backoff}


def declared_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert options of a declaration to fields of `Options` and of `Policy`. Raises TypeError or ValueError, naming the option."""
    options = plain_options(cast(EnqueueOptions, {name: given[name] for name in _OF_CALLS if name in given}))
    if "tags" in options:
        options["declared_tags"] = options["tags"]
    return options, {name: _policy_field(name, given[name]) for name in _OF_POLICY if given.get(name) is not None}


def default_options(given: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check what ``configure(defaults=...)`` was given, and convert it like `declared_options`."""
    if not isinstance(given, Mapping):
        raise TypeError(f"expected a dict of options, got {shown(given)}")
    known = DefaultOptions.__annotations__
    for name in given:
        if name not in known:
            others = {*JobOptions.__annotations__, *EnqueueOptions.__annotations__} - {*known}
            raise TypeError(unknown_option(str(name), known, others, "to each job that needs it: it cannot be a default"))
    return declared_options(given)


def changed_options(before: Mapping[str, Any], given: EnqueueOptions) -> dict[str, Any]:
    """Return fields of `Options` with the given options. Raises TypeError or ValueError for an invalid option, naming it."""
    return merged_options(before, plain_options(given))


def merged_options(before: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `Options` that later ones have changed. Raises ValueError if these remove a key that does not exist, or add too
    many tags."""
    after = {**before, **fields}
    if fields.get("key") == "":
        if not before.get("key"):
            raise ValueError('key="" removes a key, but there is none: the job declares no key; leave key= out')
        after["key"] = None
    if "tags" in fields:
        after["tags"] = check_tags((*before.get("declared_tags", ()), *fields["tags"]))
    if "after" in fields:
        after["at"] = fields.get("at")  # after= and at= exclude each other: the last one given counts
    return after


def plain_options(given: EnqueueOptions) -> dict[str, Any]:
    """Check options, and convert them to fields of `Options`."""
    for name in given:
        if name not in EnqueueOptions.__annotations__:
            raise TypeError(
                unknown_option(name, EnqueueOptions.__annotations__, OF_THE_DECORATOR, f"to the decorator, as in @job({name}=...)")
            )
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None or name in LIFTED_BY_NONE}
    for name, value in fields.items():
        if name in _DURATIONS:
            fields[name] = None if value is None else seconds_of(name, value)
        elif name in _KINDS and (not isinstance(value, _KINDS[name]) or isinstance(value, bool)):
            kind = _KINDS[name].__name__
            raise TypeError(f"{name}={shown(value)}: expected {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
        elif isinstance(value, int):
            fields[name] = int(value)  # converts members of an IntEnum too
        elif isinstance(value, str):
            fields[name] = bare_text(value)
    if "at" in fields and "after" in fields:
        raise ValueError("after= and at= exclude each other: give one of them")
    if "at" in fields:
        fields["at"] = _instant(fields["at"])
    if "on_conflict" in fields:
        fields["on_conflict"], fields["raises_on_conflict"] = _conflict(fields["on_conflict"])
    if fields.get("key_scope", "queue") not in get_args(KeyScope):
        raise ValueError(f'key_scope={shown(fields["key_scope"])}: expected "queue" or "name"')
    if "connection" in fields:
        from taskflow.app.connections.recognition import check_connection

        check_connection(fields["connection"])
    if "on_failure" in fields:
        _check_follow_up(fields["on_failure"])
    if "headers" in fields:
        fields["headers"] = _headers(fields["headers"])
    if "tags" in fields:
        fields["tags"] = _tags(fields["tags"])
    if "key" in fields:
        _check_text("key", fields["key"])
        if fields["key"]:
            check_key(fields["key"])
    if fields.get("max_attempts", 1) > MOST_ATTEMPTS:
        raise ValueError(f"max_attempts={shown(fields['max_attempts'])}: expected 1 to {MOST_ATTEMPTS:,}")
    check_envelope(Envelope(id=b"", job="-", payload=b"", **{name: value for name, value in fields.items() if name not in _NOT_SENT}))
    return fields


def _policy_field(name: str, value: Any) -> Any:
    if name == "stop_grace":
        return seconds_of(name, value)
    if name == "retry":
        if not isinstance(value, Backoff):
            raise TypeError(f"retry={shown(value)}: expected a Backoff")
        return value
    errors = tuple(value) if isinstance(value, Sequence) else (value,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(f"{name}={shown(value)}: expected a tuple of exception classes")
    return errors


def seconds_of(name: str, value: object) -> float:
    """Convert a number or a timedelta to seconds, up to a hundred years.
    Raises TypeError or ValueError for an invalid value, naming the option."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name}={shown(value)}: expected seconds, as a number or a timedelta")
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"{name}={shown(value)}: expected 0 to {LONGEST:,.0f} seconds, a hundred years")
    return float(seconds)


def _instant(value: object) -> int:
    """Convert an aware datetime to microseconds since 1970. An earlier time becomes 0, which every store can hold."""
    if not isinstance(value, datetime):
        raise TypeError(f"at={shown(value)}: expected an aware datetime; for seconds from now, use after=")
    try:
        microseconds = microseconds_of(value)
    except ValueError as error:
        raise ValueError(f"at={error}") from None
    latest = to_microseconds(time.time() + LONGEST)
    if microseconds > latest:
        raise ValueError(f"at={shown(value)}: expected a time up to a hundred years from now, {instant_of(latest):%Y-%m-%d}")
    return max(microseconds, 0)


def _headers(given: dict[str, str]) -> dict[str, str]:
    """Check headers and return a copy with names and values as plain str. The caller may change its own dict later."""
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers={{{shown(name)}: {shown(value)}}}: header names and values must be str")
        if name.startswith(OWN_HEADERS):
            raise ValueError(f"headers={{{name!r}: ...}}: names that begin with {OWN_HEADERS!r} are reserved for taskflow")
        _check_text("headers", name + value)
    return {bare_text(name): bare_text(value) for name, value in given.items()}


def _check_follow_up(value: object) -> None:
    if not isinstance(value, BoundCall):
        raise TypeError(f"on_failure={shown(value)}: expected a call, as made by on_failure=restore.bind(...)")
    if value.raises_on_conflict:
        raise ValueError('on_failure=: a worker sends the call, so its on_conflict must be "keep" or "replace", not "raise"')
    _packed(value.envelope)


def _packed(follow_up: Envelope) -> bytes:
    """Return the packed call that is to be sent on failure."""
    from taskflow.model.follow_up import pack_follow_up

    try:
        return pack_follow_up(follow_up)
    except ValueError as error:
        raise ValueError(f"on_failure=: {error}") from None


def _tags(given: object) -> tuple[str, ...]:
    if not isinstance(given, tuple | list) or not all(isinstance(tag, str) for tag in given):
        example = f", as in tags=({shown(given)},)" if isinstance(given, str) else ""
        raise TypeError(f"tags={shown(given)}: expected a tuple of texts{example}")
    return check_tags(map(bare_text, given))


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option}= has a lone surrogate, which is not valid text: {text!r}") from None


def _conflict(value: object) -> tuple[OnConflict, bool]:
    if not isinstance(value, str) or value not in _CONFLICTS:
        raise ValueError(f'on_conflict={shown(value)}: expected "keep", "replace" or "raise"')
    return _CONFLICTS[value]
