"""Defines `JobContext`, which gives a run access to its job, attempt, cancellation and progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

from taskflow.model.clock import SystemClock, instant_of
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.errors import TaskflowError
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.progress import Progress

OnProgress = Callable[[Progress], None]


class JobContext:
    """The context of a running job. A job's function receives it if its first parameter is annotated
    with this class. Elsewhere, `current_job()` returns it.

    `state`  the value that the worker's lifespan yielded, or None
    """

    __slots__ = ("_cancelled", "_lease", "_on_progress", "state")

    def __init__(
        self,
        lease: Lease | None = None,
        *,
        job_name: str = "",
        queue: str = "default",
        state: Any = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._lease = lease or _no_lease(job_name, queue)
        self._on_progress = on_progress
        self._cancelled: threading.Event | None = None
        self.state = state

    @property
    def job_name(self) -> str:
        """The job's name."""
        return self._lease.envelope.job

    @property
    def queue(self) -> str:
        """The queue from which the job was taken."""
        return self._lease.envelope.queue

    @property
    def job_id(self) -> str:
        """The job's id as text. Use it as an idempotency key for external systems."""
        return id_text(self._lease.envelope.id)

    @property
    def epoch(self) -> int:
        """A number that rises with every lease of the job. Use it as a fencing token for external systems."""
        return self._lease.epoch

    @property
    def attempt(self) -> int:
        """The number of this attempt, starting at 1."""
        return self._lease.attempt

    @property
    def max_attempts(self) -> int:
        """The number of the last attempt. If it fails, the job fails."""
        return self._lease.envelope.max_attempts

    @property
    def created_at(self) -> datetime:
        """When the job was enqueued, by the store's clock, as an aware datetime in UTC."""
        return instant_of(self._lease.created_at)

    @property
    def scheduled_for(self) -> datetime | None:
        """The time for which a schedule added this job, in the schedule's time zone, or None if no schedule
        added it. It stays the same if the job runs late or is retried."""
        from taskflow.model.schedule_plan import scheduled_for

        return scheduled_for(self._lease.envelope.headers)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that were sent with the job."""
        return self._lease.envelope.headers

    @property
    def cancelled(self) -> threading.Event:
        """An event that is set when the run is asked to stop. Plain functions
        should check it, because their threads cannot be interrupted."""
        if self._cancelled is None:
            with _making:  # the event loop may read it while a thread creates it
                self._cancelled = self._cancelled or threading.Event()
        return self._cancelled

    def progress(self, fraction: float, note: str = "") -> DoneAwaitable:
        """Report the progress of the run.

        `fraction`  how much of the work is done, from 0 to 1
        `note`      text to show with it; anything beyond 4,096 characters is cut off

        The report takes effect at once, even from a thread, so `await` is optional. Other processes see it within about a second. Raises
        ValueError if `fraction` is out of range, and TypeError for an argument of the wrong type.
        """
        progress = Progress.checked(fraction, note)
        if self._on_progress is not None:
            self._on_progress(progress)
        return _DONE

    def __repr__(self) -> str:
        return f"<JobContext {self.job_name} {self.job_id} attempt {self.attempt} of {self.max_attempts}>"


class DoneAwaitable:
    """An awaitable that is already done, so that its caller may await it or not."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def _no_lease(job_name: str, queue: str) -> Lease:
    """Return a lease for the context of a function that is called outside a run. It stands for the first and only attempt."""
    envelope = Envelope(id=_new_id(), job=job_name, payload=b"", queue=queue, max_attempts=1)
    return Lease(envelope=envelope, epoch=1, claim=ClaimId(b"", 0, 0), created_at=_clock.wall())


def current_job() -> JobContext:
    """Return the context of the running job. Raises TaskflowError outside a job."""
    context = running.get()
    if context is None:
        raise TaskflowError(
            "current_job() was called outside of a running job: call it in a job's function, or in code that the function calls"
        )
    return context


running: Final[ContextVar[JobContext | None]] = ContextVar("taskflow_running_job", default=None)
_DONE: Final = DoneAwaitable()
_new_id: Final = IdFactory()
_clock: Final = SystemClock()
_making: Final = threading.Lock()
