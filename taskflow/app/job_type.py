"""The base class of jobs that are declared here, which holds what the decorator says. `taskflow.app.job` adds sending."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskflow.app.execution_mode import RunsIn
from taskflow.app.job_function import signature_for_callers, takes_context
from taskflow.app.options import Policy
from taskflow.app.resolved_options import HasOptions
from taskflow.app.settings import Settings
from taskflow.model.codec import FunctionCodec, Limits

if TYPE_CHECKING:
    from taskflow.app.declared_schedules import DeclaredSchedule

R_co = TypeVar("R_co", covariant=True)


class JobType(HasOptions, Generic[R_co]):
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
        options: dict[str, Any],
        *,
        policy: dict[str, Any],
        aliases: tuple[str, ...],
        runs_in: RunsIn,
        limits: Limits,
        read_settings: Callable[[], Settings],
    ) -> None:
        super().__init__(name, options, read_settings)
        self.function = function
        self.aliases = aliases
        self.runs_in: RunsIn = runs_in
        self.schedules: tuple[DeclaredSchedule, ...] = ()
        self.takes_context = takes_context(function)
        functools.update_wrapper(cast(Any, self), function, updated=())
        self.__signature__ = signature_for_callers(function, skip=int(self.takes_context))
        self.codec = FunctionCodec(function, name=name, skip=int(self.takes_context), limits=limits)
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """The rules by which workers retry and stop its runs."""
        return Policy(**{**self._read_settings().defaults.policy, **self._policy})

    @property
    def stop_grace(self) -> float:
        """Seconds between asking a run in a child process to stop and killing the process."""
        return self.policy.stop_grace

    @property
    def queues(self) -> set[str]:
        """The queues to which calls are sent, including those of the job's schedules."""
        return {self.queue} | {schedule.queue for schedule in self.schedules if schedule.queue}

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of a call by parameter name, with the defaults of those that were not given. It is read-only."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return MappingProxyType(bound.arguments)

    def decoded_arguments(self, payload: bytes) -> Mapping[str, Any]:
        """Return the arguments in a payload, like `named_arguments`. Raises DecodeError if they do not fit the function."""
        return self.named_arguments(*self.codec.decode_arguments(payload))


AnyJob = JobType[Any]
