"""The options of jobs and calls, and their checks. Precedence, highest first: `.options()`, the decorator, its preset, the defaults."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Required, TypedDict, cast, get_args, runtime_checkable

import msgspec

from taskflow.app.connections import Connection
from taskflow.model.batch import Batch
from taskflow.model.clock import instant_of, microseconds_of, to_microseconds
from taskflow.model.envelope import OWN_HEADERS, Envelope, OnConflict, check_envelope, pack_follow_up
from taskflow.model.ids import check_key, key_digest
from taskflow.model.job_schema import DEFAULT_QUEUE, bare_text, check_headers, check_tags
from taskflow.model.printable import nearest, shown
from taskflow.model.rules import MAX_DURATION, Backoff, RetryFunction, seconds_of

if TYPE_CHECKING:
    from taskflow.app.declared_key import DeclaredKey
    from taskflow.app.declared_limits import Concurrency, Limit, Rate
    from taskflow.model.schedule_plan import CatchUp, Overlap
    from taskflow.model.timetable import Timetable


Around = Callable[[Any], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
"""A function that takes a run's JobContext and returns a context manager, inside which the job's function is called."""

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
    throttle: float | timedelta | None
    debounce: float | timedelta | None
    at_most: float | timedelta | None
    on_failure: BoundCall | None
    tags: tuple[str, ...] | list[str] | None


class DefaultOptions(SharedOptions, total=False):
    """The options that ``configure(defaults=...)`` takes; see `job`."""

    retry: Backoff | RetryFunction | None
    retry_on: Sequence[type[BaseException]] | None
    discard_on: Sequence[type[BaseException]] | None
    stop_grace: float | timedelta | None
    around: Sequence[Around] | None
    timeout_raises: bool | None
    keep_arguments: bool | None


class PresetOptions(DefaultOptions, KeyOptions, total=False):
    """The options that `preset` takes; see `job`."""

    runs_in: RunsIn | None
    limits: Sequence[Concurrency | Rate | Limit] | None
    fair: str | None
    schedule: Timetable | Sequence[Timetable | None] | None
    overlap: Overlap | None
    catch_up: CatchUp | None
    max_delay: float | timedelta | None


class JobOptions(PresetOptions, total=False):
    """The decorator's options; see `job`."""

    name: str | None
    aliases: Sequence[str] | None


