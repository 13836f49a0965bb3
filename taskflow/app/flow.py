"""Defines flows: calls that are chained by `|`, or run side by side by `group`. A flow is sent in one step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, Self, TypeVar, cast, get_args, overload

from taskflow.app import portal
from taskflow.app.app import App, default_app
from taskflow.app.flow_handle import FlowHandle
from taskflow.app.flow_plan import Chain, Plan, Step, chain_of_fan, chain_of_step, plan_of
from taskflow.app.job_type import BareCall, HasOptions
from taskflow.app.options import merged_options, plain_options
from taskflow.app.sending import send_together, send_together_sync
from taskflow.model.batch import Failure
from taskflow.model.codec.function import CallArguments
from taskflow.model.envelope import Envelope
from taskflow.model.errors import EncodeError
from taskflow.model.flow import MAX_JOBS
from taskflow.model.ids import ID_BYTES
from taskflow.model.printable import shown

if TYPE_CHECKING:
    from taskflow.app.connections import Connection

A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

Failures = Literal["cancel", "collect"]


class Takes(Protocol[A_contra, S_co]):
    """A job that takes a result as its first argument, or a link made by `partial`."""

    def bind(self, result: A_contra, /) -> Call[S_co]: ...


class Branch(Generic[R_co]):
    """A call, or a flow that ends in one job. A group consists of branches."""

    __slots__ = ()

    def _behind(self, chain: Chain | None = None) -> Chain:
        """Return the jobs as a chain that can follow `chain`."""
        raise NotImplementedError

    @overload
    def __or__(self, other: Branch[S], /) -> Flow[S]: ...
    @overload
    def __or__(self, other: Group[S], /) -> Group[S]: ...
    @overload
    def __or__(self: Branch[A], other: GroupLink[A, S], /) -> Group[S]: ...
    @overload
    def __or__(self: Branch[A], other: Takes[A, S], /) -> Flow[S]: ...
    def __or__(self, other: Any, /) -> Any:
        """Return a flow in which `other` follows this one; it is a `Group` if `other` is a group. Jobs, and links made by `partial`, take
        the result as an argument, even in a group. Calls made by `bind`, flows and groups of these only wait for it. Raises TypeError or
        ValueError for a job that cannot be in a flow."""
        return _followed(self._behind(), other)


class Call(BareCall[R_co], Branch[R_co]):
    """A call to a job, made by `bind`. If `enqueue` sends it again, no second job is added; in a flow, each sending adds a new job."""

    __slots__ = ()

    def _behind(self, chain: Chain | None = None) -> Chain:
        return chain_of_step(Step(self))


class Link(Generic[A_contra, R_co]):
    """A job in a flow that takes another job's result. Made by `partial`."""

    __slots__ = ("_call", "_given", "_job", "_place", "_takes")

    def __init__(self, job: Any, call: BareCall[Any], takes: str, place: int, given: CallArguments) -> None:
        self._job = job
        self._call = call
        self._takes = takes
        self._place = place
        self._given = given

    def bind(self, result: A_contra, /) -> Call[R_co]:
        """Return the call that the flow makes with this result."""
        args, kwargs = self._given
        call: Call[R_co] = self._job.bind(*args[: self._place], result, *args[self._place :], **kwargs)
        return call

    def _behind(self, chain: Chain) -> Chain:
        """Return this job as a chain that follows `chain`. Raises TypeError if `chain` ends in a group and the job cannot take a list."""
        if chain.ends_in_list:
            try:
                self._job.codec.as_sent(self._takes)([])
            except EncodeError as error:
                name = self._call.job
                raise TypeError(f"{name} takes the results of a group, so its parameter {self._takes!r} must be a list: {error}") from None
        return chain_of_step(Step(self._call, self._takes))

    def __repr__(self) -> str:
        return f"<Link {self._call.job}, which takes {self._takes}>"


