"""Defines `limits`, which shows limits, and sets their numbers at run time."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, cast

from taskflow.app.app import default_app
from taskflow.app.bulk_actions import check_operator, recorded
from taskflow.app.declared_limits import Concurrency, Limit, Rate, gate_of
from taskflow.app.job_type import JobType
from taskflow.broker.admin import LimitInfo
from taskflow.model.ids import check_key
from taskflow.model.limits import MAX_MOST
from taskflow.model.masking import HIDDEN
from taskflow.model.printable import nearest, shown


class WrongLimit(ValueError):
    """The arguments of `set` don't fit the limit. `said` is the message for a command line."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Limits:
    """Shows limits, and sets their numbers. All methods are async. Code without an event loop calls ``run_sync(limits.set(...))``."""

    async def set(self, limit: Limit | JobType[Any] | str, key: object, n: int | None, *, by: str | None = None, reason: str = "") -> None:
        """Set the number of a limit for one value of its key, in place of the declared number. Jobs that can pass now become ready.
        A rate opens if a `RateLimited` has closed it, and the jobs that wait for it get new times.

        `limit`  a `Limit`, a job that has one limit without a name, or the name of a limit that this process declares or `list` returns
        `key`    the value of its key; None if the limit has none
        `n`      from 0 (from 1 for a rate) to a billion; None restores the declared number, which this process must declare
        `by`, `reason`  for the audit log

        Raises TypeError or ValueError for other arguments.
        """
        check_operator(by, reason)
        is_foreign = n is not None and isinstance(limit, str) and not any(name == limit for name, _ in _declared())
        stored = await self.list(cast(str, limit)) if is_foreign else []
        name, rule = _rule_of(limit, stored)
        text = _text(key)
        if (text == "") != (rule.key is None):
            together = f"the limit {name!r} counts all calls together"
            if rule.key is None:
                raise WrongLimit(f"{together}: pass None as the key", f"{together}: leave out the key")
            needs = f"the limit {name!r} needs a value of {rule.key}"
            raise WrongLimit(f"{needs}, got None", f"{needs} before the number")
        least = int(isinstance(rule, Rate))
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not least <= n <= MAX_MOST):
            expected = f"expected {least} to {MAX_MOST:,}"
            raise WrongLimit(f"n={shown(n)}: {expected}, or None", f'N is {shown(n)}: {expected}, or "declared"')
        has_secret = any(job.limits is not None and job.limits.hides(name) for job in default_app().registry)
        is_hidden = has_secret or any(info.key == HIDDEN for info in stored)
        gate = gate_of(name, rule, text, HIDDEN if is_hidden else text, n)
        which = {"key": gate.key, "n": "declared" if n is None else str(n)}
        call = default_app().client().call_on_flow  # all jobs that wait for a rate get new times
        async with recorded(call, "limits.set", by=by, reason=reason, names=[name], which=which) as doing:
            await call(lambda broker: broker.admin.set_limit(gate, is_set=n is not None))
            doing.affected = 1

    async def list(self, limit: str | None = None) -> builtins.list[LimitInfo]:
        """Return the limits that hold up jobs or whose number was set, most waiting jobs first. With `limit`, return only that one.
        At most 10,000 keys are returned: if there are more, any of them. A limit that is named is found beside any number of others."""
        return await default_app().client().call(lambda broker: broker.admin.limits(limit))


limits: Final = Limits()


def _declared() -> builtins.list[tuple[str, Concurrency | Rate]]:
    return [each for job in default_app().registry if job.limits is not None for each in job.limits.rules]


def _rule_of(limit: object, stored: Sequence[LimitInfo]) -> tuple[str, Concurrency | Rate]:
    """Return a limit's name, and its rule: as `stored` shows it, if that is one kind of rule, and otherwise as this process declares it.
    Raises TypeError or ValueError if this process declares no such limit, or both a Concurrency and a Rate with this name."""
    if isinstance(limit, Limit):
        return limit.name, limit.rule
    if isinstance(limit, JobType):
        limit = limit.name
    if not isinstance(limit, str):
        raise TypeError(f"limits.set() got {shown(limit)}: expected a Limit, a job, or the name of a limit")
    if len({info.per is None for info in stored}) == 1:
        key, info = "key" if stored[0].key else None, stored[0]
        return limit, Concurrency(1, key=key) if info.per is None else Rate(1, per=info.per, burst=info.burst, key=key)
    declared = _declared()
    rules = [rule for name, rule in declared if name == limit]
    if not rules:
        near = nearest(limit, sorted({name for name, _ in declared}))
        hint = f"; did you mean {near!r}?" if near else ""
        missing = f"no limit called {limit!r} is declared in this process or in use in the store"
        raise WrongLimit(
            f"{missing}: import the module that declares it{hint}", f"{missing}: name the module that declares it with --module{hint}"
        )
    if len({type(rule) for rule in rules}) > 1:
        raise ValueError(f"{limit!r} is the name of both a Concurrency and a Rate: give one a different name, as in Limit('other', ...)")
    return limit, rules[0]


def _text(key: object) -> str:
    from taskflow.app.declared_key import PLAIN

    value = key.value if isinstance(key, Enum) else key
    if value is not None and not isinstance(value, PLAIN):
        raise TypeError(
            f"limits.set() got a key of type {type(value).__name__}: expected text, a number, a date, a UUID, a path or an enum"
        )
    return "" if value is None else check_key(format(value, ""))
