"""What a run knows of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.model.clock import instant_of
from taskflow.model.envelope import Lease
from taskflow.model.errors import TaskflowError
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.record import Progress

OnProgress = Callable[[Progress], None]


class JobContext:
    """The running job, as it sees itself: injected into a first parameter annotated so, or got by `current_job()`.

    `job_id`        the id as text: the idempotency key for effects outside
    `epoch`         rises with every lease of the job: a fencing number for the outside world
    `attempt`       1 for the first; `max_attempts` the last that may fail
    `created_at`    when it was enqueued, aware, by the store's clock
    `headers`       str to str, as sent
    `state`         what the worker's lifespan yielded, else None
    `cancelled`     set when the run is asked to stop: for plain functions in threads, which cannot be interrupted
    """

    __slots__ = (
        "_on_progress",
        "attempt",
        "cancelled",
        "created_at",
        "epoch",
        "headers",
        "job_id",
        "job_name",
        "max_attempts",
        "queue",
        "state",
    )

    def __init__(
        self,
        lease: Lease | None = None,
        *,
        job_name: str = "",
        queue: str = "default",
        state: Any = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.job_name = lease.envelope.job if lease else job_name
        self.queue = lease.envelope.queue if lease else queue
        self.job_id = id_text(lease.envelope.id if lease else _new_id())
        self.epoch = lease.epoch if lease else 1
        self.attempt = lease.attempt if lease else 1
        self.max_attempts = lease.envelope.max_attempts if lease else 1
        self.created_at = instant_of(lease.created_at) if lease else datetime.now(UTC)
        self.headers: Mapping[str, str] = lease.envelope.headers if lease else {}
        self.state = state
        self.cancelled = threading.Event()
        self._on_progress = on_progress

    def progress(self, fraction: float, note: str = "") -> Done:
        """Say how far the run is, from 0 to 1. It takes effect when called, also from a thread; `await` is for looks."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress({fraction!r}): it takes a fraction from 0 to 1")
        if self._on_progress is not None:
            self._on_progress(Progress(float(fraction), note))
        return _DONE

    def __repr__(self) -> str:
        return f"<JobContext {self.job_name} {self.job_id} attempt {self.attempt} of {self.max_attempts}>"


class Done:
    """An awaitable that is done already."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def current_job() -> JobContext:
    """The context of the job that is running here; a TaskflowError outside of one."""
    context = running.get()
    if context is None:
        raise TaskflowError("current_job() was called outside of a running job: call it from a job's function, or from what that calls")
    return context


running: Final[ContextVar[JobContext | None]] = ContextVar("taskflow_running_job", default=None)
_DONE: Final = Done()
_new_id: Final = IdFactory()
