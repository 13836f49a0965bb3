"""wakaq, with jobs in the event loop of one child process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import time
from urllib.parse import urlsplit

from wakaq import WakaQ
from wakaq.worker import Worker

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, SyncSending, run_sync

parts = urlsplit(URL)
application = WakaQ(
    queues=["default"],
    host=parts.hostname,
    port=parts.port,
    concurrency=1,
    worker_log_level=logging.CRITICAL,
)


@application.task(queue="default")
async def note(number: int) -> None:
    mark(number)


class WakaqSending(SyncSending):
    def send(self, number: int) -> object:
        return note.delay(number)

    def send_at(self, number: int, instant: float) -> object:
        return note.delay(number, eta=timedelta(seconds=instant - time()))


@contextmanager
def sending() -> Iterator[SyncSending]:
    yield WakaqSending()


def work(concurrency: int) -> None:
    application.async_concurrency = concurrency
    Worker(wakaq=application).start()


if __name__ == "__main__":
    run_sync(sending, work)
