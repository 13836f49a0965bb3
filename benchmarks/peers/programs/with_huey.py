"""huey on Redis, with jobs in threads. If the variant is "results", waiting callers are notified of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from huey import RedisHuey

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, VARIANT, CannotError, SyncSending, run_sync

huey: Any = RedisHuey("benchmark", url=URL, store_none=VARIANT == "results", notify_result=VARIANT == "results")


@huey.task(name="note")
def note(number: int) -> Any:
    mark(number)


class HueySending(SyncSending):
    def send(self, number: int) -> object:
        return note(number)

    def ask(self, number: int) -> object:
        if VARIANT != "results":
            raise CannotError("wait for a result, as None is not stored")
        return note(number).get(blocking=True, timeout=10)

    def send_at(self, number: int, instant: float) -> object:
        return note.schedule((number,), eta=datetime.fromtimestamp(instant))


@contextmanager
def sending() -> Iterator[SyncSending]:
    yield HueySending()


def work(concurrency: int) -> None:
    huey.create_consumer(workers=concurrency, worker_type="thread", periodic=False).run()


if __name__ == "__main__":
    run_sync(sending, work)
