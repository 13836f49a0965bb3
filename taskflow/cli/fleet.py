"""Tracks the health of a supervisor's workers from their reports, so that the supervisor can answer probes for all of them."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from taskflow.worker.exit_status import ExitStatus
from taskflow.worker.health import HealthCheck

CHECK_EVERY: Final = 0.2
REPORT_EVERY: Final = 1.0
"""Seconds between two reports from a worker. A change is reported at once."""
SILENT_AFTER: Final = 10.0
"""Seconds without a report after which a worker is presumed dead, for example because C code holds the interpreter lock."""

_WORD: Final = "health"


def report_line(live: HealthCheck, ready: HealthCheck) -> str:
    """Return the line with which a worker reports its health to its supervisor."""
    return f"{_WORD} {live.is_well:d} {ready.is_well:d} {live.why if not live.is_well else ready.why}"


class WorkerReport(NamedTuple):
    at: float
    is_live: bool
    is_ready: bool
    why: str


class Fleet:
    """The health of all workers. The supervisor updates it; the thread that answers health probes reads it.

    The fleet is live and ready as long as at least one worker is, because the supervisor itself replaces the others. A failed
    probe would end the supervisor, and with it the runs of all workers.
    """

    def __init__(self) -> None:
        self._workers: dict[int, WorkerReport] = {}
        self.has_worked = False

    def note(self, pid: int, news: str | ExitStatus) -> None:
        if isinstance(news, ExitStatus):
            self._workers.pop(pid, None)
            return
        match news.split(" ", 3):
            case [word, live, ready, why] if word == _WORD:
                self._workers[pid] = WorkerReport(time.monotonic(), live == "1", ready == "1", why)
            case ["session", _]:
                self.has_worked = True
            case _:
                return

    def live(self) -> HealthCheck:
        workers = self._present()
        if not workers or any(worker.is_live for worker in workers):
            return HealthCheck(True, "a worker is alive" if workers else "no worker has started yet", _facts(workers))
        return HealthCheck(False, f"no worker is alive: {workers[0].why}", _facts(workers))

    def ready(self) -> HealthCheck:
        workers = self._present()
        if any(worker.is_live and worker.is_ready for worker in workers):
            return HealthCheck(True, "the broker answers the heartbeats, claims and settlements of a worker", _facts(workers))
        return HealthCheck(False, f"no worker is ready: {workers[0].why}" if workers else "no worker has started yet", _facts(workers))

    def _present(self) -> list[WorkerReport]:
        now = time.monotonic()
        return [
            worker
            if now - worker.at < SILENT_AFTER
            else worker._replace(is_live=False, is_ready=False, why=f"it has been silent for {now - worker.at:.0f} s")
            for worker in list(self._workers.values())
        ]


def _facts(workers: list[WorkerReport]) -> dict[str, float | int | str | None]:
    live, ready = (sum(worker.is_live for worker in workers), sum(worker.is_live and worker.is_ready for worker in workers))
    return {"workers": len(workers), "live": live, "ready": ready}
