"""Lets middleware stamp calls before they are sent, in the thread of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from taskflow.app.app import App
from taskflow.app.enqueue_batches import Batch, Sent
from taskflow.app.job_type import Call, Registry
from taskflow.app.middleware import EnqueueCall, Middleware
from taskflow.app.send_results import not_all_sent
from taskflow.model.envelope import Envelope

R = TypeVar("R")


def stamped(app: App, call: Call[R]) -> Call[R]:
    """Return the call as the middleware stamps it."""
    [found] = _stamped(_stamping(app.settings.middleware), [call])
    return found


def stamp_batch(app: App, batch: Batch[R], sent: Sent[R]) -> None:
    """Stamp the calls of a batch. Raises EnqueueFailed, with the handles of the batches before it, if middleware raises."""
    if layers := _stamping(app.settings.middleware):
        try:
            batch.calls = _stamped(layers, batch.calls)
        except Exception as error:
            raise not_all_sent(sent, f"{type(error).__name__}: {error}") from error


def stamped_envelopes(registry: Registry, middleware: Sequence[Middleware], envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Return the envelopes of schedules' jobs as the middleware stamps them."""
    if not (layers := _stamping(middleware)):
        return [*envelopes]
    return _stamp(layers, tuple(EnqueueCall(envelope, registry.get(envelope.job)) for envelope in envelopes))


def has_stamp(middleware: Sequence[Middleware]) -> bool:
    return bool(_stamping(middleware))


def _stamping(middleware: Sequence[Middleware]) -> list[Middleware]:
    return [layer for layer in middleware if type(layer).stamp is not Middleware.stamp]


def _stamped(layers: Sequence[Middleware], calls: list[Call[Any]]) -> list[Call[Any]]:
    if not layers or not calls:
        return calls
    envelopes = _stamp(layers, tuple(EnqueueCall(call.envelope, call.job_type, call.given) for call in calls))
    return [call if envelope is call.envelope else call.stamped(envelope) for call, envelope in zip(calls, envelopes, strict=True)]


def _stamp(layers: Sequence[Middleware], calls: tuple[EnqueueCall, ...]) -> list[Envelope]:
    """Return the envelopes as the middleware stamps them, in the same order: middleware cannot reorder a tuple."""
    if calls:
        for layer in layers:
            layer.stamp(calls)
    return [call.to_envelope() for call in calls]
