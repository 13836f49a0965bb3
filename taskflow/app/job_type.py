"""Jobs as the decorator declares them, the options of their calls, the calls themselves, and the registry that finds jobs by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from taskflow.app.around import dependencies_of
from taskflow.app.context import takes_context
from taskflow.app.options import Around, Options, Policy, RunsIn
from taskflow.app.settings import Settings
from taskflow.model.batch import Batch
from taskflow.model.codec import FunctionCodec, Limits
from taskflow.model.codec.function import CallArguments
from taskflow.model.envelope import Envelope
from taskflow.model.errors import DeclarationError
from taskflow.model.ids import id_text

if TYPE_CHECKING:
    from taskflow.app.declared_key import DeclaredKey
    from taskflow.app.declared_limits import DeclaredLimits
    from taskflow.app.declared_schedules import DeclaredSchedule

R_co = TypeVar("R_co", covariant=True)


class Resolved(msgspec.Struct, frozen=True):
    """The options of a job's calls under `settings`, and the fields of the calls' envelopes that follow from them. `declared_key` is None
    unless the key of each call is made from a template."""

    settings: Settings | None
    options: Options
    envelope: dict[str, Any]
    declared_key: DeclaredKey | None


class HasOptions:
    """A job's name, and the options given for its calls. Immutable, except for a cache of the resolved options."""

    def __init__(self, name: str, given: dict[str, Any], read_settings: Callable[[], Settings]) -> None:
        self.name = name
        self._read_settings = read_settings
        self._with(given)

    @property
    def queue(self) -> str:
        """The queue to which calls are sent."""
        return self._current().options.queue

    @property
    def key(self) -> str | None:
        """The key of the job's calls, or the template from which it is made; None if they have no key."""
        key = self._given.get("key")
        return str(key) if key else None

    def _renewed(self, envelope: Envelope) -> Envelope:
        """Return the envelope of a call, with its options recomputed from the current settings."""
        resolved = self._current()
        key = {} if envelope.key_text is None else resolved.options.key_fields(self.name, envelope.key_text)
        more = {**resolved.envelope, **key, "limits": envelope.limits, "fair": envelope.fair}
        return Envelope(id=envelope.id, job=envelope.job, payload=envelope.payload, **more)

    def _with(self, given: dict[str, Any]) -> None:
        self._given = given
        self._resolved = UNRESOLVED

    def _current(self) -> Resolved:
        settings = self._read_settings()
        return self._resolved if self._resolved.settings is settings else self._resolve(settings)

    def _resolve(self, settings: Settings) -> Resolved:
        """Compute the options under these settings. They are cached until the settings change."""
        options = Options(**{**settings.defaults.options, **self._given})
        declared_key = None if isinstance(options.key, str) else options.key
        self._resolved = resolved = Resolved(settings, options, options.envelope_fields(self.name), declared_key)
        return resolved

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


UNRESOLVED: Final = Resolved(None, Options(), {}, None)


class JobType(HasOptions, Generic[R_co]):
    """A function with its name, its codec and the options of its calls. `__signature__` leaves out the context and the dependencies."""

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
        self.batch: Batch | None = policy.get("batch")
        self.function = function
        self.aliases = aliases
        self.runs_in: RunsIn = runs_in
        self.schedules: tuple[DeclaredSchedule, ...] = ()
        self.limits: DeclaredLimits | None = None
        self.fair: DeclaredKey | None = None
        self.takes_context = takes_context(function)
        functools.update_wrapper(cast(Any, self), function, updated=())
        skip, signature = int(self.takes_context), inspect.signature(function)
        parameters = list(signature.parameters.values())[skip:]
        self.dependencies = dependencies_of(parameters)
        self.__signature__ = signature.replace(parameters=[each for each in parameters if each.name not in self.dependencies])
        self.codec = FunctionCodec(
            function, name=name, skip=skip, injected=self.dependencies, limits=limits, is_batch=self.batch is not None
        )
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """The rules by which workers retry and stop the job's runs."""
        return Policy(**{**self._read_settings().defaults.policy, **self._policy})

    @property
    def around(self) -> tuple[Around, ...]:
        """The functions that return context managers for each run, outermost first: those of `configure(defaults=...)`, then the job's."""
        return (*self._read_settings().defaults.policy.get("around", ()), *self._policy.get("around", ()))

    @property
    def stop_grace(self) -> float:
        """Seconds between asking a run in a child process to stop and killing the process."""
        return self.policy.stop_grace

    @property
    def queues(self) -> set[str]:
        """The queues to which calls are sent, including those of the job's schedules."""
        return {self.queue} | {schedule.queue for schedule in self.schedules if schedule.queue}

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return a call's arguments as a read-only mapping by parameter name, including defaults for those that weren't given."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return MappingProxyType(bound.arguments)

    def decoded_arguments(self, payload: bytes) -> Mapping[str, Any]:
        """Return the arguments in a payload, like `named_arguments`. Raises DecodeError if they do not fit the function."""
        return self.named_arguments(*self.codec.decode_arguments(payload))

    def arguments_beside(self, takes: str, payload: bytes) -> Mapping[str, Any]:
        """Like `decoded_arguments`, for a job in a flow: leave out the parameter named by `takes`, which results will fill."""
        args, kwargs = self.codec.decode_around(takes, payload)
        signature = self.__signature__.replace(parameters=[each for name, each in self.__signature__.parameters.items() if name != takes])
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return MappingProxyType(bound.arguments)


