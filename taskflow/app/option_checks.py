"""Checks the options of jobs and calls, and converts them to fields of `Options` and `Policy`. Explains unknown options."""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, cast, get_args

from taskflow.app.options import (
    DECORATOR_ONLY,
    NOT_SENT,
    BoundCall,
    Conflict,
    DefaultOptions,
    EnqueueOptions,
    JobOptions,
    KeyOptions,
    KeyScope,
    Policy,
    SharedOptions,
    packed_follow_up,
)
from taskflow.model.clock import instant_of, microseconds_of, to_microseconds
from taskflow.model.envelope import OWN_HEADERS, Envelope, OnConflict, check_envelope
from taskflow.model.ids import check_key
from taskflow.model.job_schema import bare_text, check_tags
from taskflow.model.printable import nearest, shown
from taskflow.model.rules import LONGEST, Backoff, RetryFunction

MAX_ATTEMPTS: Final = 1_000_000
_OF_CALLS: Final = (*SharedOptions.__annotations__, *KeyOptions.__annotations__)
_OF_POLICY: Final = Policy.__struct_fields__
_DURATIONS = ("after", "expires", "timeout", "keep_result")
UNLIMITED_BY_NONE: Final = ("expires", "timeout")
_OPTION_TYPES: dict[str, type] = {"priority": int, "max_attempts": int, "queue": str, "key": str, "headers": dict, "retry": Backoff}


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
            hint = "; give a function to the decorator, as in @job(retry=...)" if name == "retry" and callable(value) else ""
            raise TypeError(f"{name}={shown(value)}: expected {'an' if kind[0] in 'aeiou' else 'a'} {kind}{hint}")
        elif isinstance(value, int):
            fields[name] = int(value)  # converts members of an IntEnum too
        elif isinstance(value, str):
            fields[name] = bare_text(value)
    if "at" in fields and "after" in fields:
        raise ValueError("after= and at= exclude each other: give one of them")
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
        from taskflow.app.connections.adapters import check_connection

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
    if fields.get("max_attempts", 1) > MAX_ATTEMPTS:
        raise ValueError(f"max_attempts={shown(fields['max_attempts'])}: expected 1 to {MAX_ATTEMPTS:,}")
    check_envelope(Envelope(id=b"", job="-", payload=b"", **{name: value for name, value in fields.items() if name not in NOT_SENT}))
    return fields


def _policy_field(name: str, value: Any) -> Any:
    if name == "stop_grace":
        return seconds_of(name, value)
    if name == "retry":
        return value if isinstance(value, Backoff) else _retry_function(value)
    errors = tuple(value) if isinstance(value, Sequence) else (value,)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(f"{name}={shown(value)}: expected a tuple of exception classes")
    return errors


def _retry_function(value: Any) -> RetryFunction:
    """Return the value if it is a plain function that takes an attempt and an exception. Raises TypeError if not."""
    is_function = callable(value) and not isinstance(value, type)
    if is_function and not inspect.iscoroutinefunction(value):
        with suppress(ValueError):  # a built-in function without a signature
            try:
                inspect.signature(value).bind(1, Exception())
            except TypeError:
                is_function = False
        if is_function:
            return cast(RetryFunction, value)
    raise TypeError(f"retry={shown(value)}: expected a Backoff, or a plain function (attempt, exception) that returns seconds or None")


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
    packed_follow_up(value.envelope)


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


_NAMES: Final = {
    "it is max_attempts= here, which counts the first run too": "retries max_retries max_tries tries attempts",
    "it is retry=Backoff(base=..., factor=..., max=...) here": (
        "default_retry_delay retry_delay retry_backoff retry_backoff_max retry_jitter backoff min_backoff max_backoff"
    ),
    "it is retry_on= here, a tuple of exception classes": "autoretry_for retry_for retry_when",
    "errors that fail the job at once are discard_on= here, a tuple of exception classes": "throws",
    "it is after= here, in seconds, given with a call: .options(after=60)": "countdown delay defer_by _defer_by schedule_in",
    "it is at= here, an aware datetime, given with a call: .options(at=...)": "eta defer_until _defer_until schedule_at scheduled run_at",
    'it is key= here, as in @job(key="{order_id}") or .options(key=...); at most one live job has a key': (
        "unique unique_key lock queueing_lock job_id _job_id task_id"
    ),
    "it is timeout= here, in seconds": "time_limit soft_time_limit job_timeout",
    "it is keep_result= here, in seconds": "result_ttl result_expires keep_result_forever store_results",
    "it is keep_result=0 here": "ignore_result",
    "leave it out: failed jobs are kept for 30 days": "failure_ttl",
    "it is expires= here, in seconds": "ttl max_age age_limit _expires",
    "it is queue= here": "queue_name _queue_name",
    "it is headers= here, str to str": "meta metadata labels",
    "arguments of the job are given to .delay(...)": "args kwargs",
    "annotate the function's first parameter with JobContext to get the context of the run": "bind pass_context",
    "leave it out: a job is always acknowledged after its run, and runs again if its worker dies": (
        "acks_late reject_on_worker_lost task_acks_late"
    ),
    "leave it out: annotations decide how values are sent": "serializer",
    "it is schedule=Cron(...) or Every(...) here, given to the decorator": "crontab cron run_every",
    "a job has no limit here: give it a queue, and run that queue with `taskflow worker --queues NAME --concurrency N`": (
        "rate_limit concurrency concurrency_limit"
    ),
    "it is name= here, given to @job": "actor_name task_name",
}
"""What to use here instead of options of Celery, RQ, arq, dramatiq, huey, SAQ, taskiq and Procrastinate, with their names."""


def unknown_option(name: str, known: Collection[str], elsewhere: Collection[str], where_else: str) -> str:
    """Return the error message for an option that is not in `known`. For an
    option in `elsewhere`, the message says to give it to `where_else` instead."""
    unknown = f"unknown option {name}="
    if name in elsewhere:
        return f"{unknown}: give it {where_else}"
    for answer, names in _NAMES.items():
        if name in names.split():
            return f"{unknown}: {answer}"
    near = nearest(name, known)
    return f"{unknown}; did you mean {near}=?" if near else f"{unknown}; options are {', '.join(known)}"
