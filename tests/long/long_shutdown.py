"""Workers stopped at every moment: tests/cli/test_shutdown.py has a sample of this. How many ended in which way is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from tests.cli.processes import Shell, counts_of
from tests.cli.shutdown import BRIEF, HOW, STUBBORN, Stage, Stop, Stopped, ended_as_told, had_time, nothing_is_lost, stops
from tests.support.outages import Outage, outages

EVERY_5_MS: Final = range(0, 501, 5)
EVERY_20_MS: Final = range(0, 501, 20)
EVERY_50_MS: Final = range(0, 501, 50)
TOGETHER: Final = 6

one_or_two = pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])


def tell(stopped: Sequence[Stopped]) -> None:
    for (number, times), codes in sorted(Counter((one.stop.number.name, one.stop.times) for one in stopped).items()):
        ended = Counter(one.code for one in stopped if (one.stop.number.name, one.stop.times) == (number, times))
        print(f"{number} {times} x: {codes} workers, exit codes {dict(sorted(ended.items()))}")


@one_or_two
@pytest.mark.parametrize("once", [None, "working as"], ids=["since its start", "since it works"])
def test_at_every_moment(shell: Shell, processes: list[str], once: str | None) -> None:
    """Each moment is used with one of the six ways to stop a worker."""
    stopped = Stage(shell, *BRIEF).stop_all(stops(EVERY_5_MS), "--concurrency", "4", *processes, once=once)
    tell(stopped)
    for one in stopped:
        nothing_is_lost(one, 80)
        had_time(one)


@pytest.mark.parametrize(("number", "times"), HOW, ids=lambda value: getattr(value, "name", str(value)))
def test_at_every_moment_of_the_start_in_each_way(shell: Shell, number: int, times: int) -> None:
    ways = [Stop(*next(way for way in HOW if way == (number, times)), moment / 1e3) for moment in EVERY_5_MS]
    stopped = Stage(shell, *BRIEF).stop_all(ways, "--concurrency", "4")
    tell(stopped)
    for one in stopped:
        nothing_is_lost(one, 80)
        had_time(one)


@pytest.mark.parametrize("once", [None, "working as"], ids=["since its start", "since it works"])
@pytest.mark.parametrize("new_store", ["redis", "postgres"], indirect=True)
def test_at_every_moment_on_a_server(shell: Shell, new_store: Callable[[], str], once: str | None) -> None:
    stage = Stage(shell, *BRIEF, new_store=new_store)
    stopped = stage.stop_all(stops(EVERY_5_MS), "--concurrency", "4", "--processes", "2", once=once)
    tell(stopped)
    for one in stopped:
        nothing_is_lost(one, 80)
        had_time(one)


@one_or_two
def test_with_jobs_that_ignore_their_cancellation(shell: Shell, processes: list[str]) -> None:
    stopped = Stage(shell, *STUBBORN).stop_all(stops(EVERY_20_MS), "--grace", "0.1", *processes, once="working as")
    tell(stopped)
    for one in stopped:
        nothing_is_lost(one, 10)
    assert {one.code for one in stopped if one.stop.times < 3} <= {0, 124}


@one_or_two
@pytest.mark.parametrize("kind", outages(), ids=lambda kind: kind.name)
def test_with_the_broker_away(shell: Shell, kind: type[Outage], processes: list[str]) -> None:
    """At some moments after the broker has gone; each worker has a long run. They end in time, and nothing is lost."""
    of_each = 2 if processes else 1
    stage, moments = Stage(shell), stops(EVERY_50_MS)
    with kind() as broker:
        shell.environment["TASKFLOW_BROKER"] = broker.url
        shell.send(*(f"wait.bind({n})" for n in range(len(moments) * of_each)))
        for first in range(0, len(moments), TOGETHER):
            portion = moments[first : first + TOGETHER]
            started = [stage.start("--grace", "0.2", "--ttl", "1", "--concurrency", "1", *processes, url=broker.url) for _ in portion]
            for running, _, _ in started:
                running.wait_for("begun", times=of_each)
            broker.go_away()
            stopped = [Stopped(stop, *one) for stop, one in zip(portion, started, strict=True)]
            for one in stopped:
                one.stop.send(one.running)
            for one in stopped:
                ended_as_told(one)
            broker.come_back()
            tell(stopped)
        counts = counts_of(broker.straight)
        assert counts.total() == counts["ready"] + counts["running"] + counts["scheduled"] == len(moments) * of_each, counts
