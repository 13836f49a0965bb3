"""The results of a busy run, by second and by minute, and whether it meets its target: as CSV, a table and a plot."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from benchmarks import results
from benchmarks.plots import Curve, Panel, draw
from benchmarks.recorded_worker import CLAIM, SETTLE, Call
from benchmarks.report import machine, percentile
from benchmarks.steady import Sending

T = TypeVar("T")

NAME: Final = "postgres-busy"

MAX_BACKLOG: Final = 2.0
"""The maximum backlog, in seconds' worth of jobs."""

WARMING_UP: Final = 10
"""Seconds at the start in which the backlog is ignored."""

MAX_GROWTH: Final = 2.0
"""The maximum ratio of a minute's p99 of claims to the first minute's."""


@dataclass(frozen=True)
class Sample:
    """The state after `second` seconds: dead rows, bytes of the schema, the age of the oldest snapshot in transactions, and CPU seconds."""

    second: int
    dead_rows: int
    dead_jobs: int
    size: int
    horizon_age: int
    worker_cpu: float
    server_cpu: float


@dataclass(frozen=True)
class Run:
    """A busy run. `began` and the times of calls and sendings are on the monotonic clock."""

    began: float
    seconds: int
    rate: float
    server: str
    calls: Sequence[Call]
    sendings: Sequence[Sending]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Second:
    """The totals at the end of a second, the largest backlog of unsettled jobs within it, and the latencies of its answers in ms."""

    second: int
    sent: int
    claimed: int
    settled: int
    most_backlog: int
    claims: int
    claim_p50_ms: float
    claim_max_ms: float
    wait_p50_ms: float
    wait_max_ms: float
    enqueue_max_ms: float
    dead_rows: int
    dead_jobs: int
    size_bytes: int
    horizon_age: int
    worker_cpu_s: float
    server_cpu_s: float


@dataclass(frozen=True)
class Minute:
    minute: int
    settled: int
    most_backlog: int
    wait_p50_ms: float
    wait_p99_ms: float
    claims: int
    claim_p50_ms: float
    claim_p99_ms: float
    settle_p99_ms: float
    enqueue_p99_ms: float
    dead_rows: int
    size_mb: float
    worker_cpu_us_a_job: float
    server_cpu_us_a_job: float


def publish(run: Run) -> list[str]:
    """Write and print the results. Return descriptions of how they miss the target."""
    seconds, minutes = _seconds(run), _minutes(run)
    failures = _failures(run, seconds, minutes)
    folder = results.folder(NAME)
    results.write_csv(folder / "seconds.csv", [asdict(second) for second in seconds])
    results.write_csv(folder / "minutes.csv", [asdict(minute) for minute in minutes])
    table = f"{_title(run)}\n\n{_table(minutes)}\n\n{_verdict(run, seconds, minutes, failures)}"
    print(f"\n{table}")
    results.publish(NAME, table, _plot(seconds, minutes, folder / "plot"))
    return failures


# --- figures -----------------------------------------------------------------------------------------------------


def _seconds(run: Run) -> list[Second]:
    calls = _Parts(run.began, 1.0, run.calls, lambda call: call.at)
    sendings = _Parts(run.began, 1.0, run.sendings, lambda sending: sending.at)
    sent = claimed = settled = 0
    found: list[Second] = []
    for sample in run.samples:
        here, added = calls[sample.second - 1], sendings[sample.second - 1]
        claims = [call for call in here if call.operation == CLAIM]
        waits = [wait for call in here for wait in call.waits]
        most = _most_backlog(sent - settled, here, added)
        sent += sum(sending.jobs for sending in added)
        claimed += sum(call.jobs for call in claims)
        settled += sum(call.jobs for call in here if call.operation == SETTLE)
        found.append(
            Second(
                second=sample.second,
                sent=sent,
                claimed=claimed,
                settled=settled,
                most_backlog=most,
                claims=len(claims),
                claim_p50_ms=_ms((call.took for call in claims), 0.5),
                claim_max_ms=_ms((call.took for call in claims), 1.0),
                wait_p50_ms=_ms(waits, 0.5),
                wait_max_ms=_ms(waits, 1.0),
                enqueue_max_ms=_ms((sending.took for sending in added), 1.0),
                dead_rows=sample.dead_rows,
                dead_jobs=sample.dead_jobs,
                size_bytes=sample.size,
                horizon_age=sample.horizon_age,
                worker_cpu_s=round(sample.worker_cpu, 3),
                server_cpu_s=round(sample.server_cpu, 3),
            )
        )
    return found


def _most_backlog(backlog: int, calls: Iterable[Call], sendings: Iterable[Sending]) -> int:
    """Return the largest number of unsettled jobs at any time in a span that begins with `backlog` of them."""
    changes = [(call.at, -call.jobs) for call in calls if call.operation == SETTLE] + [(sending.at, sending.jobs) for sending in sendings]
    most = backlog
    for _, change in sorted(changes):
        backlog += change
        most = max(most, backlog)
    return most