class BatchJobOptions(JobOptions, total=False):
    """The decorator's options for a job whose function takes and returns lists."""

    batch: Required[Batch]


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
                    an earlier `.options()` set. The key is stored as text too, and shown to operators
    `key_scope`     "queue" (default), or "name": at most one live job with the same name can have the key, whatever its queue
    `on_conflict`   what to do if a live job has the key: "keep" that job (default), "replace" it, or "raise" KeyConflict. A running job
                    that was asked to stop does not block the key: the new job waits until it has ended
    `throttle`      seconds or a timedelta after this call during which calls with the same key add no job, even if the first job has ended.
                    They return the handle of the first job; 0 removes a throttle that the decorator set
    `debounce`      seconds or a timedelta that must pass without another call with the key before the job starts, with the arguments of the
                    last call. All calls return the handle of the same job; 0 removes a debounce that the decorator set
    `at_most`       with `debounce`: seconds or a timedelta after the first call at which the job becomes due, however many calls follow
    `keep_result`   seconds or a timedelta for which a successful job is kept (default 3600 s; 0 keeps none)
    `tags`          up to 10 texts by which the job can be found; the decorator's tags are added to them
    `headers`       a dict of str to str that is sent with the job, up to 4 KiB in all
    `on_failure`    a call made by `bind`, which is sent in the same step that ends the job as FAILED; see `JobContext.caused_by`. At most
                    32 KiB, including its arguments and options
    `connection`    a database connection or session with an open transaction: the job exists if and only if this transaction commits
    """

    after: float | timedelta | None
    at: datetime | None
    retry: Backoff | None
    headers: dict[str, str] | None
    connection: Connection | None


DECORATOR_ONLY: Final = tuple(name for name in BatchJobOptions.__annotations__ if name not in EnqueueOptions.__annotations__)


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
    throttle: float | None = None
    debounce: float | None = None
    at_most: float | None = None
    keep_result: float = 3600.0
    headers: dict[str, str] = {}
    on_failure: Any = None
    tags: tuple[str, ...] = ()
    declared_tags: tuple[str, ...] = ()
    connection: Any = None

    def envelope_fields(self, job: str) -> dict[str, Any]:
        """Return the envelope fields of the job's calls, except those with default values. Raises ValueError for options that conflict."""
        fields = {field: getattr(self, field) for field in Options.__struct_fields__ if field not in NOT_SENT}
        if self.key and isinstance(self.key, str):
            fields |= self.key_fields(job, self.key)
        if self.throttle or self.debounce or self.at_most is not None:
            fields |= self._window_fields(job)
        if self.on_failure is not None:
            fields["on_failure"] = packed_follow_up(self.on_failure._renewed())
        return {field: value for field, value in fields.items() if value != getattr(_PLAIN, field)}

    def _window_fields(self, job: str) -> dict[str, Any]:
        """Return the envelope fields of `throttle` and `debounce`. Raises ValueError if there is no key, or if other options conflict."""
        name = "throttle" if self.throttle else "debounce"
        if not self.throttle and not self.debounce:
            raise ValueError(f"{job}: at_most= needs debounce=, which it limits")
        if not self.key:
            raise ValueError(f"{job}: {name}= needs key=, because it applies to calls with the same key")
        if self.on_conflict is OnConflict.REPLACE or (self.debounce and self.raises_on_conflict):
            raise ValueError(f"{job}: {name}= and on_conflict= cannot be combined: {name}= decides what happens to further calls")
        if not self.debounce:
            return {"throttle": self.throttle}
        excluded = {"throttle": self.throttle, "after": self.after, "at": self.at is not None, "connection": self.connection is not None}
        for other, is_given in excluded.items():
            if is_given:
                raise ValueError(f"{job}: debounce= and {other}= cannot be combined")
        if self.at_most is not None and self.at_most < self.debounce:
            raise ValueError(f"{job}: at_most={self.at_most:g} must not be less than debounce={self.debounce:g}")
        return {"after": self.debounce, "on_conflict": OnConflict.DEBOUNCE, "at_most": self.at_most, "throttle": None}

    def key_fields(self, job: str, key: str, text: str | None = None) -> dict[str, Any]:
        """Return the envelope fields of a call's key. `text` is what operators see, or None to show them the key. Raises ValueError for an
        invalid key."""
        return {"key": key_digest("" if self.key_scope == "name" else self.queue, job, key), "key_text": key if text is None else text}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules by which workers retry, stop and settle the runs of a job. A job is retried after errors in `retry_on`, except those in
    `discard_on`. In a child process, a run has `stop_grace` seconds between being asked to stop and being killed."""

    retry: Backoff | RetryFunction = Backoff()
    retry_on: Errors = (Exception,)
    discard_on: Errors = ()
    stop_grace: float = 0.0
    around: tuple[Around, ...] = ()
    timeout_raises: bool = False
    keep_arguments: bool = False
    batch: Batch | None = None


NOT_SENT: Final = ("key", "key_scope", "debounce", "declared_tags", "raises_on_conflict", "on_failure", "connection")
"""The fields of `Options` that are not copied to the envelope as they are."""
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


def packed_follow_up(follow_up: Envelope) -> bytes:
    """Pack the call to send on failure. Raises ValueError if it is too large."""
    try:
        return pack_follow_up(follow_up)
    except ValueError as error:
        raise ValueError(f"on_failure=: {error}") from None


# --- checks -------------------------------------------------------------------------------------------------------

MAX_ATTEMPTS: Final = 1_000_000
_OF_CALLS: Final = (*SharedOptions.__annotations__, *KeyOptions.__annotations__)
_OF_POLICY: Final = Policy.__struct_fields__
_DURATIONS = ("after", "expires", "timeout", "keep_result", "throttle", "debounce", "at_most")
UNLIMITED_BY_NONE: Final = ("expires", "timeout")
_OPTION_TYPES: dict[str, type] = {"priority": int, "max_attempts": int, "queue": str, "key": str, "headers": dict, "retry": Backoff}


def declared_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert a declaration's options to fields of `Options` and `Policy`. Raises TypeError or ValueError, naming the option."""
    options = plain_options(cast(EnqueueOptions, {name: given[name] for name in _OF_CALLS if name in given}))
    if "tags" in options:
        options["declared_tags"] = options["tags"]
    return options, {name: _policy_field(name, given[name]) for name in _OF_POLICY if given.get(name) is not None}


