"""What happens in a worker, told to whoever subscribes: logs today, metrics and traces by the same events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from taskflow.model.envelope import Lease
from taskflow.model.safe_log import log_safely
from taskflow.model.verdict import Failed, Verdict

log: Final = logging.getLogger("taskflow.worker")


# gc=False, and so for all that follow: made by the thousand, and in no circle, they need not be looked at by the collector.
class Event(msgspec.Struct, frozen=True, gc=False):
    """The root of all that follows."""


class Started(Event, frozen=True):
    """A run begins."""

    lease: Lease


class Ended(Event, frozen=True):
    """A run has come to a verdict, which is about to be settled. `ran_for` in seconds."""

    lease: Lease
    verdict: Verdict
    ran_for: float


class Printed(Event, frozen=True):
    """A child process has written a line to its "stdout" or "stderr", `stream`, in the run of that lease; None between two runs.

    Told from a thread of its own, since the loop may be busy. A run's lines come before its `Ended`.
    """

    lease: Lease | None
    pid: int
    stream: str
    line: str


class LeaseLost(Event, frozen=True):
    """The job belongs to another worker now, or was ended: what its run here comes to will not count."""

    lease: Lease


class NotCounted(Event, frozen=True):
    """What a run came to, told by `Ended`, did not count: the job belonged to another worker by then, or had been ended."""

    lease: Lease
    verdict: Verdict


class OnTrial(Event, frozen=True):
    """The job's worker died the last time. It begins apart from others, and nothing else begins here for so many `seconds`, or until it
    ends."""

    lease: Lease
    seconds: float


class HandedBackOften(Event, frozen=True):
    """The job has been handed back so often, without an outcome, that it now waits before each run: see `Rules.hand_back_backoff`."""

    lease: Lease


class HeldUp(Event, frozen=True):
    """What a run came to, told by `Ended`, cannot be written as long as somebody's open transaction in the store, none of ours, has the
    job or its key. It is offered again every few seconds. Told once for each run."""

    lease: Lease


class Unwritable(Event, frozen=True):
    """What a run came to, told by `Ended`, is nothing that the store can write: the job has failed by that, `instead`."""

    lease: Lease
    verdict: Verdict
    instead: Failed


class VerdictsLost(Event, frozen=True):
    """The broker could not be told what the runs of these leases came to, and the worker tries no longer: they run again, unless it had
    heard and its answer was lost."""

    leases: tuple[Lease, ...]
    why: str


class SessionOpened(Event, frozen=True):
    """The worker is known to the broker, by that name, and by the session's id."""

    name: str
    id: bytes


class SessionEnded(Event, frozen=True):
    """The broker, or the worker itself, has given the session up. A new one follows, unless the worker is winding down."""

    name: str
    why: str
    is_followed: bool = True


class PartFailed(Event, frozen=True):
    """A part of the worker, named like "Fetcher.run", has failed with an error that it did not expect. The session lives on, and the part
    starts again after `pause` seconds."""

    part: str
    error: BaseException
    pause: float


class ReportDropped(Event, frozen=True):
    """The progress that a run has reported cannot be written: the beat goes out without it."""

    lease: Lease
    why: str


class AwaitsBroker(Event, frozen=True):
    """The broker does not answer at the worker's start; the worker tries again for at most `seconds`."""

    why: str
    seconds: float


class BrokerTrouble(Event, frozen=True):
    """A verb did not reach the broker; it is tried again. `times` in a row, the first is 1."""

    doing: str
    why: str
    times: int


class BrokerBack(Event, frozen=True):
    """The verb reached the broker again."""

    doing: str


class NotLeft(Event, frozen=True):
    """A worker that has wound down could not tell the broker so: what it holds still is free when it has been silent for `ttl` seconds."""

    name: str
    why: str
    ttl: float


class WindingDown(Event, frozen=True):
    """No more jobs are claimed; so many run still, for at most `grace` seconds."""

    running: int
    grace: float


class StillRunning(Event, frozen=True):
    """A run has not ended although it was asked to, `asked_for` seconds ago, because it was `why`: "timed out", for example.

    Told when it has had its time to end, and then each time it has taken ten times as long.
    """

    lease: Lease
    asked_for: float
    why: str


class Broken(Event, frozen=True):
    """The file descriptors that the worker stands on are not its own any more: a job has closed them, and what is written to them
    now may end up in a stranger's file. Told from whichever thread sees it, since the loop may not be there to tell it."""

    why: str


class LoopStalled(Event, frozen=True):
    """The worker's event loop has made no progress for `seconds`: it is in code that does not give it back.

    `lease` is of the job whose code that is, None when it is no job's; `stack` the code's own lines. Told after 1 s, 10 s, 100 s.
    This and the next three are told from a thread of their own, since the loop is not there to tell them.
    """

    lease: Lease | None
    seconds: float
    stack: str


class Starved(Event, frozen=True):
    """The worker got next to no processor time for `seconds`: its loop made no progress although no code held it up, or its threads waited
    for a processor. No job is to blame. When it took longer than the `ttl`, the leases have lapsed."""

    seconds: float
    ttl: float


class LoopMoves(Event, frozen=True):
    """It goes on, after `LoopStalled` or `Starved` was told of it."""

    seconds: float


class InterpreterHeld(Event, frozen=True):
    """No Python code of this process has run for `seconds`, told when it was over: no beat went out either, and when that took longer
    than the `ttl` the leases have lapsed.

    `is_computed`  the time was spent by C code that kept the interpreter lock: `lease` and `stack` are of the thread that spent most.
                   Otherwise the process was stopped, or C code waited with the lock kept, and they are what the loop was about.
    """

    lease: Lease | None
    seconds: float
    ttl: float
    is_computed: bool
    stack: str


class StalledForGood(Event, frozen=True):
    """The loop has made no progress for as long as `stall_limit` says: the worker beats no more, so that others take its jobs.

    `stacks` are those of all threads. What follows is up to whoever runs the worker: the command ends its process.
    """

    lease: Lease | None
    seconds: float
    stacks: str


Subscriber = Callable[[Event], None]


class Events:
    """Tells every subscriber, in the order of subscription. One that raises is reported, and does not hold up work."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers

    def tell(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log_safely(log.exception, "a subscriber to the worker's events failed on %r", type(event).__name__)
