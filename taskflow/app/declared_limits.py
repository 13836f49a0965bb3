"""Limits that a job's decorator declares: how many of its jobs may run at once, or start in a period, in the whole fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Lease
from taskflow.model.errors import DecodeError
from taskflow.model.ids import check_key
from taskflow.model.limits import MAX_GATES, MAX_MOST, PAYMENT_TTL, RATE, Gate, gate_id
from taskflow.model.printable import shown
from taskflow.model.rules import seconds_of
from taskflow.model.verdict import HandedBack

if TYPE_CHECKING:
    from taskflow.app.declared_key import DeclaredKey


class Concurrency:
    """Lets at most `n` jobs be ready or running at once, in the whole fleet. Further jobs wait, without holding up any others.

    `n`    from 1 to a billion
    `key`  a parameter of the job, such as "tenant", or an attribute of one, such as "order.customer": each value then has a separate
           limit. Values are text, numbers, dates, UUIDs, paths or enums (default None: one limit for all calls)

    Raises TypeError or ValueError for other arguments.
    """

    def __init__(self, n: int, *, key: str | None = None) -> None:
        self.n, self.key = _checked_number(n), _checked_key(key)

    def __repr__(self) -> str:
        return f"Concurrency({self.n}{'' if self.key is None else f', key={self.key!r}'})"


class Rate:
    """Lets at most `n` jobs start in `per` seconds, in the whole fleet. Further jobs become due later, at even intervals.

    `n`      from 1 to a billion
    `per`    seconds or a timedelta, up to a hundred years
    `burst`  how many jobs may start at once after a quiet period (default 1). In any `per` seconds, at most ``n + burst + n / per`` jobs
             start; the last term allows for jobs that start up to a second late
    `key`    as for `Concurrency`

    Raises TypeError or ValueError for other arguments.
    """

    def __init__(self, n: int, *, per: float | timedelta, burst: int = 1, key: str | None = None) -> None:
        self.n, self.key, self.burst = _checked_number(n), _checked_key(key), _checked_number(burst, "burst")
        self.per = seconds_of("per", per)
        if to_microseconds(self.per) < 1:
            raise ValueError(f"per={shown(per)}: expected at least a microsecond")

    def __repr__(self) -> str:
        burst, key = "" if self.burst == 1 else f", burst={self.burst}", "" if self.key is None else f", key={self.key!r}"
        return f"Rate({self.n}, per={self.per:g}{burst}{key})"


class Limit:
    """A limit with a name, which all jobs that declare it share. A limit without a name belongs to one job.

    `name`  1 to 200 bytes
    `rule`  a `Concurrency` or a `Rate`

    Raises TypeError or ValueError for other arguments.
    """

    def __init__(self, name: str, rule: Concurrency | Rate) -> None:
        if not isinstance(name, str):
            raise TypeError(f"Limit(name={shown(name)}): expected a str")
        if not isinstance(rule, Concurrency | Rate):
            raise TypeError(f"Limit({shown(name)}, {shown(rule)}): expected a rule, as in Limit({shown(name)}, Concurrency(3))")
        self.name, self.rule = check_key(name, option="name"), rule

    def __repr__(self) -> str:
        return f"Limit({self.name!r}, {self.rule!r})"


class DeclaredLimits:
    """The limits of one job, from which the gates of each call are made. A gate is a limit as the store counts it."""

    def __init__(self, limits: Sequence[tuple[str, Concurrency | Rate]], job: Any) -> None:
        self._limits = [(name, rule, None if rule.key is None else key_of(rule.key, job)) for name, rule in limits]
        self.rules = tuple(limits)
        self.names = {(name, isinstance(rule, Rate)) for name, rule in limits}
        self._constant = None if any(key for _, _, key in self._limits) else self._gates((), {})

    def gates_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Gate, ...]:
        """Return the gates of a call. Raises TypeError or ValueError if the arguments fit the function but make no valid limit keys."""
        return self._constant if self._constant is not None else self._gates(args, kwargs)

    def hides(self, name: str) -> bool:
        """Return True if the key of the limit with this name is secret."""
        return any(declared is not None and declared.is_secret for limit, _, declared in self._limits if limit == name)

    def gates_without(self, takes: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Gate, ...]:
        """Return the gates of a call that has no value yet for one parameter, whose name is `takes`. Raises ValueError if a limit's key
        uses that parameter."""
        for _, rule, declared in self._limits:
            if declared is not None and takes in declared.parameters:
                raise ValueError(f"{rule!r} counts by {takes!r}, which the result fills: fill another parameter, or count by another one")
        return self.gates_of(args, kwargs)

    def _gates(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Gate, ...]:
        keys = [("", "") if declared is None else declared.key_and_text(args, kwargs) for _, _, declared in self._limits]
        return tuple([gate_of(name, rule, *key_and_text) for (name, rule), key_and_text in zip(self.rules, keys, strict=True)])


def gate_of(name: str, rule: Concurrency | Rate, key: str, text: str, n: int | None = None) -> Gate:
    """Return the gate of a limit for one value of its key, which is displayed as `text`. `n` is the rule's number unless it's given."""
    most = rule.n if n is None else n
    if isinstance(rule, Rate):
        return Gate(gate_id(name, key, kind=RATE), name, text, most, to_microseconds(rule.per), rule.burst)
    return Gate(gate_id(name, key), name, text, most)


def unadmitted(lease: Lease, job: Any) -> HandedBack | None:
    """Return the verdict that hands back a job which must pass gates before its run, or None if the job may start.

    A job must pass gates if its sender didn't know one of its limits, or if it has to pay for a rate again (see `PAYMENT_TTL`). Raises
    DecodeError if the arguments make no valid limit keys.
    """
    declared: DeclaredLimits | None = job.limits
    lacks = declared is not None and not declared.names <= {(gate.limit, gate.per > 0) for gate in lease.envelope.limits}
    if not lacks and (lease.waited <= PAYMENT_TTL or not any(gate.per for gate in lease.envelope.limits)):
        return None
    if declared is None or not lacks:
        return HandedBack(counts=False, limits=())
    try:
        arguments = job.codec.decode_arguments(lease.envelope.payload)
    except Exception:  # the run decodes the arguments too, and its error says what is wrong
        return None
    try:
        return HandedBack(counts=False, limits=declared.gates_of(*arguments))
    except Exception as error:
        raise DecodeError(f"limits=: {error}") from None


def declared_limits(given: object, job: Any) -> DeclaredLimits | None:
    """Check and convert the value of `limits=`; an empty list gives None. Raises TypeError or ValueError if it does not fit the job."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, Concurrency | Rate | Limit) for each in given):
        raise TypeError(f"limits={shown(given)}: expected a list of limits, as in limits=[Concurrency(3)]")
    named = [(each.name, each.rule) if isinstance(each, Limit) else (job.name, each) for each in given]
    if len(named) > MAX_GATES:
        raise ValueError(f"limits= has {len(named)} limits: a job can have at most {MAX_GATES}")
    for name, rule in named:
        if [other for other, each in named if type(each) is type(rule)].count(name) > 1:
            raise ValueError(f"limits= has two limits named {name!r}: rename one of them, as in Limit('other', {rule!r})")
    try:
        return DeclaredLimits(named, job) if named else None
    except ValueError as error:
        raise ValueError(f"limits=: {error}") from None


def key_of(parameter: object, job: Any, option: str = "key") -> DeclaredKey:
    """Return the template that makes each call's key from this parameter. Raises TypeError or ValueError if it does not fit the job."""
    from taskflow.app.declared_key import DeclaredKey

    return DeclaredKey(f"{{{_checked_key(parameter, option)}}}", job, f"{option}={parameter!r}")


def _checked_number(n: object, name: str = "n") -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{name}={shown(n)}: expected an int")
    if not 1 <= n <= MAX_MOST:
        raise ValueError(f"{name}={shown(n)}: expected 1 to {MAX_MOST:,}")
    return n


def _checked_key(key: object, option: str = "key") -> str | None:
    if key is not None and (not isinstance(key, str) or not key or not set("{}:!").isdisjoint(key)):
        raise ValueError(f"{option}={shown(key)}: {_KEY}")
    return key


_KEY: Final = 'expected the name of a parameter without braces, such as "tenant", "order.customer" or "tenant?none"'
