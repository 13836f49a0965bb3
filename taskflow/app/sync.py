"""Sends many calls from code without an event loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from taskflow.app.app import app
from taskflow.app.call import Call
from taskflow.app.enqueue_batches import Batches, Sent
from taskflow.app.handle import JobHandle
from taskflow.app.portal import refuse_inside_a_loop, run_sync

R = TypeVar("R")


def enqueue_sync(calls: Iterable[Call[R]]) -> list[JobHandle[R]]:
    """Like `enqueue`, for code without an event loop. Raises RuntimeError inside a running one. The iterable is read in this thread."""
    refuse_inside_a_loop("enqueue_sync()", "await enqueue()")
    sent = Sent[R]()
    for batch in Batches(calls):
        run_sync(app.send_batch(batch, sent))
    return sent.handles
