"""The jobs that an application can send: those that this process declares, and those that it knows only by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec
from msgspec.structs import replace
from typing_extensions import Unpack

from taskflow.app import portal
from taskflow.app.app import App, default_app
from taskflow.app.around import surrounded
from taskflow.app.context import JobContext, running
from taskflow.app.flow import Call, Link
from taskflow.app.flow_plan import no_key
from taskflow.app.handle import JobHandle
from taskflow.app.job_type import UNRESOLVED, BareCall, HasOptions, JobType, Resolved
from taskflow.app.options import EnqueueOptions, merged_options, plain_options
from taskflow.app.sending import send_call, send_call_sync
from taskflow.app.settings import Settings
from taskflow.model.batch import Failure
from taskflow.model.codec import decode_by_name, encode_by_name
from taskflow.model.codec.function import CallArguments
from taskflow.model.codec.payload import seal_json
from taskflow.model.envelope import Envelope, check_job_name
from taskflow.model.errors import EncodeError
from taskflow.model.job_schema import bare_text
from taskflow.model.limits import TENANT, gate_id
from taskflow.model.printable import shown

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class _Binds(Protocol[A_contra, Q, R_co]):
    """A job whose first parameter is an `A_contra`, followed by the parameters `Q`."""

    def bind(self, result: A_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> Call[R_co]: ...


class Sendable(HasOptions, Generic[P, R_co]):
    """A job whose calls can be sent. It is immutable: `options` returns a changed copy."""

    app: App
    _may_declare_key = False
    """True if the job's declaration, which may set a key, is not known yet."""

    def options(self, **options: Unpack[EnqueueOptions]) -> Self:
        """Return a copy whose calls have these options; see `EnqueueOptions`.
        Raises TypeError or ValueError for an invalid option, naming it."""
        check_app_of(options.get("on_failure"), self.app)
        if self._may_declare_key and options.get("key") == "":
            return self._changed({**merged_options(self._given, plain_options({**options, "key": None})), "key": ""})
        return self._changed(merged_options(self._given, plain_options(options)))

    async def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Send a call, and return the handle of its job. Arguments are encoded first, so invalid ones raise here and not in the worker.

        Raises EncodeError (a TypeError) for an invalid argument, naming it. Raises BrokerUnavailable if the
        store does not answer in time, and StoreFull if the store is full. With ``on_conflict="raise"``, raises KeyConflict
        if a live job has the key or a throttle applies. If `delay` is cancelled, the job may already have been sent.
        """
        return await send_call(self.app, self._call(args, kwargs, given=(args, kwargs)), self._connection)

    def delay_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Like `delay`, but for code without an event loop, in any thread. Raises RuntimeError inside a running loop,
        unless a synchronous `connection` is given."""
        if self._connection is None:  # the connection's thread may have a loop, as in AsyncSession.run_sync()
            portal.refuse_inside_a_loop("delay_sync()", "await .delay()")
        return send_call_sync(self.app, self._call(args, kwargs, given=(args, kwargs)), self._connection)

    async def live(self, key: str) -> JobHandle[R_co] | None:
        """Return the handle of the live job that has this key, or None. The options decide where the key
        is looked up, as for a call: ``add.options(queue="math").live("sum:1:2")``.

        If one job waits and another one runs, the waiting one is returned. A running job is returned even if it was asked to
        stop, although a new job with its key could be sent. Raises TypeError or ValueError for an invalid key, and
        BrokerUnavailable if the store does not answer in time. Without an event loop, call ``run_sync(add.live("sum:1:2"))``.
        """
        if not isinstance(key, str):
            raise TypeError(f"live() got {shown(key)}: expected a key, which is a str")
        digest = self._current().options.key_fields(self.name, key)["key"]
        [job_id] = await self.app.client().call(lambda broker: broker.holders([digest]))
        return None if job_id is None else JobHandle(self.app, job_id, self if isinstance(self, JobType) else None, is_new=False)

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return a call for `enqueue` to send later. Its arguments are checked and encoded now. Raises EncodeError (a TypeError) if they
        are invalid, and TypeError if the options include a connection."""
        if self._connection is not None:
            raise TypeError("bind() cannot keep connection=: pass it to enqueue(calls, connection=...)")
        return self._call(args, kwargs)

    @overload
    def partial(self: _Binds[A, Q, R], /, *args: Q.args, **kwargs: Q.kwargs) -> Link[A, R]: ...
    @overload  # the first argument is given by name, so the type of the parameter that takes the result is not known
    def partial(self, /, **kwargs: Any) -> Link[Any, R_co]: ...
    def partial(self, /, *args: Any, **kwargs: Any) -> Link[Any, Any]:
        """Return a link for a flow: ``fetch.bind(url) | store.partial("bucket")`` calls ``store(result, "bucket")``.

        The result becomes the first argument that is not given by name; positional arguments follow it. The given arguments are checked
        and encoded now. Raises EncodeError (a TypeError) if they are invalid, and ValueError if the job cannot be in a flow.
        """
        if self._connection is not None:
            raise TypeError("pass connection= to the whole flow, as in flow.options(connection=...)")
        return self._link(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: CallArguments | None = None) -> Call[R_co]:
        """Encode these arguments, and return a call with them. `given` holds the originals for middleware."""
        raise NotImplementedError

    def _link(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Link[Any, R_co]:
        raise NotImplementedError

    def _with(self, given: dict[str, Any]) -> None:
        super()._with(given)
        self._connection = given.get("connection")

    def _changed(self, given: dict[str, Any]) -> Self:
        changed = copy.copy(self)
        changed._with(given)
        return changed


def check_app_of(on_failure: object, app: App) -> None:
    """Raise ValueError if `on_failure` is a call to another app's job, because that app's broker and settings may differ."""
    if isinstance(on_failure, Call) and getattr(on_failure.job_type, "app", app) is not app:
        raise ValueError(f"on_failure=: the call to {on_failure.job} belongs to another App; bind a job of this one")


class Declared(Sendable[P, R_co], JobType[R_co], Generic[P, R_co]):
    def __init__(self, app: App, function: Callable[..., Any], name: str, options: dict[str, Any], **declared: Any) -> None:
        super().__init__(function, name, options, limits=app.limits, read_settings=app.read_settings, **declared)
        self.app = app

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: CallArguments | None = None) -> Call[R_co]:
        settings = self.app.read_settings()
        payload = self.codec.encode_arguments(args, kwargs)
        resolved = self._resolved if self._resolved.settings is settings else self._resolve(settings)
        fields = resolved.envelope
        if resolved.declared_key is not None:
            fields = fields | resolved.options.key_fields(self.name, *resolved.declared_key.key_and_text(args, kwargs))
        if self.limits is not None:
            fields = {**fields, "limits": self.limits.gates_of(args, kwargs)}
        if self.fair is not None:
            fields = {**fields, "fair": gate_id("", self.fair.key_and_text(args, kwargs)[0], kind=TENANT)}
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **fields)
        return Call(self, envelope, raises_on_conflict=resolved.options.raises_on_conflict, given=given)

    def _link(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Link[Any, R_co]:
        if self.key is not None:
            raise ValueError(no_key(self.name, self.key))
        takes, place, given = self.codec.around(args, kwargs)
        payload, fields = self.codec.encode_around(takes, given), self._current().envelope
        if self.limits is not None:
            with_place = (*given[0][:place], None, *given[0][place:])
            fields = {**fields, "limits": self.limits.gates_without(takes, with_place, given[1])}
        envelope = Envelope(id=b"", job=self.name, payload=payload, **fields)
        return Link(self, BareCall(self, envelope, raises_on_conflict=False), takes, place, given)

    def _renewed(self, envelope: Envelope) -> Envelope:
        resolved = self._current()
        if resolved.declared_key is None:
            return super()._renewed(envelope)
        # `key_text` lacks the secrets of a declared key, so the key's digest is computed from the arguments
        key = resolved.options.key_fields(self.name, *resolved.declared_key.key_and_text(*self.codec.decode_arguments(envelope.payload)))
        more = {**resolved.envelope, **key, "limits": envelope.limits, "fair": envelope.fair}
        return Envelope(id=envelope.id, job=envelope.job, payload=envelope.payload, **more)

    def _resolve(self, settings: Settings) -> Resolved:
        """Compute the options, with the names of secrets. Cache nothing until the annotations are resolved: they say what is secret."""
        resolved = super()._resolve(settings)
        if not self.codec.is_resolved:
            self._resolved = UNRESOLVED
        elif self.codec.secrets:
            self._resolved = resolved = msgspec.structs.replace(resolved, envelope={**resolved.envelope, "secrets": self.codec.secrets})
        return resolved

    def _run_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, adding the dependencies that the caller left out and the running job's context. Outside a job, the context
        discards reports."""
        if self.batch is not None:
            args, kwargs = ([args[0] if args else kwargs.pop(next(iter(self.__signature__.parameters)))],), {**kwargs}
        if not self.takes_context and not self.dependencies:
            return self.function(*args, **kwargs)
        names = [*inspect.signature(self.function).parameters][int(self.takes_context) :]
        missing = {name: each for name, each in self.dependencies.items() if name not in names[: len(args)] and name not in kwargs}
        given = (args[: len(names) - len(self.dependencies)], {name: kwargs[name] for name in kwargs if name not in self.dependencies})
        context = running.get() or JobContext(job_name=self.name, queue=self.queue, job=self, given=given)
        called = surrounded(self.function, (), missing, self.app.overrides, is_async=isinstance(self, Job))
        whole = (context, *args) if self.takes_context else args
        return self.function(*whole, **kwargs) if called is None else called(context, *whole, **kwargs)

    def _only(self, returned: Any) -> Any:
        """Return the function's result. For a batch function, return the only outcome, or raise its error."""
        if self.batch is None:
            return returned
        [outcome] = returned
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome


