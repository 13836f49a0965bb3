"""The base class of jobs, which holds what the decorator declares. `taskflow.app.job` adds sending."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from taskflow.app.execution_mode import RunsIn
from taskflow.app.functions import signature_for_callers, takes_context
from taskflow.app.options import Options
from taskflow.model.backoff import Backoff
from taskflow.model.codec import FunctionCodec, Limits
from taskflow.model.envelope import Envelope, check_envelope
from taskflow.model.ids import key_digest

if TYPE_CHECKING:
    from taskflow.app.declared_schedules import DeclaredSchedule

R_co = TypeVar("R_co", covariant=True)

Errors = tuple[type[BaseException], ...]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The retry policy of a job: it is retried after errors in `retry_on`, except those in `discard_on`."""

    retry: Backoff = Backoff()
    retry_on: Errors = (Exception,)
    discard_on: Errors = ()


class JobType(Generic[R_co]):
    """A function with its name, its codec and the options of its calls. R is the type of its result.

    It copies `__name__`, `__doc__` and similar attributes from the function. Its
    signature is the one that callers see, without the context.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        options: Options,
        *,
        policy: Policy,
        aliases: tuple[str, ...],
        runs_in: RunsIn,
        limits: Limits,
    ) -> None:
        self.function = function
        self.name = name
        self.policy = policy
        self.aliases = aliases
        self.runs_in: RunsIn = runs_in
        self.schedules: tuple[DeclaredSchedule, ...] = ()
        self.takes_context = takes_context(function)
        functools.update_wrapper(cast(Any, self), function, updated=())
        self.__signature__ = signature_for_callers(function, skip=int(self.takes_context))
        self.codec = FunctionCodec(function, name=name, skip=int(self.takes_context), limits=limits)
        self._with(options)

    @property
    def queue(self) -> str:
        """The queue to which calls are sent."""
        return self._options.queue

    @property
    def queues(self) -> set[str]:
        """The queues to which calls are sent, including those of the job's schedules."""
        return {self.queue} | {schedule.queue for schedule in self.schedules if schedule.queue}

    @property
    def key(self) -> str | None:
        """The key from `.options(key=...)`, or None."""
        return self._options.key

    def _with(self, options: Options) -> None:
        self._options = options
        self._fields = _envelope_fields(self.name, options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


AnyJob = JobType[Any]


def _envelope_fields(name: str, options: Options) -> dict[str, Any]:
    """Return the envelope fields that all calls share, without those that have
    default values. Raises ValueError for an invalid option, naming it."""
    fields = {field: getattr(options, field) for field in Options.__struct_fields__ if field not in ("key", "raises_on_conflict")}
    fields["key"] = None if options.key is None else key_digest(options.queue, name, options.key)
    check_envelope(Envelope(id=b"", job=name, payload=b"", **fields))
    return {field: value for field, value in fields.items() if value != getattr(_PLAIN, field)}


_PLAIN: Final = Envelope(id=b"", job="", payload=b"")