def default_options(given: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the value of ``configure(defaults=...)``, and convert it like `declared_options`. Raises the same errors."""
    if not isinstance(given, Mapping):
        raise TypeError(f"expected a dict of options, got {shown(given)}")
    known = DefaultOptions.__annotations__
    for name in given:
        if name not in known:
            others = {*JobOptions.__annotations__, *EnqueueOptions.__annotations__} - {*known}
            raise TypeError(unknown_option(str(name), known, others, "to each job that needs it: it cannot be a default"))
    return declared_options(given)


def merged_options(before: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before`, overridden by `fields`. Raises ValueError if `fields` removes a key that is not set, or adds too many tags."""
    after = {**before, **fields}
    if fields.get("key") == "":
        if not before.get("key"):
            raise ValueError('key="" removes a declared key, but the job declares none: leave out key=')
        after["key"] = None
    if "tags" in fields:
        after["tags"] = check_tags((*before.get("declared_tags", ()), *fields["tags"]))
    if "after" in fields:
        after["at"] = fields.get("at")  # after= and at= cannot be combined: the one given last counts
    return after


def plain_options(given: EnqueueOptions) -> dict[str, Any]:
    """Check options, and convert them to fields of `Options`. Raises TypeError or ValueError for an invalid option, naming it."""
    for name in given:
        if name not in EnqueueOptions.__annotations__:
            raise TypeError(
                unknown_option(name, EnqueueOptions.__annotations__, DECORATOR_ONLY, f"to the decorator, as in @job({name}=...)")
            )
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None or name in UNLIMITED_BY_NONE}
    for name, value in fields.items():
        if name in _DURATIONS:
            fields[name] = None if value is None else seconds_of(name, value)
        elif name in _OPTION_TYPES and (not isinstance(value, _OPTION_TYPES[name]) or isinstance(value, bool)):
            kind = _OPTION_TYPES[name].__name__
            hint = "; pass a function to the decorator, as in @job(retry=...)" if name == "retry" and callable(value) else ""
            raise TypeError(f"{name}={shown(value)}: expected {'an' if kind[0] in 'aeiou' else 'a'} {kind}{hint}")
        elif isinstance(value, int):
            fields[name] = int(value)  # converts members of an IntEnum too
        elif isinstance(value, str):
            fields[name] = bare_text(value)
    if "at" in fields and "after" in fields:
        raise ValueError("after= and at= cannot be combined: give only one")
    if "at" in fields:
        fields["at"] = _instant(fields["at"])
    if "on_conflict" in fields:
        if (conflict := fields["on_conflict"]) not in get_args(Conflict):
            raise ValueError(f'on_conflict={shown(conflict)}: expected "keep", "replace" or "raise"')
        fields["on_conflict"] = OnConflict.REPLACE if conflict == "replace" else OnConflict.KEEP
        fields["raises_on_conflict"] = conflict == "raise"
    if fields.get("key_scope", "queue") not in get_args(KeyScope):
        raise ValueError(f'key_scope={shown(fields["key_scope"])}: expected "queue" or "name"')
    if "connection" in fields:
        from taskflow.app.connections.adapters import adapter_class

        adapter_class(fields["connection"])  # raises TypeError if it is not a connection
    if "on_failure" in fields:
        _check_follow_up(fields["on_failure"])
    if "headers" in fields:
        fields["headers"] = check_headers(fields["headers"])  # a copy, because the caller may change its dict later
        for name in fields["headers"]:
            if name.startswith(OWN_HEADERS):
                raise ValueError(f"headers={{{name!r}: ...}}: names that begin with {OWN_HEADERS!r} are reserved for taskflow")
    if "tags" in fields:
        tags = fields["tags"]
        if not isinstance(tags, tuple | list) or not all(isinstance(tag, str) for tag in tags):
            example = f", as in tags=({shown(tags)},)" if isinstance(tags, str) else ""
            raise TypeError(f"tags={shown(tags)}: expected a tuple of str{example}")
        fields["tags"] = check_tags(map(bare_text, tags))
    if fields.get("key"):
        check_key(fields["key"])
    if fields.get("max_attempts", 1) > MAX_ATTEMPTS:
        raise ValueError(f"max_attempts={shown(fields['max_attempts'])}: expected 1 to {MAX_ATTEMPTS:,}")
    check_envelope(Envelope(id=b"", job="-", payload=b"", **{name: value for name, value in fields.items() if name not in NOT_SENT}))
    return fields