class GroupLink(Generic[A_contra, R_co]):
    """A group of jobs that take the result of the call before the group. Made by `group` from jobs and links."""

    __slots__ = ("_branches", "_collects")

    def __init__(self, branches: list[Chain | Link[Any, Any]], *, collects: bool) -> None:
        self._branches = branches
        self._collects = collects

    def _behind(self, chain: Chain) -> Chain:
        branches = [each._behind(chain) if isinstance(each, Link) else each for each in self._branches]
        return chain_of_fan(branches, collects=self._collects)

    if not TYPE_CHECKING:  # type checkers report these uses themselves

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"{self!r} has no {name}()")

        def __or__(self, other: object) -> Any:
            raise TypeError(f"{self!r} cannot begin a flow")

    def __repr__(self) -> str:
        many = len(self._branches)
        return f"<GroupLink of {many:,} branch{'' if many == 1 else 'es'}: put it after a call, which passes its result to them>"


class Composed(Generic[R_co]):
    """The base class of flows and groups, which are immutable and can be sent any number of times."""

    __slots__ = ("_chain", "_given")

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._given: dict[str, Any] = {}

    def options(self, *, connection: Connection | None = None, after: float | timedelta | None = None, at: datetime | None = None) -> Self:
        """Return a copy of the flow, to be sent with these options (see `EnqueueOptions`). Set a job's other options on its call.

        `connection`   the jobs are added in its transaction, and exist if and only if the transaction commits
        `after`, `at`  when the jobs that begin the flow may start; this replaces their own `after` and `at`

        Raises TypeError or ValueError for an invalid option, naming it.
        """
        changed = copy.copy(self)
        changed._given = merged_options(self._given, plain_options({"connection": connection, "after": after, "at": at}))
        return changed

    async def delay(self) -> FlowHandle[R_co]:
        """Send the flow, and return its handle. All of its jobs are added in one step, or none is.

        Raises the same errors as `Job.delay`, and ValueError if the jobs belong to several Apps.
        """
        (app, plan), connection = self._planned(), self._given.get("connection")
        await send_together(app, plan.calls, connection)
        return FlowHandle(app, plan, connection)

    def delay_sync(self) -> FlowHandle[R_co]:
        """Like `delay`, but for code without an event loop, in any thread. Raises RuntimeError inside a running loop,
        unless a synchronous `connection` is given."""
        if (connection := self._given.get("connection")) is None:
            portal.refuse_inside_a_loop("delay_sync()", "await .delay()")
        app, plan = self._planned()
        send_together_sync(app, plan.calls, connection)
        return FlowHandle(app, plan, connection)

    def _templates(self) -> list[Envelope]:
        """Return the envelopes for a schedule to store. Their ids are numbered from 0, so the same flow always has the same ids. Raises
        ValueError if the flow was given options."""
        if self._given:
            raise ValueError(f"{self!r}: a schedule decides when a flow is sent, and a worker sends it: leave out .options(...)")
        numbers = count()
        _, plan = self._planned(lambda: next(numbers).to_bytes(ID_BYTES))
        return [call.envelope for call in plan.calls]

    def _planned(self, new_id: Callable[[], bytes] | None = None) -> tuple[App, Plan]:
        apps = {id(app): app for app in (getattr(call.job_type or call._named, "app", None) for call in self._chain.calls())}
        if len(apps) > 1:
            raise ValueError(f"{self!r}: its jobs belong to {len(apps)} Apps; bind jobs of one App")
        app = next(iter(apps.values()), None) or default_app()
        start: dict[str, Any] = {name: self._given[name] for name in ("after", "at") if name in self._given}
        return app, plan_of(self._chain, new_id or app.new_id, start)

    def _behind(self, chain: Chain | None = None) -> Chain:
        """Return the jobs as a part of another flow. Raises TypeError if this flow has options, which would be lost."""
        for name in self._given:
            raise TypeError(f"pass {name}= to the whole flow, not to a part of it: {self!r}")
        return self._chain

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._chain.jobs:,} job{'' if self._chain.jobs == 1 else 's'}>"


class Flow(Composed[R_co], Branch[R_co]):
    """A flow that ends in one job, whose result is the flow's result: ``fetch.bind(url) | parse | store.partial("bucket")``."""

    __slots__ = ()


