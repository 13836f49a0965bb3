"""Compares the calls that a test expects with those that were sent."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Any, Final, NamedTuple

from taskflow.app.job import Declared
from taskflow.app.job_type import JobType, Registry
from taskflow.app.options import EnqueueOptions, plain_options
from taskflow.model.clock import instant_of, to_seconds
from taskflow.model.codec import decode_value
from taskflow.model.envelope import Envelope
from taskflow.model.errors import CodecError, EncodeError
from taskflow.model.printable import shown
from taskflow.model.transitions import due_at

SHOWN: Final = 3  # the number of similar calls that a failed assertion shows
COMPARED: Final = (
    *("queue", "priority", "after", "at", "expires", "max_attempts"),
    *("retry", "timeout", "key", "keep_result", "headers", "tags"),
)
"""The options that an assertion can name. Other options aren't stored with a job, or not in the form in which they were given."""

_MAY_BE_NONE: Final = ("expires", "timeout", "key")
_OWN: Final = ("options", "count")
_SAME_TIME: Final = 1_000  # microseconds


class SentJob(NamedTuple):
    """A job that was sent. `created_at` is when the store added it, in microseconds since 1970."""

    envelope: Envelope
    created_at: int


class ExpectedCall:
    """A call, its options, and how often it is expected. Raises EncodeError, TypeError or ValueError for a call that could not be sent.

    A keyword that the function accepts is an argument. Any other keyword is an option, `options` or `count`. If the function takes
    ``**kwargs``, or the job is given by a name that is unknown here, all keywords except `options` and `count` are arguments.
    """

    def __init__(self, registry: Registry, job: Declared[..., Any] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        check_job(job)
        known = registry.get(job) if isinstance(job, str) else job
        self._job: JobType[Any] | None = known
        self._name = job if isinstance(job, str) else job.name
        self._names = {self._name} if known is None else {self._name, known.name, *known.aliases}
        arguments = dict(kwargs)
        given = dict(arguments.pop("options", None) or {}) if self._is_ours("options") else {}
        self.count: int | None = arguments.pop("count", None) if self._is_ours("count") else None
        given |= {name: arguments.pop(name) for name in EnqueueOptions.__annotations__ if name in arguments and self._is_ours(name)}
        self._options = _checked(given)
        self._shown = _shown(args, arguments)
        self._payload: bytes | None = None
        self._arguments = self._bound(args, arguments)

    def _is_ours(self, name: str) -> bool:
        """Return True if a keyword is meant for the assertion, and not for the function."""
        parameters = {} if self._job is None else self._job.__signature__.parameters
        if name in parameters:
            return False
        takes_all = self._job is None or any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
        return name in _OWN or not takes_all

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        if self._job is None:
            if args:
                raise TypeError(f"the job {self._name!r} is not known here: pass its arguments by name")
            return kwargs
        try:
            self._payload = self._job.codec.encode_arguments(args, kwargs)
        except EncodeError:
            if not _has_any([args, kwargs]):
                raise
        return self._job.named_arguments(args, kwargs)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"{self._name}({self._shown})" + (f" with {options}" if options else "")

    def is_of_job(self, sent: SentJob) -> bool:
        return sent.envelope.job in self._names

    def differences(self, sent: SentJob) -> list[str]:
        """Return a line for each argument and option in which a sent job differs from the expected call."""
        found = [] if sent.envelope.payload == self._payload else list(self._of_arguments(sent.envelope))
        due = due_at(sent.envelope, sent.created_at)
        computed: dict[str, Any] = {"after": to_seconds(due - sent.created_at), "at": due, "key": sent.envelope.key_text}
        for name, expected in self._options.items():
            actual = computed[name] if name in computed else getattr(sent.envelope, name)
            if not _agrees(name, expected, actual):
                values = [instant_of(value) if name == "at" and isinstance(value, int) else value for value in (actual, expected)]
                found.append(f"{name}=: {values[0]!r}, expected {values[1]!r}")
        return found

    def _of_arguments(self, envelope: Envelope) -> Iterator[str]:
        try:
            actual = decoded(self._job, envelope)
        except CodecError as error:
            yield f"the arguments cannot be decoded: {error}"
            return
        for name in dict.fromkeys((*self._arguments, *actual)):
            found, expected = (repr(each[name]) if name in each else "none" for each in (actual, self._arguments))
            if name not in actual or name not in self._arguments or not _is_same(self._arguments[name], actual[name]):
                yield f"{name}: {found}, expected {expected}"


class _Result:
    """Stands for an argument that is the result of a job that has not run yet: it's equal to any value."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<the result of another job>"


_RESULT: Final = _Result()


def decoded(job: JobType[Any] | None, envelope: Envelope) -> Mapping[str, Any]:
    """Return a call's arguments by name. If the job is known, add defaults, and `_RESULT` for the argument that a result will fill."""
    if job is None:
        plain: dict[str, Any] = decode_value(envelope.payload)
        return plain
    if envelope.member is None or envelope.member.takes is None:
        return job.decoded_arguments(envelope.payload)
    beside = job.arguments_beside(envelope.member.takes, envelope.payload)
    return {name: beside.get(name, _RESULT) for name in job.__signature__.parameters}


def check_job(job: object) -> None:
    """Raise TypeError unless `job` is a job or a job's name. Likely mistakes are an undecorated function and a call made by `bind`."""
    if not isinstance(job, Declared | str):
        raise TypeError(f"got {shown(job)}: expected a job or its name, followed by its arguments, as in assert_enqueued(greet, 'ada')")


def check_enqueued(expected: ExpectedCall, sent: Sequence[SentJob], registry: Registry) -> None:
    """Raise AssertionError unless the expected call was sent the expected number of times."""
    compared = [(expected.differences(each), each) for each in sent if expected.is_of_job(each)]
    found = sum(not differences for differences, _ in compared)
    if found if expected.count is None else found == expected.count:
        return
    others = sorted((each for each in compared if each[0]), key=lambda each: len(each[0]))
    missing = f"{expected} was not enqueued" if not found else f"{expected} was enqueued {_times(found)}"
    if expected.count is not None:
        missing += f", expected {_times(expected.count)}"
    if others and found < (expected.count or 1):
        nearest = "".join(f"\n  {call_of(each, registry)}" + "".join(f"\n    {line}" for line in lines) for lines, each in others[:SHOWN])
        raise AssertionError(f"{missing}; the closest of {len(others)} other calls to this job:{nearest}")
    raise AssertionError(missing if found else f"{missing}; {calls_of(sent, registry)}")


def call_of(sent: SentJob, registry: Registry) -> str:
    envelope = sent.envelope
    job = registry.get(envelope.job)
    try:
        args, kwargs = ((), decoded(job, envelope)) if job is None or envelope.member else job.codec.decode_arguments(envelope.payload)
    except CodecError as error:
        return f"{envelope.job}(undecodable: {error})"
    return f"{envelope.job}({_shown(args, kwargs)})"


def calls_of(sent: Iterable[SentJob], registry: Registry) -> str:
    calls = [call_of(each, registry) for each in sent]
    return "these were: " + ", ".join(calls) if calls else "nothing was"


def _shown(args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    return ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options as they are stored. Raises TypeError or ValueError for an invalid one."""
    checked = dict[str, Any]()
    for name, value in given.items():
        if name in EnqueueOptions.__annotations__ and name not in COMPARED:
            raise TypeError(f"{name}= cannot be asserted: expected one of {', '.join(COMPARED)}")
        if _has_any(value) or (value is None and name in _MAY_BE_NONE):
            checked[name] = value
        elif value is not None:
            checked[name] = plain_options({name: value})[name]  # type: ignore[misc]
    return checked


def _agrees(name: str, expected: Any, found: Any) -> bool:
    """Return True if a stored option is the expected one. A job may have more tags and headers than expected."""
    if _has_any(expected) or expected is None:
        return _is_same(expected, found)
    if name in ("at", "after"):
        return bool(abs(found - expected) * (1 if name == "at" else 1_000_000) <= _SAME_TIME)
    if name == "tags":
        return set(expected) <= set(found)
    return bool(expected.items() <= found.items()) if name == "headers" else _is_same(expected, found)


def _is_same(expected: Any, found: Any) -> bool:
    try:
        return bool(expected == found)
    except Exception:  # the class's comparison may fail, as with arrays
        return False


def _has_any(value: Any) -> bool:
    """Return True if `unittest.mock.ANY` is anywhere in the value."""
    mock = sys.modules.get("unittest.mock")
    return mock is not None and _contains(value, mock.ANY, set())


def _contains(value: Any, wanted: object, seen: set[int]) -> bool:
    if value is wanted:
        return True
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | None):
        return False
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [*value]
    else:
        slots = [kind.__dict__.get("__slots__", ()) for kind in type(value).__mro__]
        names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
        parts = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in names)]
    return any(_contains(part, wanted, seen) for part in parts)