def _minutes(run: Run) -> list[Minute]:
    """Return the figures of each whole minute."""
    calls = _Parts(run.began, 60.0, run.calls, lambda call: call.at)
    sendings = _Parts(run.began, 60.0, run.sendings, lambda sending: sending.at)
    seconds = _seconds(run)
    return [
        _minute(number, calls[number], sendings[number], seconds[60 * number : 60 * number + 60]) for number in range(run.seconds // 60)
    ]


def _minute(number: int, calls: Sequence[Call], sendings: Sequence[Sending], seconds: Sequence[Second]) -> Minute:
    claims = [call.took for call in calls if call.operation == CLAIM]
    settles = [call for call in calls if call.operation == SETTLE]
    settled = sum(call.jobs for call in settles)
    waits = [wait for call in settles for wait in call.waits]
    last = seconds[-1]
    # CPU times are totals at the end of each second, so the minute's CPU time counts from the end of its first second.
    counted = max(1, last.settled - seconds[0].settled)
    return Minute(
        minute=number + 1,
        settled=settled,
        most_backlog=max(second.most_backlog for second in seconds),
        wait_p50_ms=_ms(waits, 0.5),
        wait_p99_ms=_ms(waits, 0.99),
        claims=len(claims),
        claim_p50_ms=_ms(claims, 0.5),
        claim_p99_ms=_ms(claims, 0.99),
        settle_p99_ms=_ms((call.took for call in settles), 0.99),
        enqueue_p99_ms=_ms((sending.took for sending in sendings), 0.99),
        dead_rows=last.dead_rows,
        size_mb=round(last.size_bytes / 1e6, 1),
        worker_cpu_us_a_job=round(1e6 * (last.worker_cpu_s - seconds[0].worker_cpu_s) / counted, 1),
        server_cpu_us_a_job=round(1e6 * (last.server_cpu_s - seconds[0].server_cpu_s) / counted, 1),
    )


class _Parts(Generic[T]):
    """Ordered events, grouped into spans of `span` seconds."""

    def __init__(self, began: float, span: float, events: Sequence[T], at: Callable[[T], float]) -> None:
        self._began = began
        self._span = span
        self._events = events
        self._at = at

    def __getitem__(self, number: int) -> Sequence[T]:
        bounds = (self._began + number * self._span, self._began + (number + 1) * self._span)
        first, end = (bisect.bisect_left(self._events, bound, key=self._at) for bound in bounds)
        return self._events[first:end]


def _ms(seconds: Iterable[float], share: float) -> float:
    """Return a percentile in milliseconds, or 0 for no values."""
    sample = list(seconds)
    return round(1e3 * percentile(sample, share), 3) if sample else 0.0


# --- the target ----------------------------------------------------------------------------------------------------


def _failures(run: Run, seconds: Sequence[Second], minutes: Sequence[Minute]) -> list[str]:
    found: list[str] = []
    limit = MAX_BACKLOG * run.rate
    over = [second for second in seconds[WARMING_UP:] if second.most_backlog > limit]
    if over:
        worst = max(over, key=lambda second: second.most_backlog)
        found.append(f"a backlog of {worst.most_backlog:,} jobs in second {worst.second}, over {limit:,.0f} in {len(over)} seconds")
    slow = [minute for minute in minutes if minute.claim_p99_ms > MAX_GROWTH * minutes[0].claim_p99_ms]
    if slow:
        worst_minute = max(slow, key=lambda minute: minute.claim_p99_ms)
        ratio = worst_minute.claim_p99_ms / minutes[0].claim_p99_ms
        found.append(f"a claim's p99 of {worst_minute.claim_p99_ms:.1f} ms in minute {worst_minute.minute}, {ratio:.1f} times the first's")
    return found


def _verdict(run: Run, seconds: Sequence[Second], minutes: Sequence[Minute], failures: Sequence[str]) -> str:
    most = max((second.most_backlog for second in seconds[WARMING_UP:]), default=0)
    growth = max((minute.claim_p99_ms / minutes[0].claim_p99_ms for minute in minutes), default=0.0)
    return (
        f"Most backlog after {WARMING_UP} s: {most:,} jobs (target: under {MAX_BACKLOG * run.rate:,.0f}); a claim's p99 at most "
        f"{growth:.2f} times the first minute's (target: {MAX_GROWTH:g}). Target {'missed' if failures else 'met'}."
    )


# --- output --------------------------------------------------------------------------------------------------------


def _title(run: Run) -> str:
    return (
        f"PostgreSQL {run.server}, {machine()}: {run.rate:,.0f} jobs/s for {run.seconds / 60:g} minutes, "
        "one worker, three overlapping transactions of two minutes."
    )


def _table(minutes: Sequence[Minute]) -> str:
    headings = ("minute", "settled", "most backlog", "waited p50 ms", "p99", "claims", "claim p50 ms", "p99", "settle p99 ms")
    more = ("enqueue p99 ms", "dead rows", "MB", "worker CPU µs/job", "server CPU µs/job")
    return results.markdown((*headings, *more), [list(asdict(minute).values()) for minute in minutes])


def _plot(seconds: Sequence[Second], minutes: Sequence[Minute], path: Path) -> bool:
    at = [second.second / 60 for second in seconds]
    backlog = [float(second.most_backlog) for second in seconds]
    middles = [minute.minute - 0.5 for minute in minutes]
    return draw(
        path,
        "minutes",
        [
            Panel("jobs sent, not settled", [Curve("most in the second", at, backlog)]),
            Panel(
                "a claim, ms",
                [
                    Curve("p50 of the second", at, [second.claim_p50_ms for second in seconds]),
                    Curve("p99 of the minute", middles, [minute.claim_p99_ms for minute in minutes]),
                ],
            ),
            Panel(
                "dead rows, thousands",
                [
                    Curve("of all tables", at, [second.dead_rows / 1e3 for second in seconds]),
                    Curve("of the jobs'", at, [second.dead_jobs / 1e3 for second in seconds]),
                ],
            ),
        ],
    )