AnyJob = JobType[Any]


def location(function: Callable[..., Any]) -> str:
    """Return a function's file, line and name, for messages."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} ({function.__qualname__})" if code else repr(function)


class BareCall(Generic[R_co]):
    """A call to a job, as it is sent. Its subclass `Call` can be part of a flow."""

    __slots__ = ("_named", "envelope", "given", "job_type", "raises_on_conflict")

    def __init__(
        self,
        job_type: JobType[Any] | None,
        envelope: Envelope,
        *,
        raises_on_conflict: bool,
        given: CallArguments | None = None,
        named: HasOptions | None = None,
    ) -> None:
        self.job_type = job_type
        self._named = named
        self.envelope = envelope
        self.raises_on_conflict = raises_on_conflict
        self.given = given

    def stamped(self, envelope: Envelope) -> BareCall[R_co]:
        """Return a copy of this call with an envelope that middleware or a flow has changed."""
        return BareCall(self.job_type, envelope, raises_on_conflict=self.raises_on_conflict, given=self.given)

    def _renewed(self) -> Envelope:
        """Return the envelope under the current settings, which may have changed since `bind` made it."""
        maker = self.job_type or self._named
        return self.envelope if maker is None else maker._renewed(self.envelope)

    @property
    def id(self) -> str:
        """The id that the job will have, as text. If another job has the key, `enqueue` returns that job's handle, with another id."""
        return id_text(self.envelope.id)

    @property
    def job(self) -> str:
        """The job's name."""
        return self.envelope.job

    @property
    def key(self) -> str | None:
        """The key, or None."""
        return self.envelope.key_text

    def __repr__(self) -> str:
        return f"<Call {self.job} {self.id}>"


class Registry:
    """Finds job types by their names and aliases. If a function is declared again, as by a reload, its new job replaces the old one."""

    def __init__(self) -> None:
        self._jobs: dict[str, AnyJob] = {}

    def add(self, job: AnyJob) -> None:
        for name in (job.name, *job.aliases):
            other = self._jobs.get(name)
            if other is not None and _owner(other) != _owner(job):
                both = f"{location(other.function)} and {location(job.function)}"
                raise DeclarationError(f"two jobs are called {name!r}: {both}; give one of them another name=")
        for name in [name for name, other in self._jobs.items() if other.name == job.name and _owner(other) == _owner(job)]:
            del self._jobs[name]
        for name in (job.name, *job.aliases):
            self._jobs[name] = job

    def get(self, name: str) -> AnyJob | None:
        return self._jobs.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all jobs, with their aliases, sorted."""
        return tuple(sorted(self._jobs))

    def resolve(self) -> None:
        """Resolve every job's annotations. Raises DeclarationError, naming the parameter, if an annotation cannot be resolved."""
        for job in self:
            job.codec.resolve()

    def __iter__(self) -> Iterator[AnyJob]:
        """Yield each job once, sorted by name."""
        return iter(sorted(set(self._jobs.values()), key=lambda job: job.name))

    def __len__(self) -> int:
        return len(set(self._jobs.values()))


def _owner(job: AnyJob) -> tuple[str, str]:
    code = getattr(inspect.unwrap(job.function), "__code__", None)
    return (str(Path(code.co_filename).resolve()) if code else job.function.__module__, job.function.__qualname__)
