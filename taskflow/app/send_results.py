"""The store's answers to calls that were sent: through the middleware, as handles, and as errors."""

from __future__ import annotations

from typing import Any, TypeVar

from taskflow.app.app import App
from taskflow.app.enqueue_batches import Batch, Sent
from taskflow.app.handle import JobHandle, Origin
from taskflow.app.job_type import Call
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain
from taskflow.broker.protocol import Added, Refused
from taskflow.model.errors import EnqueueFailed, KeyConflict, TaskflowError

R = TypeVar("R")


def has_enqueue_middleware(app: App) -> bool:
    return any(type(layer).enqueue is not Middleware.enqueue for layer in app.settings.middleware)


async def through_middleware(app: App, call: Call[Any], send: Any) -> Added | Refused:
    answers: list[Added | Refused] = []

    async def innermost(enqueue_call: EnqueueCall) -> None:
        answers.append(await send(enqueue_call.to_envelope()))

    await enqueue_chain(app.settings.middleware, innermost)(EnqueueCall(call.envelope, call.job_type, call.given))
    if not answers:
        raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
    return answers[-1]


def add_results(
    app: App, batch: Batch[R], answers: list[Added | Refused | BaseException], sent: Sent[R], origin: Origin = Origin.SENT
) -> None:
    """Add the handles of a batch to `sent`. If some calls were not sent, raises EnqueueFailed with the handles collected so far."""
    answers = [_clash_or(answer, call) for call, answer in zip(batch.calls, answers, strict=True)]
    errors = [answer for answer in (*answers, batch.error) if isinstance(answer, BaseException)]
    for call, answer in zip(batch.calls, answers, strict=True):
        if not isinstance(answer, BaseException):
            sent.handles.append(_handle(app, call, answer, origin))
            if _is_conflict(call, answer):
                sent.conflicts.append(sent.handles[-1])
    if errors:
        raise not_all_sent(sent, f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]
    if sent.conflicts:
        raise not_all_sent(sent, f"{len(sent.conflicts)} call(s) found a live job with their key, for example {sent.conflicts[0]!r}")


def handle_of(app: App, call: Call[R], answer: Added | Refused, origin: Origin = Origin.SENT) -> JobHandle[R]:
    """Return the handle of a call that was sent. Raises KeyConflict if it was not, and was to raise that."""
    checked = _clash_or(answer, call)
    if isinstance(checked, BaseException):
        raise checked
    handle = _handle(app, call, checked, origin)
    if call.raises_on_conflict and _is_conflict(call, answer):
        raise _conflict(call, handle.id)
    return handle


def _clash_or(answer: Added | Refused | BaseException, call: Call[Any]) -> Added | Refused | BaseException:
    """Return an error if another job has the call's id, else the answer."""
    if isinstance(answer, Refused) and answer.because == "clash":
        return TaskflowError(f"{call!r} was not sent: the store has another job with its id; make the call again, which gives it a new id")
    return answer


def _handle(app: App, call: Call[R], answer: Added | Refused, origin: Origin) -> JobHandle[R]:
    if isinstance(answer, Added) or answer.standing == answer.id:
        return JobHandle(app, answer.id, call.job_type, origin=origin)
    return JobHandle(app, answer.standing, call.job_type, is_new=False, origin=origin)


def _is_conflict(call: Call[Any], answer: Added | Refused) -> bool:
    return call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"


def _conflict(call: Call[Any], standing: str) -> KeyConflict:
    return KeyConflict(
        f"{call!r} was not sent: the live job {standing} has its key {call.key!r}; "
        'on_conflict="keep" returns the handle of that job, "replace" cancels it',
        job_id=standing,
    )


def not_all_sent(sent: Sent[Any], why: str) -> EnqueueFailed:
    message = f"not all calls were sent: {why}; {len(sent.handles)} call(s) were sent, and .handles has their handles in order"
    return EnqueueFailed(message, handles=sent.handles, conflicts=sent.conflicts)
