"""Events that subscribers receive: the base class of all of them, the events of senders, and their delivery."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text
from taskflow.model.printable import log_safely

log: Final = logging.getLogger("taskflow")


# gc=False: thousands of events are created, and they never form a cycle, so the collector can skip them.
class Event(msgspec.Struct, frozen=True, gc=False):
    """The base class of all events. Its properties describe the job that the event is about, and are None if it isn't about a job."""

    @property
    def job(self) -> str | None:
        """The job's name."""
        return None if (envelope := self._envelope) is None else envelope.job

    @property
    def job_id(self) -> str | None:
        """The job's id as text."""
        return None if (envelope := self._envelope) is None else id_text(envelope.id)

    @property
    def queue(self) -> str | None:
        """The job's queue."""
        return None if (envelope := self._envelope) is None else envelope.queue

    @property
    def attempt(self) -> int | None:
        """The number of the attempt, starting at 1. None outside of a run."""
        return None

    @property
    def _envelope(self) -> Envelope | None:
        return getattr(self, "envelope", None)


class JobSent(Event, frozen=True):
    """The store has answered a call. If the call was sent in a transaction, this event comes before the commit.

    `id`      the id of the job that was added, or of the job that already had the call's key
    `is_new`  False if no job was added
    """

    envelope: Envelope
    id: bytes
    is_new: bool

    @property
    def job_id(self) -> str:
        return id_text(self.id)


class SendingFailed(Event, frozen=True):
    """A call was not sent, or its sender does not know whether it was. `why` names the error that the sender gets."""

    envelope: Envelope
    why: str


Subscriber = Callable[[Event], None]


class Events:
    """Passes each event to all subscribers, in the order of subscription. If a subscriber raises, only its first error is logged."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers
        self._failed: list[Subscriber] = []

    def subscribe(self, *subscribers: Subscriber) -> None:
        self._subscribers += subscribers

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                if subscriber not in self._failed:
                    self._failed.append(subscriber)
                    message = "event subscriber %r failed on %s; its further errors are not logged"
                    log_safely(log.exception, message, subscriber, type(event).__name__)
