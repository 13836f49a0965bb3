"""Registers a worker with the broker (name, deploy, queues, jobs, failing calls), and reports the deaths of other workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from typing import Final

import anyio
import msgspec

from taskflow.app.events import Events
from taskflow.broker.protocol import Broker
from taskflow.broker.retry import retry
from taskflow.model.errors import BrokerError, BrokerUnavailable, SessionLost
from taskflow.model.fingerprint import MAX_DEPLOY
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.session import MAX_NAMES, Beat, Session
from taskflow.worker.events import BrokerCallFailed, BrokerRecovered
from taskflow.worker.options import WorkerOptions

MIN_FAILURES: Final = 3  # the number of consecutive failures after which the trouble is shown. Fewer are common when a store restarts.
SHOW_TIMEOUT: Final = 1.0  # seconds that reporting trouble may take. The failing operation waits for it.
MAX_TROUBLE_LENGTH: Final = 500
ANSWER_TIMEOUT: Final = 5.0
PAUSES: Final = Pauses(0.1, 0.5)


def worker_name() -> str:
    """Return the name under which this process registers its sessions."""
    return f"{socket.gethostname()}:{os.getpid()}"


def deploy_name() -> str:
    """Return the deploy's name from the environment variable TASKFLOW_DEPLOY, cut to `MAX_DEPLOY` characters. Return "" if it's not set."""
    return os.environ.get("TASKFLOW_DEPLOY", "")[:MAX_DEPLOY]


def new_session(options: WorkerOptions, jobs: tuple[str, ...], *, wants_ends: bool) -> Session:
    return Session(
        id=secrets.token_bytes(16),
        name=worker_name(),
        ttl=options.ttl,
        queues=options.queues.names,
        concurrency=options.concurrency,
        wants_ends=wants_ends,
        jobs=jobs if len(jobs) <= MAX_NAMES else (),
        deploy=deploy_name(),
    )


class Registration:
    """A session's registration in the store. If the worker's calls keep failing, it includes the reason, which `taskflow doctor` shows."""

    def __init__(self, broker: Broker, session: Session, events: Events) -> None:
        self.broker = broker
        self.session = session
        self._events = events
        self._shown = dict[str, str]()

    async def record_failure(self, operation: str, error: Exception, retries: Retries) -> float:
        """Emit an event for a failed call. From `MIN_FAILURES` on, also register the reason. Return the seconds until the next attempt."""
        pause, why = retries.failed(), str(error)
        self._events.emit(BrokerCallFailed(operation, why, retries.failures))
        if retries.failures >= MIN_FAILURES and self._shown.get(operation) != why:
            await self._show({**self._shown, operation: why})
        return pause

    async def record_success(self, operation: str, retries: Retries) -> None:
        """Emit an event for a call that succeeded after failures, and remove the reason from the registration."""
        retries.succeeded()
        self._events.emit(BrokerRecovered(operation))
        if operation in self._shown:
            await self._show({other: why for other, why in self._shown.items() if other != operation})

    async def update(self, surplus: int) -> None:
        """Register the number of leases that need no slot, if it has changed."""
        if surplus != self.session.surplus:
            self.session = msgspec.structs.replace(self.session, surplus=surplus)
            await self._show(self._shown)

    async def _show(self, troubles: dict[str, str]) -> None:
        text = "; ".join(f"{operation} fails: {why}" for operation, why in troubles.items())[:MAX_TROUBLE_LENGTH]
        with contextlib.suppress(BrokerError), anyio.move_on_after(SHOW_TIMEOUT):
            await self.broker.register(msgspec.structs.replace(self.session, trouble=text))
            self._shown = troubles


async def report_death(broker: Broker, session_id: bytes, cause: str) -> bool:
    """Report that a session's process died, so that its jobs count as crashed with this cause ("SIGSEGV"). Return False if this failed."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            beat = Beat.of_death(session_id, cause)
            await retry(lambda: broker.beat(beat), PAUSES, on=BrokerUnavailable)
    except SessionLost:
        return True
    except (BrokerError, TimeoutError):
        return False
    return True
