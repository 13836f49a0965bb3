"""Sends jobs by name: those that this process cannot import, or imports too late."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from taskflow.app.app import App, default_app
from taskflow.app.call import Call
from taskflow.app.handle import JobHandle
from taskflow.app.job import Declared
from taskflow.app.option_checks import merged_options
from taskflow.app.sendable import Sendable
from taskflow.model.codec import decode_by_name, encode_by_name
from taskflow.model.codec.payload import seal_json
from taskflow.model.codec.signature import CallArguments
from taskflow.model.envelope import Envelope, check_job_name
from taskflow.model.errors import EncodeError
from taskflow.model.job_schema import bare_text
from taskflow.model.printable import shown


class NamedJob(Sendable[..., Any]):
    """A job that is known by its name. If this process has declared a job with the name or alias, calls are the same as those of that job.

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
                f"{self.name} got {len(args)} positional argument(s): this process does not know the job, so give its arguments by name, "
                "as in send(..., order_id=7), or import the module that declares it"
            )
        resolved = self._current()
        payload = encode_by_name(kwargs, job=self.name, limits=self.app.limits)
        envelope = Envelope(id=self.app.new_id(), job=self.name, payload=payload, **resolved.envelope)
        return Call(None, envelope, raises_on_conflict=resolved.options.raises_on_conflict, given=given, named=self)

    def _call_from_json(self, body: bytes) -> Call[Any]:
        """Return a call whose arguments are a JSON object by parameter name. Their annotations say what becomes of text for a date, for
        example: in this process if it has declared the job, otherwise in the worker. Raises CodecError for arguments that do not fit."""
        payload, job = seal_json(body), self._declared()
        if job is not None:
            given = job.codec.decode_arguments(payload)
            return job._call(*given, given)
        arguments = decode_by_name(payload, limits=self.app.limits)
        call = self._call((), arguments, ((), arguments))
        call.envelope = replace(call.envelope, payload=payload)
        return call

    def _declared(self) -> Declared[..., Any] | None:
        """Return the job that has this name here, with the options given for this one, or None."""
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
    and the worker checks them: a job whose name or arguments it does not know is parked. Raises the same errors as `delay`.
    """
    return await named(name).delay(*args, **arguments)


def send_sync(name: str, /, *args: Any, **arguments: Any) -> JobHandle[Any]:
    """Like `send`, but for code without an event loop, in any thread. Raises RuntimeError inside a running loop."""
    return named(name).delay_sync(*args, **arguments)
