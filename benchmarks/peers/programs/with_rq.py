"""rq with its simple worker, which doesn't fork a process for each job."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis
import rq

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, SyncSending, run_sync

NOTE = "benchmarks.peers.programs.with_rq.note"


def note(number: int) -> None:
    mark(number)


class RqSending(SyncSending):
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def send(self, number: int) -> object:
        return self._queue.enqueue(NOTE, number)

    def send_many(self, numbers: Sequence[int]) -> object:
        return self._queue.enqueue_many([rq.Queue.prepare_data(NOTE, (number,)) for number in numbers])

    def send_at(self, number: int, instant: float) -> object:
        return self._queue.enqueue_at(datetime.fromtimestamp(instant, UTC), NOTE, number)


@contextmanager
def sending() -> Iterator[SyncSending]:
    yield RqSending(rq.Queue(connection=redis.Redis.from_url(URL)))


def work(concurrency: int) -> None:
    """Run one job at a time, because rq's worker supports no more."""
    logging.getLogger("rq.worker").setLevel(logging.ERROR)
    connection = redis.Redis.from_url(URL)
    rq.SimpleWorker([rq.Queue(connection=connection)], connection=connection).work(with_scheduler=True, logging_level="ERROR")


if __name__ == "__main__":
    run_sync(sending, work)
