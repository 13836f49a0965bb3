"""dramatiq on Redis, with jobs in threads, and results if the variant is "results"."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, VARIANT, CannotError, SyncSending, run_sync, work_by

broker = RedisBroker(url=URL)
if VARIANT == "results":
    broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="note")
def note(number: int) -> None:
    mark(number)


class DramatiqSending(SyncSending):
    def send(self, number: int) -> object:
        return note.send(number)

    def ask(self, number: int) -> object:
        if VARIANT != "results":
            raise CannotError("wait for a result without its middleware for results")
        return note.send(number).get_result(block=True, timeout=10_000)

    def send_at(self, number: int, instant: float) -> object:
        return note.send_with_options(args=(number,), delay=max(0, round(1e3 * (instant - time.time()))))


@contextmanager
def sending() -> Iterator[SyncSending]:
    yield DramatiqSending()


def work(concurrency: int) -> None:
    work_by("dramatiq", "--processes", "1", "--threads", str(concurrency), "--skip-logging", "benchmarks.peers.programs.with_dramatiq")


if __name__ == "__main__":
    run_sync(sending, work)