class Group(Composed[list[R_co]], Generic[R_co]):  # pyright: ignore[reportInvalidTypeArguments]  # each result is a new list
    """A group of calls and flows that run side by side, made by `group`. Its result is the list of their results."""

    __slots__ = ()

    @overload
    def __or__(self, other: Branch[S], /) -> Flow[S]: ...
    @overload
    def __or__(self, other: Group[S], /) -> Group[S]: ...
    @overload
    def __or__(self: Group[A], other: GroupLink[list[A], S], /) -> Group[S]: ...
    @overload
    def __or__(self: Group[A], other: Takes[list[A], S], /) -> Flow[S]: ...
    def __or__(self, other: Any, /) -> Any:
        """Return a flow in which `other` follows once all calls of the group have succeeded, or ended if the group collects failures. A
        job takes the list of their results, in the order of the calls. Everything else is as for a call."""
        return _followed(self._behind(), other)


@overload
def group(calls: Iterable[Branch[R]], *, failures: Literal["cancel"] = ...) -> Group[R]: ...
@overload
def group(calls: Iterable[Branch[R]], *, failures: Literal["collect"]) -> Group[R | Failure]: ...
@overload
def group(calls: Iterable[Takes[A, R]], *, failures: Literal["cancel"] = ...) -> GroupLink[A, R]: ...
@overload
def group(calls: Iterable[Takes[A, R]], *, failures: Literal["collect"]) -> GroupLink[A, R | Failure]: ...
def group(calls: Iterable[Any], *, failures: Failures = "cancel") -> Group[Any] | GroupLink[Any, Any]:
    """Run calls and flows side by side: ``group(add.bind(n, n) for n in range(10)) | total``.

    `calls`     calls made by `bind`, and flows that end in one job. If there are none, the job that follows gets an empty list. Jobs, and
                links made by `partial`, take the result of the call before the group:
                ``fetch.bind(url) | group([count.partial(), index.partial()])``
    `failures`  what happens if a call fails: "cancel" (default) cancels all jobs of the flow that haven't begun. "collect" puts a `Failure`
                into the list in place of its result, and cancels only the jobs that follow it in the same branch

    A flow can have at most 10,000 jobs, not counting those that follow a group, and 16 MiB. Raises ValueError for a larger flow and for a
    call with a key, and TypeError for anything that is not a call or a flow.
    """
    if failures not in get_args(Failures):
        raise ValueError(f'failures={shown(failures)}: expected "cancel" or "collect"')
    if not isinstance(cast(object, calls), Iterable):
        raise TypeError(f"group() got {shown(calls)}: expected an iterable of calls, such as [add.bind(1), add.bind(2)]")
    found = iter(calls)
    branches = [_branch(call) for call in islice(found, MAX_JOBS)]
    if more := sum(1 for _ in islice(found, _MAX_BEYOND)):
        many = f"{MAX_JOBS + more:,} calls{' or more' if more == _MAX_BEYOND else ''}"
        raise ValueError(f"group() got {many}: a flow can have at most {MAX_JOBS:,} jobs; send several flows, or enqueue() the calls")
    chains = [each for each in branches if not isinstance(each, Link)]
    if len(chains) < len(branches):
        return GroupLink(branches, collects=failures == "collect")
    return Group(chain_of_fan(chains, collects=failures == "collect"))


_MAX_BEYOND: Final = 99 * MAX_JOBS + 1
"""The maximum number of calls beyond `MAX_JOBS` that are counted, because the iterable may be endless."""


def _linked(part: object) -> object:
    """Return a job as a link, and anything else as it is."""
    return cast(Any, part).partial() if isinstance(part, HasOptions) else part


def _branch(call: object) -> Chain | Link[Any, Any]:
    branch = _linked(call)
    if isinstance(branch, Link):
        return branch
    if isinstance(branch, Branch):
        return branch._behind()
    if isinstance(branch, Group):
        raise TypeError(f"group() got {call!r}: a group inside a group needs a job that takes its results, as in group(...) | total")
    raise TypeError(f"group() got {shown(call)}: expected calls made by .bind(...), jobs, or flows")


def _followed(chain: Chain, other: object) -> Flow[Any] | Group[Any]:
    part = _linked(other)
    if not isinstance(part, Branch | Link | Group | GroupLink):
        raise TypeError(f"a flow got {shown(other)} after `|`: expected a job, .partial(...) or .bind(...) of a job, a flow or a group")
    whole = chain.then(part._behind(chain))
    return Group(whole) if isinstance(part, Group | GroupLink) else Flow(whole)
