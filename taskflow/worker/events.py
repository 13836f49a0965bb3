"""The events of a worker. The log subscribes to them; metrics and traces can do the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from taskflow.model.envelope import Lease
from taskflow.model.safe_log import log_safely
from taskflow.model.verdict import Failed, Verdict

log: Final = logging.getLogger("taskflow.worker")


# Every event has gc=False: thousands are created and they never form a cycle, so the collector can skip them.
class WorkerEvent(msgspec.Struct, frozen=True, gc=False):
    """The base class of all events."""


class Started(WorkerEvent, frozen=True):
    """A run begins."""

    lease: Lease


class Ended(WorkerEvent, frozen=True):
    """A run has ended with a verdict, which the worker is about to settle. `ran_for` is in seconds."""

    lease: Lease
    verdict: Verdict
    ran_for: float


class Printed(WorkerEvent, frozen=True):
    """A child process has written a line. `stream` is "stdout" or "stderr". `lease` is that of the run, None between two runs.

    Sent from a separate thread, because the loop may be busy. The lines of a run precede its `Ended`.
    """

    lease: Lease | None
    pid: int
    stream: str
    line: str


class LeaseLost(WorkerEvent, frozen=True):
    """The job now belongs to another worker, or has ended. The outcome of its run here will not count."""

    lease: Lease


class NotCounted(WorkerEvent, frozen=True):
    """The store refused the verdict that `Ended` announced: by then the job belonged to another worker, or had ended."""

    lease: Lease
    verdict: Verdict


class OnTrial(WorkerEvent, frozen=True):
    """The job's worker died during its last run. After the first crash up to ten such jobs run together, later one runs alone. No other job
    starts here for `seconds`, or until they end.
    """

    lease: Lease
    seconds: float


class HandedBackOften(WorkerEvent, frozen=True):
    """The job was handed back so often without an outcome that it now waits before each run, see `Rules.hand_back_backoff`."""

    lease: Lease


class HeldUp(WorkerEvent, frozen=True):
    """The verdict that `Ended` announced cannot be written: an open transaction of another program holds the job or its key.

    The worker tries again every second. Sent once for each run.
    """

    lease: Lease


class Unwritable(WorkerEvent, frozen=True):
    """The store cannot write the verdict that `Ended` announced. The job has failed with `instead`."""

    lease: Lease
    verdict: Verdict
    instead: Failed


class VerdictsLost(WorkerEvent, frozen=True):
    """The worker gives up sending the verdicts of these leases to the broker.

    Their jobs run again, unless the broker has received the verdicts and only its answer was lost.
    """

    leases: tuple[Lease, ...]
    why: str


class SessionOpened(WorkerEvent, frozen=True):
    """The broker has registered the worker under `name` and the session's `id`."""

    name: str
    id: bytes


class SessionEnded(WorkerEvent, frozen=True):
    """The broker or the worker has ended the session. A new one follows, unless the worker is winding down."""

    name: str
    why: str
    is_followed: bool = True


class PartFailed(WorkerEvent, frozen=True):
    """A part of the worker, named like "Fetcher.run", has failed with an unexpected error.

    The session continues, and the part starts again after `pause` seconds.
    """

    part: str
    error: BaseException
    pause: float


class ReportDropped(WorkerEvent, frozen=True):
    """The store cannot write the progress that a run reported. The heartbeat is sent without it."""

    lease: Lease
    why: str


class AwaitsBroker(WorkerEvent, frozen=True):
    """The broker does not answer while the worker starts. The worker tries again for at most `seconds`."""

    why: str
    seconds: float


class BrokerTrouble(WorkerEvent, frozen=True):
    """A call to the broker failed, `times` in a row, counted from 1. The worker tries again."""

    doing: str
    why: str
    times: int


class BrokerBack(WorkerEvent, frozen=True):
    """The broker answers this kind of call again."""

    doing: str


class NotLeft(WorkerEvent, frozen=True):
    """A worker could not tell the broker that it has stopped. Its leases become free after `ttl` seconds without a heartbeat."""

    name: str
    why: str
    ttl: float


class WindingDown(WorkerEvent, frozen=True):
    """The worker claims no more jobs. `running` is the number of runs, which have at most `grace` seconds."""

    running: int
    grace: float


class StillRunning(WorkerEvent, frozen=True):
    """A run was asked to stop `asked_for` seconds ago and still runs. `why` is the reason, for example "timed out".

    Sent when its time to stop is over, and then each time it has taken ten times as long.
    """

    lease: Lease
    asked_for: float
    why: str


class Broken(WorkerEvent, frozen=True):
    """A job has closed file descriptors of the worker. Data written to them may end up in another file.

    Sent from the thread that notices it, because the loop may no longer run.
    """

    why: str


class LoopStalled(WorkerEvent, frozen=True):
    """The worker's event loop has made no progress for `seconds`: code in it does not return.

    `lease` is that of the blocking job, or None if no job's code blocks. `stack` holds the lines of that code.
    Sent after 1 s, 10 s and 100 s. This event and the next four are sent from a separate thread, because the loop cannot send them.
    """

    lease: Lease | None
    seconds: float
    stack: str


class Starved(WorkerEvent, frozen=True):
    """The worker got almost no processor time for `seconds`. No job is to blame.

    Its loop made no progress although no code blocked it, or its threads waited for a processor. After more than `ttl` seconds the leases
    have lapsed.
    """

    seconds: float
    ttl: float


class LoopMoves(WorkerEvent, frozen=True):
    """The loop makes progress again, after `LoopStalled` or `Starved`."""

    seconds: float


class InterpreterHeld(WorkerEvent, frozen=True):
    """No Python code of this process ran for `seconds`. Sent afterwards.

    No heartbeat was sent in that time. After more than `ttl` seconds the leases have lapsed.

    `is_computed`  True if C code computed and kept the interpreter lock: `lease` and `stack` are those of the thread that computed most.
                   False if the process was stopped, or if C code waited while it held the lock: they are those of the loop.
    """

    lease: Lease | None
    seconds: float
    ttl: float
    is_computed: bool
    stack: str


class StalledForGood(WorkerEvent, frozen=True):
    """The loop has made no progress for `stall_limit` seconds. The worker stops its heartbeat, so that other workers take its jobs.

    `stacks` holds the stacks of all threads. The `taskflow worker` command then ends its process; an application continues.
    """

    lease: Lease | None
    seconds: float
    stacks: str


Subscriber = Callable[[WorkerEvent], None]


class Events:
    """Calls every subscriber, in the order of subscription. If one raises, the error is logged and the worker continues."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers

    def tell(self, event: WorkerEvent) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log_safely(log.exception, "a subscriber to the worker's events failed on %r", type(event).__name__)
