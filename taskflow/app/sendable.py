"""The base class of jobs whose calls can be sent: those that are declared here, and those that are known by name only."""

from __future__ import annotations

import copy
from typing import Any, Generic, ParamSpec, Self, TypeVar

from typing_extensions import Unpack

from taskflow.app import portal
from taskflow.app.app import App
from taskflow.app.call import Call
from taskflow.app.handle import JobHandle
from taskflow.app.job_type import AnyJob
from taskflow.app.option_checks import merged_options, plain_options
from taskflow.app.options import EnqueueOptions
from taskflow.app.resolved_options import HasOptions
from taskflow.app.sending import send_call, send_call_sync
from taskflow.model.codec.signature import CallArguments
from taskflow.model.printable import shown

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Sendable(HasOptions, Generic[P, R_co]):
    """A job whose calls can be sent. It is immutable: `options` returns a changed copy."""

    app: App
    _may_declare_key = False
    """True if the declaration, which may have a key, is not known yet."""

    @property
    def _job_type(self) -> AnyJob | None:
        """The job that decodes results, if it is known."""
        return None

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
        store does not answer in time, and StoreFull if the store is full. With ``on_conflict="raise"``, raises
        KeyConflict if a live job has the key. If `delay` is cancelled, the job may already have been sent.
        """
        call = self._call(args, kwargs, given=(args, kwargs))
        if self._connection is not None:
            from taskflow.app import transactional_sending

            return await transactional_sending.send(self.app, call, self._connection)
        return await send_call(self.app, call)

    def delay_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """Like `delay`, but for code without an event loop, in any thread. Raises RuntimeError inside a running loop,
        unless a synchronous `connection` is given."""
        if self._connection is not None:  # its thread may have a loop, as in AsyncSession.run_sync()
            from taskflow.app import transactional_sending

            return transactional_sending.send_sync(self.app, self._call(args, kwargs, given=(args, kwargs)), self._connection)
        portal.refuse_inside_a_loop("delay_sync()", "await .delay()")
        return send_call_sync(self.app, self._call(args, kwargs, given=(args, kwargs)))

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
        return None if job_id is None else JobHandle(self.app, job_id, self._job_type, is_new=False)

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return a call for `enqueue` to send later. Its arguments are checked and encoded now."""
        if self._connection is not None:
            raise TypeError("connection= is not kept in a call: give it to enqueue(calls, connection=...)")
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: CallArguments | None = None) -> Call[R_co]:
        """Return a call with these arguments, encoded. `given` holds them for middleware. Each subclass encodes them in its own way."""
        raise NotImplementedError

    def _with(self, given: dict[str, Any]) -> None:
        super()._with(given)
        self._connection = given.get("connection")

    def _changed(self, given: dict[str, Any]) -> Self:
        changed = copy.copy(self)
        changed._with(given)
        return changed


def check_app_of(on_failure: object, app: App) -> None:
    """Raise ValueError for a call to a job of another app, whose broker and settings may be others."""
    if isinstance(on_failure, Call) and getattr(on_failure.job_type, "app", app) is not app:
        raise ValueError(f"on_failure=: the call of {on_failure.job} belongs to another App; bind a job of this one")