class Job(Declared[P, R_co]):
    """A job whose function is async. Calling it runs the function directly, without sending anything."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = self._only(await self._run_here(args, kwargs))
        return result


class SyncJob(Declared[P, R_co]):
    """A job whose function is not async. Workers run it in a thread or a child process. Calling
    it runs the function directly, without sending anything."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = self._only(self._run_here(args, kwargs))
        return result


class NamedJob(Sendable[..., Any]):
    """A job that is known by its name. If this process has declared a job with this name or alias, calls work as for that job.

    Otherwise the arguments must be given by name. They are encoded without annotations, and the worker checks them. The options of
    the job's decorator are not known either, so the configured defaults apply.
    """

    _may_declare_key = True

    def __init__(self, app: App, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a job's name must be a str, got {shown(name)}; to send a job that you have imported, call its .delay()")
        super().__init__(bare_text(check_job_name(name)), {}, app.read_settings)
        self.app = app

    async def live(self, key: str) -> JobHandle[Any] | None:
        job = self._declared()
        return await (super().live(key) if job is None else job.live(key))

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: CallArguments | None = None) -> Call[Any]:
        job = self._declared()
        if job is not None:
            return job._call(args, kwargs, given)
        if args:
            raise EncodeError(
                f"{self.name} got {len(args)} positional argument(s): this process does not know the job, so pass its arguments by name, "
                "as in send(..., order_id=7), or import the module that declares it"
            )
        resolved = self._current()
        payload = encode_by_name(kwargs, job=self.name, limits=self.app.limits)
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **resolved.envelope)
        return Call(None, envelope, raises_on_conflict=resolved.options.raises_on_conflict, given=given, named=self)

    def _link(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Link[Any, Any]:
        job = self._declared()
        if job is None:
            unknown = f"{self.name}: this process does not know the job, so it cannot tell which argument takes the result"
            raise EncodeError(f"{unknown}: import its module, or use .bind(...) to run the job afterwards without passing it the result")
        return job._link(args, kwargs)

    def _call_from_json(self, body: bytes) -> Call[Any]:
        """Return a call that takes its arguments, by parameter name, from a JSON object. Raises CodecError if they do not fit."""
        payload, job = seal_json(body), self._declared()
        if job is not None:
            given = job.codec.decode_arguments(payload)
            return job._call(*given, given)
        arguments = decode_by_name(payload, limits=self.app.limits)
        call = self._call((), arguments, ((), arguments))
        call.envelope = replace(call.envelope, payload=payload)
        return call

    def _declared(self) -> Declared[..., Any] | None:
        """Return the job that this process declares under this name, with this object's options applied, or None if there is none."""
        job = self.app.registry.get(self.name)
        if not isinstance(job, Declared):
            return None
        return job._changed(merged_options(job._given, self._given)) if self._given else job


def named(name: str) -> NamedJob:
    """Return a job by its name, for options and calls: ``named("app.tasks.charge").options(queue="io").delay(order_id=7)``.

    Use it where importing the job would be circular, or where its code is not installed. Raises ValueError for an invalid name.
    """
    return NamedJob(default_app(), name)


async def send(name: str, /, *args: Any, **arguments: Any) -> JobHandle[Any]:
    """Send a job by its name: ``await send("app.tasks.charge", order_id=7)``. It is a shortcut for ``named(name).delay(...)``.

    If this process has declared the job, its arguments are checked, and may be positional too. Otherwise they must be given by name,
    and a worker checks them: it parks a job whose name or arguments it doesn't know, to try it later. Raises the same errors as `delay`.
    """
    return await named(name).delay(*args, **arguments)


def send_sync(name: str, /, *args: Any, **arguments: Any) -> JobHandle[Any]:
    """Like `send`, but for code without an event loop, in any thread. Raises RuntimeError inside a running loop."""
    return named(name).delay_sync(*args, **arguments)
