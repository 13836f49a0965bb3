"""The peers as contenders of each workload."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.marks import A_DOUBLE
from benchmarks.peers import runs
from benchmarks.peers.catalogue import PEERS, Peer, of_store
from benchmarks.peers.environments import EnvironmentFailed, default_cache
from benchmarks.report import Contender, ContenderFailed, Measured, of_lags, of_latencies
from benchmarks.stores import Store

SLOW_TO_ASK: Final = 16
"""The number of round trips of a peer that polls for results only now and then."""


MAX_PROCESSES: Final = 50
"""The maximum number of idle workers of a peer. Each is one or more processes, and two hundred large ones do not fit into memory."""

LONE_JOBS: Final = 96

CALLS: Final = "calls a job"
"""Commands that a client sends, or transactions. For a peer on Redis also the commands of its scripts, which the server counts too."""

SERVER_CPU: Final = "server CPU µs/job"

IDLE_TRIPS: Final = {"redis": "commands/s", "postgres": "transactions/s"}
IDLE_CPU: Final = "CPU of a worker, %"
IDLE_MEMORY: Final = "RSS of a worker, MB"


@dataclass(frozen=True)
class Rivals:
    """The peers that take part. `names` lists them (None: all), `repeats` limits how often each is measured, and `share` reduces the jobs.

    `only_rates`  True to measure only draining, and sending by callers
    """

    cache: Path = field(default_factory=default_cache)
    names: frozenset[str] | None = None
    repeats: int = 3
    share: float = 1.0
    only_rates: bool = False

    def drains(self, store: Store) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            return runs.drain(peer, store, self.cache, self._share_of(peer.jobs), peer.concurrency)

        return self._contenders(store, measure)

    def in_threads(self, store: Store) -> list[Contender]:
        """Return the peers whose jobs are plain functions in threads."""

        def measure(peer: Peer) -> Measured:
            return runs.drain(peer, store, self.cache, self._share_of(peer.jobs), peer.concurrency)

        return self._contenders(store, measure, lambda peer: peer.in_threads and not peer.variant)

    def callers(self, store: Store, callers: int) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            return runs.send_by_callers(peer, store, self.cache, self._share_of(10_000), callers)

        return self._contenders(store, measure, _sends_as_its_own)

    def bulk(self, store: Store) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            return runs.fill(peer, store, self.cache, self._share_of(max(10_000, 2 * peer.jobs)))

        return [] if self.only_rates else self._contenders(store, measure, _sends_as_its_own)

    def starts(self, store: Store, times: int, every: float) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            return of_latencies(runs.start_one_by_one(peer, store, self.cache, _aligned(self.share * times), every))

        return [] if self.only_rates else self._contenders(store, measure, _starts_as_its_own)

    def asks(self, store: Store, times: int) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            _, each = runs.ask(peer, store, self.cache, _aligned(self.share * (SLOW_TO_ASK if peer.polls_for_results else times)), 1)
            return of_latencies(each)

        return self._once(self._contenders(store, measure, lambda peer: peer.tells_results))

    def waiters(self, store: Store, waiters: int) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            jobs = _aligned(self.share * (400 if peer.polls_for_results else 2_000))
            took, _ = runs.ask(peer, store, self.cache, jobs, waiters)
            return {"round trips/s": jobs / took}

        return self._once(self._contenders(store, measure, lambda peer: peer.tells_results))

    def launches(self, store: Store) -> list[Contender]:
        return (
            [] if self.only_rates else self._contenders(store, lambda peer: {"s": runs.launch(peer, store, self.cache)}, _starts_as_its_own)
        )

    def idles(self, store: Store, seconds: float) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            told, cpu, memory = runs.idle(peer, store, self.cache, seconds)
            return {IDLE_TRIPS[store.name]: told / seconds, IDLE_CPU: 100 * cpu / seconds, IDLE_MEMORY: memory}

        return self._once(self._contenders(store, measure, _starts_as_its_own))

    def herds(self, store: Store, workers: int) -> list[Contender]:
        """Measure the time until a job's result, or until its first line for peers that don't notify callers of results."""

        def measure(peer: Peer) -> Measured:
            calls, cpu, each = runs.lone(peer, store, self.cache, workers, _aligned(self.share * LONE_JOBS))
            return {CALLS: calls, SERVER_CPU: 1e6 * cpu, **of_latencies(each)}

        takes_part = workers <= MAX_PROCESSES
        return self._once(self._contenders(store, measure, lambda peer: takes_part and (peer.asks or _tells_no_results(peer))))

    def groups(self, store: Store, jobs: int) -> list[Contender]:
        """Return those with groups and joins, each with as many jobs as it drains in a few seconds."""

        def measure(peer: Peer) -> Measured:
            return runs.flow(peer, store, self.cache, self._share_of(min(jobs, peer.jobs)))

        return self._once(self._contenders(store, measure, lambda peer: peer.joins))

    def joins(self, store: Store, jobs: int, flows: int) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            lags = sorted(1_000 * lag for lag in runs.joins(peer, store, self.cache, _aligned(jobs), flows))
            return {"join starts after ms": statistics.median(lags), "at most ms": lags[-1]}

        return self._once(self._contenders(store, measure, lambda peer: peer.joins))

    def plans(self, store: Store, instants: Callable[[], Sequence[float]]) -> list[Contender]:
        def measure(peer: Peer) -> Measured:
            return of_lags(runs.plan(peer, store, self.cache, instants))

        return self._once(self._contenders(store, measure, lambda peer: peer.plans))

    def _once(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Measure the contenders only in the first turn, because they take long and their figures are multiples of ours."""
        return [] if self.only_rates else [replace(contender, repeats=1) for contender in contenders]

    def _share_of(self, jobs: int) -> int:
        return _aligned(self.share * jobs)

    def _contenders(
        self, store: Store, measure: Callable[[Peer], Measured], takes_part: Callable[[Peer], bool] = lambda peer: True
    ) -> list[Contender]:
        peers = [peer for peer in of_store(store.name, self.names) if takes_part(peer)]
        return [Contender(peer.name, partial(_told, peer, measure), self.repeats) for peer in peers]


def _told(peer: Peer, measure: Callable[[Peer], Measured]) -> Mapping[str, float]:
    try:
        return measure(peer)
    except (EnvironmentFailed, AssertionError) as error:
        raise ContenderFailed(str(error)) from error


def _sends_as_its_own(peer: Peer) -> bool:
    """Return True for a program's first variant. Sending does not depend on results or on the worker, so it represents all variants."""
    return peer == next(other for other in PEERS if (other.program, other.store) == (peer.program, peer.store))


def _tells_no_results(peer: Peer) -> bool:
    return not any(other.asks for other in PEERS if (other.program, other.store) == (peer.program, peer.store)) and not peer.variant


def _starts_as_its_own(peer: Peer) -> bool:
    """Return True for a peer without a variant, so that a queue that fetches in batches is measured at its best."""
    return not peer.variant


def _aligned(jobs: float) -> int:
    return max(A_DOUBLE, int(jobs) // A_DOUBLE * A_DOUBLE)


NO_PEERS: Final = Rivals(names=frozenset())
