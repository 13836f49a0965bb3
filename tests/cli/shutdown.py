"""Workers that are stopped once, twice or three times, at any moment, whatever they do then; and what must hold at each end."""

from __future__ import annotations

import itertools
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.cli.processes import JOBS, Running, Shell, counts_of, ended_clearly
from tests.cli.supervised import PYTHONS_OWN, a_little_later, interrupt_again_if_lost, none_is_left, pids

AT_ONE_TIME: Final = 4
"""The number of workers that are stopped beside each other: their moments are then no longer exact, and all the more mixed."""

NOT_HEARD: Final = (*PYTHONS_OWN, -signal.SIGTERM)
"""Exit codes after a signal that came before our first line ran or after our last: Python handles it, or is ended by it."""


@dataclass(frozen=True)
class Stop:
    """`times` the signal, the first one this many seconds after the worker was started, or began to work."""

    number: signal.Signals
    times: int
    after: float

    def send(self, running: Running) -> None:
        time.sleep(self.after)
        for _ in range(self.times):
            running.signal(self.number)
            a_little_later()


HOW: Final = [(number, times) for times in (1, 2, 3) for number in (signal.SIGTERM, signal.SIGINT)]


def stops(milliseconds: Iterable[int], turn: int = 0) -> list[Stop]:
    """Return, for each of these moments, the next of the six ways to stop, beginning with that `turn`."""
    ways = itertools.islice(itertools.cycle(HOW), turn, None)
    return [Stop(number, times, moment / 1e3) for (number, times), moment in zip(ways, milliseconds, strict=False)]


@dataclass
class Stopped:
    """One worker or supervisor that was stopped, and its store."""

    stop: Stop
    running: Running
    url: str
    ledger: Path

    @property
    def code(self) -> int:
        return self.running.process.returncode

    @property
    def is_orderly(self) -> bool:
        """True if it has wound down, and handed back what it could not finish; or if it had not begun."""
        return self.code in (0, 124, *NOT_HEARD) and "did not exit in time" not in self.running.said

    def counts(self) -> Counter[str]:
        return counts_of(self.url)

    def runs(self) -> Counter[str]:
        return Counter(self.ledger.read_text().splitlines() if self.ledger.exists() else ())


class Stage:
    """Workers of a module `tasks`, each on a copy of one store that was filled before, or on a `new_store`, unless they are given another
    one."""

    def __init__(self, shell: Shell, *calls: str, new_store: Callable[[], str] | None = None) -> None:
        self.shell = shell
        self._calls = calls
        self._new_store = new_store
        self._numbers = itertools.count()
        shell.write("tasks.py", JOBS)
        shell.start_sooner()
        if new_store is not None:
            return
        shell.environment["TASKFLOW_BROKER"] = "sqlite:///filled.db"
        if not calls:
            return
        shell.send(*calls)
        with closing(sqlite3.connect(shell.folder / "filled.db")) as filled:  # leaves nothing beside the file
            filled.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def start(self, *flags: str, url: str | None = None) -> tuple[Running, str, Path]:
        """Return a new worker, its store and its ledger."""
        number = next(self._numbers)
        if url is None and self._new_store is not None:
            url = self._filled(self._new_store())
        elif url is None:
            file = self.shell.folder / f"queue-{number}.db"
            shutil.copy(self.shell.folder / "filled.db", file)
            url = f"sqlite:///{file}"
        ledger = self.shell.folder / f"ledger-{number}"
        environment = {**self.shell.environment, "TASKFLOW_BROKER": url, "LEDGER": str(ledger)}
        running = self.shell.start("-m", "taskflow", "worker", "tasks", *flags, env=environment)
        return running, url, ledger

    def _filled(self, url: str) -> str:
        self.shell.send_to(url, *self._calls)
        return url

    def start_takes(self) -> float:
        """Return the seconds from a worker's start until it works, on this machine at this moment."""
        began_at = time.monotonic()
        running, _, _ = self.start()
        running.wait_for("working as")
        took = time.monotonic() - began_at
        running.signal(signal.SIGTERM)
        running.end()
        return took

    def stop_all(self, stops: Sequence[Stop], *flags: str, once: str | None = None, url: str | None = None) -> list[Stopped]:
        """Stop one worker each, timed from its start or from its line `once`; each must end clearly and leave nothing behind.

        Where a start takes longer than half a second, the moments are spread in proportion."""
        stretch = 1.0 if once is not None else max(1.0, AT_ONE_TIME / 2 * self.start_takes() / 0.5)

        def stopped(stop: Stop) -> Stopped:
            stop = replace(stop, after=stop.after * stretch)
            running, place, ledger = self.start(*flags, url=url)
            if once is not None:
                running.wait_for(once)
            stop.send(running)
            ended = Stopped(stop, running, place, ledger)
            ended_as_told(ended)
            return ended

        with ThreadPoolExecutor(AT_ONE_TIME) as pool:
            return list(pool.map(stopped, stops))


def ended_as_told(stopped: Stopped) -> None:
    """Assert that a worker that began to work winds down and obeys; one that had not begun, or is cut off at once, shows this by its code.
    Of several workers some may have begun."""
    number, running = stopped.stop.number, stopped.running
    if number == signal.SIGINT:
        interrupt_again_if_lost(running)
    running.end()
    has_begun, workers = "winding down" in running.said, pids(running)
    clear = [0, 124] if has_begun else [128 + number]
    if stopped.stop.times == 3 or workers:
        clear = [0, 124, 128 + number]
    ended_clearly(running, [*clear, *NOT_HEARD])
    was_told = has_begun or "cancelling the start" in running.said
    if stopped.code in NOT_HEARD and not (stopped.stop.times > 1 and was_told):
        assert "broker" not in running.said, running.said
        assert workers == [], running.said
    none_is_left(running)


def nothing_is_lost(stopped: Stopped, jobs: int) -> None:
    """Assert that each job is where it belongs: an ended one is settled, and others are ready again, except for those that were cut off by
    force."""
    counts, runs = stopped.counts(), stopped.runs()
    said = f"{stopped.stop}: exit code {stopped.code}, {dict(counts)}, {len(runs)} ran: {stopped.running.said}"
    assert counts.total() == jobs, said
    assert counts["failed"] == counts["cancelled"] == 0, said
    if stopped.is_orderly:
        assert counts["running"] == 0, said
        assert runs.total() == len(runs) == counts["succeeded"], said
    assert len(runs) <= counts["succeeded"] + counts["running"], said
    assert counts["succeeded"] <= len(runs), said


BRIEF = ("*[brief.bind(n) for n in range(40)]", "*[brief_in_a_thread.bind(n) for n in range(40, 80)]")


STUBBORN = ("swallow.bind(0)", "never_return.bind(1)", *(f"brief.bind({n})" for n in range(2, 10)))


def had_time(stopped: Stopped) -> None:
    """Assert that the runs of a worker that was interrupted once may finish; 10 ms are soon over."""
    assert stopped.stop.times > 1 or stopped.code != 124, stopped.running.said
