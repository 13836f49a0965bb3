"""Counts what a worker does, for metrics and for the history. Workers count only if telemetry requires it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from taskflow.app.events import Event
from taskflow.broker.protocol import Broker
from taskflow.model.measures import Measures, add_up, measure_of, pack_measures, sum_of, unpack_measures
from taskflow.model.verdict import Completed, HandedBack, Settled, Settlement, Succeeded, Verdict
from taskflow.worker.events import BrokerCallFailed, LeaseRevoked, RunEnded, VerdictIgnored
from taskflow.worker.lease_table import HeldLease

RECORD_INTERVAL: Final = 60.0
"""Seconds between two records in the history. A record that the store hasn't acknowledged by then is given up, because it may have been
stored after all."""

RECORD_TIMEOUT: Final = 2.0
"""Seconds that a record may take. Heartbeats wait for it."""


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one or more workers since they started, and their current state.

    `measures`       the measures, packed by `pack_measures`
    `broker_errors`  how many calls to the broker have failed, by operation
    `leases_lost`    how many leases were lost
    `busy`, `free`   the numbers of busy and free slots
    `loop_lag`       seconds for which the event loop has not responded
    """

    measures: bytes
    broker_errors: dict[str, int] = {}
    leases_lost: int = 0
    busy: int = 0
    free: int = 0
    loop_lag: float = 0.0

    def plus(self, other: WorkerFacts) -> WorkerFacts:
        return WorkerFacts(
            measures=pack_measures(sum_of([unpack_measures(self.measures), unpack_measures(other.measures)])),
            broker_errors=dict(Counter(self.broker_errors) + Counter(other.broker_errors)),
            leases_lost=self.leases_lost + other.leases_lost,
            busy=self.busy + other.busy,
            free=self.free + other.free,
            loop_lag=max(self.loop_lag, other.loop_lag),
        )

    def ended(self) -> WorkerFacts:
        """Return the facts to keep once the worker has ended: only its counts."""
        return msgspec.structs.replace(self, busy=0, free=0, loop_lag=0.0)


def pack_facts(facts: WorkerFacts) -> bytes:
    return msgspec.msgpack.encode(facts)


def unpack_facts(packed: bytes) -> WorkerFacts:
    """Decode packed facts. Return empty facts if they can't be read: a job may have written to the worker's socket."""
    try:
        return msgspec.msgpack.decode(packed, type=WorkerFacts)
    except (msgspec.MsgspecError, UnicodeError):
        return WorkerFacts(measures=b"")


class WorkerMeasures:
    """Counts a worker's runs as they are settled, its failed broker calls and its lost leases. Any thread may read the counts."""

    def __init__(self, facts: Callable[[], tuple[int, int, float]], *, records: bool, deploy: str = "") -> None:
        """`facts` returns the numbers of busy and free slots, and the seconds for which the event loop has been blocked. If `records` is
        True, the history is recorded too, under the name `deploy`."""
        self._facts = facts
        self._records = records
        self._deploy = deploy
        self._lock = threading.Lock()
        self._recent, self._total = Measures(), Measures()
        self._errors: dict[str, int] = {}
        self._lost = 0
        self._number = 0
        self._pending: tuple[bytes, bytes, float] | None = None
        self._recorded_at = time.monotonic()

    def settled(self, holdings: Sequence[HeldLease | None], batch: Sequence[Settlement], answers: Sequence[Settled]) -> None:
        """Count the settlements of a batch that took effect. Those with the same queue, job and verdict are counted together."""
        alike = defaultdict[tuple[str, str, type[Verdict]], tuple[list[int], list[float]]](lambda: ([], []))
        for holding, settlement, answer in zip(holdings, batch, answers, strict=True):
            if holding is None or answer not in _COUNTED:
                continue
            lease, verdict = holding.lease, settlement.verdict
            envelope, kind = lease.envelope, type(verdict)
            if type(verdict) is Completed:
                kind = Succeeded if answer is Settled.COMMITTED else type(verdict.otherwise)
            waits, times = alike[envelope.queue, envelope.job, kind]
            waits.append(lease.waited)
            times.append(settlement.ran_for)
        with self._lock:
            for (queue, job, kind), (waits, times) in alike.items():
                add_up(self._recent, {(queue, job): measure_of(name_of(kind), waits, times)})

    def on_event(self, event: Event) -> None:
        if type(event) is RunEnded:  # by far the most frequent event
            return
        match event:
            case BrokerCallFailed(operation=call):
                with self._lock:
                    self._errors[call] = self._errors.get(call, 0) + 1
            case LeaseRevoked() | VerdictIgnored():
                with self._lock:
                    self._lost += 1

    def facts(self) -> WorkerFacts:
        busy, free, lag = self._facts()
        with self._lock:
            measures = pack_measures(sum_of([self._total, self._recent]))
            return WorkerFacts(
                measures=measures, broker_errors=dict(self._errors), leases_lost=self._lost, busy=busy, free=free, loop_lag=lag
            )

    async def record(self, broker: Broker, session: bytes, *, at_once: bool = False) -> None:
        """Add what was counted since the last record to the history, once a minute, or now if `at_once`. If the store does not answer, the
        next call tries again. Errors are caught, because they would end the heartbeats, whose thread calls this."""
        now = time.monotonic()
        if self._pending is None and self._records and (at_once or now >= self._recorded_at + RECORD_INTERVAL):
            with self._lock:
                recent, self._recent = self._recent, Measures()
                add_up(self._total, recent)
            self._recorded_at = now
            self._number += 1
            if recent:
                for measure in recent.values():
                    measure.deploys = {self._deploy: measure.number} if self._deploy else {}
                self._pending = session + self._number.to_bytes(4, "big"), pack_measures(sum_of([recent])), now
        if (pending := self._pending) is not None:  # a lost session's heartbeat thread may also be sending the record
            record_id, packed, begun = pending
            try:
                if now < begun + RECORD_INTERVAL:
                    async with asyncio.timeout(RECORD_TIMEOUT):
                        await broker.admin.record_measures(record_id, packed)
            except Exception:  # includes refusals, such as a missing right, and bugs
                self.on_event(BrokerCallFailed("recording the history", "", 1))
            else:
                self._pending = None


_COUNTED: Final = (Settled.OK, Settled.COMMITTED)


def name_of(verdict: type[Verdict]) -> str:
    """Return a verdict's name in metrics: "succeeded", "handed_back" and so on."""
    return "handed_back" if verdict is HandedBack else verdict.__name__.lower()