def _policy_field(name: str, value: Any) -> Any:
    if name == "stop_grace":
        return seconds_of(name, value)
    if name == "around":
        return _context_managers(value)
    if name == "batch":
        if not isinstance(value, Batch):
            raise TypeError(f"batch={shown(value)}: expected a Batch, as in batch=Batch(size=100, within=2.0)")
        return value
    if name in ("timeout_raises", "keep_arguments"):
        if not isinstance(value, bool):
            raise TypeError(f"{name}={shown(value)}: expected True or False")
        return value
    if name == "retry":
        return value if isinstance(value, Backoff) else _retry_function(value)
    errors = tuple(value) if isinstance(value, Sequence) else (value,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(f"{name}={shown(value)}: expected a tuple of exception classes")
    return errors


def _context_managers(value: Any) -> tuple[Around, ...]:
    expected = "expected a list of functions that take the run's context and return a context manager"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"around={shown(value)}: {expected}")
    for each in value:
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise TypeError(f"around=[... {shown(each)} ...]: write @contextmanager or @asynccontextmanager above it")
        if not callable(each) or inspect.iscoroutinefunction(each) or not _takes(each, None):
            raise TypeError(f"around=[... {shown(each)} ...]: {expected}")
    return tuple(value)


def _takes(function: Any, *arguments: object) -> bool:
    with suppress(ValueError):  # a built-in function without a signature
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            return False
    return True


def _retry_function(value: Any) -> RetryFunction:
    """Return the value if it's a plain function that takes an attempt and an exception. Otherwise raise TypeError."""
    is_function = callable(value) and not isinstance(value, type)
    if is_function and not inspect.iscoroutinefunction(value) and _takes(value, 1, Exception()):
        return cast(RetryFunction, value)
    raise TypeError(f"retry={shown(value)}: expected a Backoff, or a plain function (attempt, exception) that returns seconds or None")


def _instant(value: object) -> int:
    """Convert an aware datetime to microseconds since 1970; earlier times give 0. Raises TypeError or ValueError for any other value."""
    if not isinstance(value, datetime):
        raise TypeError(f"at={shown(value)}: expected an aware datetime; for seconds from now, use after=")
    try:
        microseconds = microseconds_of(value)
    except ValueError as error:
        raise ValueError(f"at={error}") from None
    latest = to_microseconds(time.time() + MAX_DURATION)
    if microseconds > latest:
        raise ValueError(f"at={shown(value)}: expected a time within a hundred years from now, before {instant_of(latest):%Y-%m-%d}")
    return max(microseconds, 0)


def _check_follow_up(value: object) -> None:
    if not isinstance(value, BoundCall):
        raise TypeError(f"on_failure={shown(value)}: expected a call, as made by on_failure=restore.bind(...)")
    if value.raises_on_conflict:
        raise ValueError('on_failure=: a worker sends the call, so its on_conflict must be "keep" or "replace", not "raise"')
    packed_follow_up(value.envelope)


_NAMES: Final = {
    "it is max_attempts= here, which counts the first run too": "retries max_retries max_tries tries",
    "it is retry=Backoff(base=..., factor=..., max=...) here": "default_retry_delay retry_backoff retry_delay min_backoff max_backoff",
    "it is retry_on= here, a tuple of exception classes": "autoretry_for retry_when",
    "it is after= here, in seconds, set for a call: .options(after=60)": "countdown delay defer_by _defer_by",
    "it is at= here, an aware datetime, set for a call: .options(at=...)": "eta defer_until _defer_until schedule_at",
    'it is key= here, as in @job(key="{order_id}") or .options(key=...); at most one live job can have a given key': (
        "unique queueing_lock job_id _job_id task_id"
    ),
    "it is timeout= here, in seconds": "time_limit soft_time_limit job_timeout",
    "it is keep_result= here, in seconds": "result_ttl result_expires",
    "it is expires= here, in seconds": "ttl max_age",
    "it is queue= here": "queue_name _queue_name",
    "pass the job's arguments to .delay(...)": "args kwargs",
    "annotate the function's first parameter with JobContext to get the context of the run": "bind pass_context",
    "leave it out: a job is always acknowledged after its run, and runs again if its worker dies": "acks_late",
    "it is schedule=Cron(...) or Every(...) here, passed to the decorator": "crontab cron",
    "it is limits=[Rate(100, per=60)] here, passed to the decorator": "rate_limit",
    "it is limits=[Concurrency(3)] here, passed to the decorator": "concurrency max_concurrency concurrency_limit",
}
"""taskflow's equivalents of the most common options of Celery, RQ, arq, dramatiq, huey and Procrastinate."""


def unknown_option(name: str, known: Collection[str], elsewhere: Collection[str], where_else: str) -> str:
    """Return the error message for an option that is not in `known`. If the option is in `elsewhere`, the message points to
    `where_else`."""
    unknown = f"unknown option {name}="
    if name in elsewhere:
        return f"{unknown}: pass it {where_else}"
    for answer, names in _NAMES.items():
        if name in names.split():
            return f"{unknown}: {answer}"
    near = nearest(name, known)
    return f"{unknown}; did you mean {near}=?" if near else f"{unknown}; options are {', '.join(known)}"
