"""The context of a run: job, attempt, deadline, cancellation and progress."""

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
    """The running job. It is passed to a first parameter with this annotation, and `current_job()` returns it.

    `job_id`        the id as text: an idempotency key for external systems
    `epoch`         rises with every lease of the job: a fencing token for external systems
    `attempt`       1 for the first; `max_attempts` is the last one
    `created_at`    when the job was enqueued, by the store's clock; aware
    `headers`       str to str, as sent
    `state`         the value that the worker's lifespan yielded, else None
    `cancelled`     set when the run is asked to stop. Plain functions in threads check it, because threads cannot be interrupted
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
        return self._lease.envelope.job

    @property
    def queue(self) -> str:
        return self._lease.envelope.queue

    @property
    def job_id(self) -> str:
        return id_text(self._lease.envelope.id)

    @property
    def epoch(self) -> int:
        return self._lease.epoch

    @property
    def attempt(self) -> int:
        return self._lease.attempt

    @property
    def max_attempts(self) -> int:
        return self._lease.envelope.max_attempts

    @property
    def created_at(self) -> datetime:
        return instant_of(self._lease.created_at)

    @property
    def headers(self) -> Mapping[str, str]:
        return self._lease.envelope.headers

    @property
    def cancelled(self) -> threading.Event:
        if self._cancelled is None:
            with _making:  # the event loop may read it while a thread creates it
                self._cancelled = self._cancelled or threading.Event()
        return self._cancelled

    def progress(self, fraction: float, note: str = "") -> DoneAwaitable:
        """Report how far the run is, from 0 to 1, with a note. A note longer than 4,096 characters is cut off.

        The report takes effect at once, also from a thread; `await` is optional. Others see it within about a second.
        """
        progress = Progress.checked(fraction, note)
        if self._on_progress is not None:
            self._on_progress(progress)
        return _DONE

    def __repr__(self) -> str:
        return f"<JobContext {self.job_name} {self.job_id} attempt {self.attempt} of {self.max_attempts}>"


class DoneAwaitable:
    """An awaitable that is already done."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def _no_lease(job_name: str, queue: str) -> Lease:
    """Return a lease for a call outside of any run. Its context shows the first and only attempt."""
    envelope = Envelope(id=_new_id(), job=job_name, payload=b"", queue=queue, max_attempts=1)
    return Lease(envelope=envelope, epoch=1, claim=ClaimId(b"", 0, 0), created_at=_clock.wall())


def current_job() -> JobContext:
    """Return the context of the running job. Raises TaskflowError outside of a job."""
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
