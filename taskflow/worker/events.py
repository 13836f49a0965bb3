"""The events that a worker emits. The log subscribes to them; metrics and traces can do the same."""

from __future__ import annotations

from taskflow.app.events import Event
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.verdict import Completed, Failed, Verdict


class WorkerEvent(Event, frozen=True):
    """The base class of a worker's events."""

    @property
    def attempt(self) -> int | None:
        return None if (lease := self._lease) is None else lease.attempt

    @property
    def _envelope(self) -> Envelope | None:
        return None if (lease := self._lease) is None else lease.envelope

    @property
    def _lease(self) -> Lease | None:
        return getattr(self, "lease", None)


class RunEnded(WorkerEvent, frozen=True):
    """A run has ended. The worker then sends its verdict to the broker. `ran_for` is in seconds."""

    lease: Lease
    verdict: Verdict
    ran_for: float


class ChildPrinted(WorkerEvent, frozen=True):
    """A child process has printed a line. `stream` is "stdout" or "stderr". `lease` is the lease of the run, or None between two runs. Sent
    from a separate thread. A run's lines are sent before its `RunEnded`."""

    lease: Lease | None
    pid: int
    stream: str
    line: str


class LeaseRevoked(WorkerEvent, frozen=True):
    """The job now belongs to another worker, or has ended. The outcome of its run in this worker will be ignored."""

    lease: Lease


class VerdictIgnored(WorkerEvent, frozen=True):
    """The store has ignored the verdict announced by `RunEnded`: the job had already ended, or belonged to another worker."""

    lease: Lease
    verdict: Verdict


class QuarantineStarted(WorkerEvent, frozen=True):
    """A job is starting again after its worker died during its last run. After a first crash, up to ten such jobs run together; after
    further crashes, a job runs alone. Until these jobs end, for at most `seconds`, no other job starts in this worker."""

    lease: Lease
    seconds: float


class HandedBackOften(WorkerEvent, frozen=True):
    """The job has been handed back so often without an outcome that it now waits before each run; see `Rules.hand_back_backoff`."""

    lease: Lease


class SettlementBlocked(WorkerEvent, frozen=True):
    """The verdict announced by `RunEnded` cannot be written yet, because another program's open transaction locks the job or its key. The
    worker tries again every second. Sent once per run."""

    lease: Lease


class CompletionRolledBack(WorkerEvent, frozen=True):
    """The run was completed in a transaction (`complete_in`) that was rolled back. In place of the verdict announced by `RunEnded`, the
    verdict `instead` has taken effect: the error that the job raised, or else a `taskflow.RolledBack` failure."""

    lease: Lease
    verdict: Completed
    instead: Verdict


class VerdictRejected(WorkerEvent, frozen=True):
    """The store cannot write the verdict announced by `RunEnded`, so the worker settles the job as failed, with the verdict `instead`."""

    lease: Lease
    verdict: Verdict
    instead: Failed


class VerdictsLost(WorkerEvent, frozen=True):
    """The worker has given up sending the verdicts of these leases. The jobs will run again, unless only the broker's answer was lost."""

    leases: tuple[Lease, ...]
    why: str


class SessionOpened(WorkerEvent, frozen=True):
    """The broker has registered a session of the worker, under this `name` and `id`."""

    name: str
    id: bytes


class SessionEnded(WorkerEvent, frozen=True):
    """The broker or the worker has ended the session. `is_followed` is False if no other begins: the worker finishes or winds down."""

    name: str
    why: str
    is_followed: bool = True


class ServiceFailed(WorkerEvent, frozen=True):
    """A service of the worker, for example "Fetcher.run", has failed unexpectedly. It restarts after `pause` seconds."""

    service: str
    error: BaseException
    pause: float


class ReportDropped(WorkerEvent, frozen=True):
    """The store cannot write the progress that a run reported, so the heartbeat is sent without it."""

    lease: Lease
    why: str


class WaitingForBroker(WorkerEvent, frozen=True):
    """The broker is not answering while the worker starts. The worker keeps trying for at most `seconds`."""

    why: str
    seconds: float


class BrokerCallFailed(WorkerEvent, frozen=True):
    """A call to the broker, for example "claiming", has failed `times` times in a row. The worker will try again."""

    operation: str
    why: str
    times: int


class BrokerRecovered(WorkerEvent, frozen=True):
    """The operation, for example "claiming", has succeeded again."""

    operation: str


class ScheduleFired(WorkerEvent, frozen=True):
    """The worker has fired a schedule, `late_by` seconds later than its time plus jitter. If `is_added`, `id` is the new job's id.
    Otherwise it's an existing job's: `overlap` ruled out a second job while that one is live, or the store already had this job."""

    name: str
    id: bytes
    is_added: bool
    late_by: float


class ScheduleMissed(WorkerEvent, frozen=True):
    """The schedule has missed `count` firings, because they were too late for its `catch_up` or `max_delay`. If more than 100 were
    missed, `count` may be lower than the actual number."""

    name: str
    count: int


class ScheduleFailed(WorkerEvent, frozen=True):
    """The worker cannot fire the schedule, or cannot declare it because its name is taken. Sent again only if the kind of error changes."""

    name: str
    why: str


class LeaveFailed(WorkerEvent, frozen=True):
    """The worker could not notify the broker that it is stopping. Its leases lapse after `ttl` seconds without a heartbeat."""

    name: str
    why: str
    ttl: float


class WindingDown(WorkerEvent, frozen=True):
    """The worker is winding down and claims no more jobs. The `running` runs have at most `grace` seconds to finish."""

    running: int
    grace: float


class StillRunning(WorkerEvent, frozen=True):
    """A run that was asked to stop `asked_for` seconds ago is still running. `why` is the reason for stopping it, for example "timed out".
    Sent when the time allowed for stopping is over, then after 10 times that time, 100 times, and so on."""

    lease: Lease
    asked_for: float
    why: str


class DescriptorsClosed(WorkerEvent, frozen=True):
    """A job has closed file descriptors that belong to the worker. Data written to them may end up in another file. Sent from the thread
    that notices this."""

    why: str


class LoopStalled(WorkerEvent, frozen=True):
    """The worker's event loop has made no progress for `seconds`. `lease` is the lease of the job whose code does not return. It's None
    if no job is blocking the loop: the machine may be overloaded, or threads may be competing for the interpreter lock. `stack` shows
    where the loop is. Sent after 1 s, 10 s, 100 s and so on. This event and the next three are sent from a separate thread."""

    lease: Lease | None
    seconds: float
    stack: str


class LoopResumed(WorkerEvent, frozen=True):
    """The event loop is making progress again after a stall that was reported. `seconds` is how long the stall lasted."""

    seconds: float


class InterpreterBlocked(WorkerEvent, frozen=True):
    """No Python code in this process ran for `seconds`. The event is sent afterwards. If `seconds` exceeds `ttl`, the leases have lapsed.

    `is_computed`  True if C code held the interpreter lock while computing: `lease` and `stack` then belong to the thread that used the
                   most CPU time. False if the process was stopped, the machine is overloaded, or C code held the lock while
                   waiting: `lease` and `stack` then belong to the event loop's thread
    """

    lease: Lease | None
    seconds: float
    ttl: float
    is_computed: bool
    stack: str


class StalledForGood(WorkerEvent, frozen=True):
    """The event loop has made no progress for `stall_limit` seconds. The worker stops its heartbeat so that other workers take its jobs.
    `stacks` holds the stacks of all threads. The `taskflow worker` command then exits; an application that runs a worker continues."""

    lease: Lease | None
    seconds: float
    stacks: str
